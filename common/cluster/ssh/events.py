"""What the threads of a node report to the run's event loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cluster.config import SlotPlan
from common.jobs.inputs import File

if TYPE_CHECKING:
    from common.cluster.ssh.node import NodeThreads
    from common.cluster.ssh.worker_link import WorkerLink


@dataclass(frozen=True)
class Listed:
    """The node answers; `found` is what it had published for this run before: base model hashes
    and experiments.
    """

    node: NodeThreads
    notes: tuple[str, ...]
    found: tuple[str, ...]


@dataclass(frozen=True)
class Joined:
    """The head's code is there and the workers are being started. `lacking`: data files that have
    to be sent before a job can read them.
    """

    node: NodeThreads
    plan: SlotPlan
    lacking: tuple[File, ...] = ()
    shared: bool = False  # results are on the head as soon as they are published there


@dataclass(frozen=True)
class Left:
    """The node cannot work (now): why, and whether trying again makes sense."""

    node: NodeThreads
    reason: str
    transient: bool


@dataclass(frozen=True)
class Started:
    """A worker was started; its other events come after this one."""

    worker: WorkerLink


@dataclass(frozen=True)
class Said:
    """A line from a worker."""

    worker: WorkerLink
    message: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A worker's end: its exit code (None: the link was lost), its last words, and the end of its
    log.
    """

    worker: WorkerLink
    code: int | None
    words: str
    log: str = ""


@dataclass(frozen=True)
class Arrived:
    """Base models or data files are on the node, or could not be brought there (`error`)."""

    node: NodeThreads
    items: tuple[str | File, ...]  # base model hashes, data files
    bytes: int
    error: str = ""


@dataclass(frozen=True)
class Fetched:
    """Results lie under `root`, a project folder of its own, to be verified; or could not be
    fetched (`error`). `found`: those of the jobs that no worker of this run has reported as done.
    """

    node: NodeThreads
    jobs: tuple[str, ...]
    root: Path
    bytes: int
    error: str = ""
    found: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Judged:
    """A result of a node was verified, and published where `refused` is empty, else why not.
    `found`: no worker of this run has reported it as done.
    """

    node: str
    job: str
    root: Path
    refused: str
    found: bool = False


@dataclass(frozen=True)
class Broken:
    """An error that is no node's fault (the head's disk is full): the run cannot go on."""

    error: Exception


Event = Listed | Joined | Left | Started | Said | Ended | Arrived | Fetched | Judged | Broken
Tell = Callable[[Event], None]
