"""What the jobs of a run read, so that exactly this is brought to a node: code, data files, and
what lies beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from common.data.manifest import MANIFEST, Sha256Cache
from common.errors import InputError
from common.jobs import identity
from common.jobs.job_files import Job
from common.paths import CODE_ROOT, SPLITS, Paths, windows_file

File = tuple[str, str]  # data_path, file name


@dataclass(frozen=True)
class Needs:
    """What a run's jobs need on every node."""

    code: tuple[str, ...]  # files relative to the code's root
    extra: tuple[str, ...]  # files relative to the project folder (a user's own script)
    data: dict[File, str | None]  # SHA-256 on the head; None: only the nodes have it
    bases: tuple[str, ...]
    experiments: tuple[str, ...]
    owner: str
    trusted: bool = False  # --skip-sync: no base model is sent before it is missed
    # SHA-256 of what the head has beside the data: dataset.json, lists of windows
    beside: dict[File, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[File, str | None]:
        """All data files, with what lies beside them."""
        return {**self.data, **self.beside}


def code_files() -> tuple[str, ...]:
    """What a node needs of the project's own code, relative to CODE_ROOT."""
    files = [
        *CODE_ROOT.glob("*.py"),
        *(CODE_ROOT / "common").rglob("*.py"),
        *CODE_ROOT.glob("requirements*.txt"),
        CODE_ROOT / "constraints.txt",
    ]
    return tuple(sorted(str(path.relative_to(CODE_ROOT)) for path in files if path.is_file()))


def extra_files(script: Path | None) -> tuple[str, ...]:
    """A user's own script, relative to the project folder, unless it goes with the code."""
    return () if script is None or str(script) in code_files() else (str(script),)


def data_files(job: Job) -> list[File]:
    """The data files that a job reads."""
    if job.kind == "base":
        return [(job.base.data_path, name) for name in identity.base_data_files(job.base)]
    if job.kind == "finetune":
        people = identity.base_participants(job.finetune) if job.needs else []
        return [
            (job.finetune.data_path, name)
            for name in identity.finetune_data_files(job.finetune, people)
        ]
    return []


def beside_files(job: Job) -> list[File]:
    """What a job reads beside its data files where it is there: of everyone dataset.json, of a
    fine-tune's target the lists of windows.
    """
    if job.kind == "script":
        return []
    data_path = str(job.values["data_path"])
    names = (
        [windows_file(identity.target(job.finetune), split) for split in SPLITS]
        if job.kind == "finetune"
        else []
    )
    return [(data_path, name) for name in (MANIFEST, *names)]


def found_beside(paths: Paths, jobs: Iterable[Job]) -> dict[File, str]:
    """SHA-256 of those files of `beside_files` that the head has."""
    cache, found = Sha256Cache(paths.sha256_cache), dict[File, str]()
    for data_path, name in dict.fromkeys(file for job in jobs for file in beside_files(job)):
        if (paths.data(data_path) / name).is_file():
            found[data_path, name] = cache.sha256(paths.data(data_path) / name)
    return found


def path_of(file: File) -> str:
    """As it is copied: relative to the project folder, or absolute."""
    return f"{file[0]}/{file[1]}"


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
                f"{name}: {path_of(file)} is {how} there and cannot be sent: put it there, or leave"
                " the node out"
            )
        wrong.append(file)
    return wrong
