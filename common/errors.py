"""Every exception that a user can meet, in one small tree.

    ProjectError              reported to the user in one line; exit 1
    |-- InputError            bad options, job files, configuration or data; exit 2
    |   |-- BaseModelNotFound    no published base model under that hash
    |   `-- Conflict             the place holds other results, or another process holds its lock
    |-- CorruptArtifact       a published file has other bytes than were published; exit 2
    |-- TrainingError         the training itself failed (a loss that is not a number)
    `-- NodeError             a fault of a node: connection lost, disk full, GPU gone

A message is one line: what, where, why, what to do. Code never reads a message: what it needs to
know is in the fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class ProjectError(Exception):
    """Reported to the user in one line. The fields name what it is about, where that is known.

    path: the file or folder; holder: the process that holds its lock; node: the node's name, with
    which the line begins; job: the job's id.
    """

    exit_code = 1

    def __init__(
        self,
        message: str = "",
        *,
        path: Path | None = None,
        holder: str | None = None,
        node: str | None = None,
        job: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message  # without the node's name
        self.path, self.holder, self.node, self.job = path, holder, node, job

    def __str__(self) -> str:
        return f"{self.node}: {self.message}" if self.node else self.message


class InputError(ProjectError):
    """Bad options, job files, configuration or data: nothing was changed on disk."""

    exit_code = 2


class BaseModelNotFound(InputError):
    """No published base model under that hash."""


class Conflict(InputError):
    """The place holds results of another configuration, or another process holds its lock."""


class CorruptArtifact(ProjectError):
    """The bytes on disk are not those that were published; they are never loaded."""

    exit_code = 2


class TrainingError(ProjectError):
    """The training itself failed."""


class NodeError(ProjectError):
    """A fault of a node, not of the job."""


# What other programs call options.
OTHER_NAMES = {
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "n_epochs": "max_epochs",
    "patience": "early_stopping_patience",
    "batchsize": "batch_size",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "l2": "weight_decay",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean X?' for a mistyped name, or an empty string."""
    every = list(known)
    dashes = "--" if name.startswith("--") else ""
    other = OTHER_NAMES.get(name.removeprefix("--").replace("-", "_").lower(), "")
    if other and dashes + other in every:
        return f", did you mean {dashes}{other}?"
    close = get_close_matches(name, every, n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""
