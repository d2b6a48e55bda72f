"""What an engine is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.jobs.job_files import Job

Say = Callable[[str], None]  # takes a line for a person
Show = Callable[[dict[str, Any]], None]  # takes the status of the run


def once(say: Say) -> Say:
    """`say`, for lines that come again and again: each is said the first time."""
    said: set[str] = set()

    def say_new(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_new


class Report(Protocol):
    """Takes a line for a person; `failed` names the job whose failure the line reports."""

    def __call__(self, line: str, *, failed: str | None = None) -> None: ...


@dataclass(frozen=True)
class Work:
    """The jobs to run, already planned. `scripts`: by job kind, the script's file name."""

    bases: Sequence[Job]  # one for each distinct training
    siblings: Mapping[str, Sequence[Job]]  # by its hash: jobs with the same training key
    others: Sequence[Job]  # fine-tunes, or the jobs of a user's own script
    waiting: frozenset[str]  # fine-tunes that may turn out to be done once their base is there
    scripts: Mapping[str, str]
    retrain: bool = False


@dataclass
class Outcome:
    """How the jobs of a run ended. `failed`: by job, (cause, log)."""

    done: int = 0
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    interrupted: bool = False
    why: str = ""

    def add(self, later: Outcome, repeated: Sequence[Job]) -> None:
        """Add how a later run ended, which repeated jobs that failed or were blocked here."""
        for job in repeated:
            self.failed.pop(job.id, None)
        again = {job.id for job in repeated}
        self.blocked = [job for job in self.blocked if job not in again] + later.blocked
        self.done += later.done
        self.failed.update(later.failed)
        self.left += later.left
        self.interrupted, self.why = later.interrupted, later.why or self.why

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 130 interrupted."""
        return 130 if self.interrupted else int(bool(self.failed or self.blocked or self.left))
