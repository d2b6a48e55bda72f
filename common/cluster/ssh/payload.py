"""What the jobs of a run need on every node: code, data files, and the files beside them."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError
from common.jobs.inputs import File, path_of
from common.paths import CODE_ROOT, Paths


@dataclass(frozen=True)
class Needs:
    """What a run's jobs need on every node."""

    extra: tuple[str, ...]  # files relative to the project folder (a user's own script)
    data: dict[File, str | None]  # SHA-256 on the head; None: only the nodes have it
    bases: tuple[str, ...]
    experiments: tuple[str, ...]
    owner: str
    wait: bool = True  # for slots that another project fills
    trusted: bool = False  # --skip-sync: no base model is sent before it is missed
    # SHA-256 of what the head has beside the data: dataset.json, lists of windows
    beside: dict[File, str] = field(default_factory=dict)
    # None for a user's own script; else workers get ready to train before they say hello, and
    # measure the speed of their slot for so many seconds
    measure: float | None = None

    @property
    def files(self) -> dict[File, str | None]:
        """All data files, with what lies beside them."""
        return {**self.data, **self.beside}


def owner(paths: Paths) -> str:
    """Names this head and project in the nodes' slot locks."""
    return f"{platform.node()}:{paths.root}"


def code_files() -> tuple[str, ...]:
    """What a node needs of the project's own code, relative to CODE_ROOT."""
    files = [
        *CODE_ROOT.glob("*.py"),
        *(CODE_ROOT / "common").rglob("*.py"),
        *(CODE_ROOT / "common").rglob("*.cpp"),
        *CODE_ROOT.glob("requirements*.txt"),
        CODE_ROOT / "constraints.txt",
    ]
    return tuple(sorted(str(path.relative_to(CODE_ROOT)) for path in files if path.is_file()))


def extra_files(script: Path | None) -> tuple[str, ...]:
    """A user's own script, relative to the project folder, unless it goes with the code."""
    return () if script is None or str(script) in code_files() else (str(script),)


def differing(name: str, needs: Needs, there: dict[File, str | None]) -> list[File]:
    """Files that node `name` lacks or has otherwise. Raises InputError for one that cannot be sent
    to it.
    """
    wrong = []
    for file, here in needs.files.items():
        found = there.get(file)
        if found == here and here is not None:
            continue
        if here is None and found is not None:
            continue  # only the nodes have data; that they agree was seen in planning
        if here is None or file[0].startswith("/"):
            how = "missing" if found is None else "another"
            raise InputError(
                f"{path_of(file)} is {how} there and cannot be sent: put it there, or leave"
                " the node out",
                node=name,
            )
        wrong.append(file)
    return wrong
