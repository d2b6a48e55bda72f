"""What a schedule is made of: jobs and their states, slots, nodes, orders, and what was learnt
about how long things take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class JobState(str, Enum):
    """Of a job, as DESIGN.md names them. A job whose node is suspect is READY again though its
    first copy still runs.
    """

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"


ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.BLOCKED})
LEFT = frozenset({JobState.WAITING, JobState.READY})  # no copy of it is known to be working


@dataclass(frozen=True)
class Limits:
    """Limits; times in seconds."""

    suspect_after: float = 30.0
    close_after: float = 60.0
    max_retries: int = 2
    faults_in_a_row: int = 3
    # first delay of a node that is set aside; doubles each time, up to set_aside_most
    set_aside: float = 30.0
    set_aside_most: float = 1800.0
    no_node_limit: float = 600.0
    wait_for_all_bases: bool = False
    bytes_per_second: float = 50e6  # of a node for which the runner gives none


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job.

    id: unique. estimate: seconds at speed 1. kind: "base", "finetune" or any other word; jobs of
    one kind share an estimate factor, and `wait_for_all_bases` holds back every kind but "base".
    needs: id of the base job that must be done first, or None. base: name of the base model that
    must be on the node (default: `needs`). base_bytes: its size, for the time of the transfer.
    """

    id: str
    estimate: float
    kind: str = "job"
    needs: str | None = None
    base: str | None = None
    base_bytes: int = 0


class SlotId(NamedTuple):
    """One place where one job runs at a time."""

    node: str
    number: int


class Assignment(NamedTuple):
    """Start `job` on `slot`; `fetch` is the base model that its node does not hold yet, or None."""

    job: str
    slot: SlotId
    fetch: str | None


class Cancellation(NamedTuple):
    """Stop this copy; report `slot_free` when the slot is idle again. `slot` is None when only its
    result was still on its way.
    """

    job: str
    node: str
    slot: SlotId | None


class Change(NamedTuple):
    """One entry of the event log. `what` is "job" (state: the value of a JobState) or "node"
    (state: open, suspect, closed, set aside, draining).
    """

    what: str
    name: str
    state: str
    cause: str


@dataclass(slots=True, eq=False)
class Copy:
    """One run of a job on a node; `row` is its slot, -1 once the slot is free and only the result
    is on its way.
    """

    job: JobRecord
    node: NodeRecord
    row: int
    order: int


@dataclass(slots=True, eq=False)
class JobRecord:
    job: PlannedJob
    base: str | None
    order: int
    state: JobState = JobState.WAITING
    queued: bool = False
    copies: dict[str, Copy] = field(default_factory=dict)
    dependants: list[JobRecord] | None = None
    tail: float = 0.0  # the longest dependant's estimate
    tail_kind: str = ""
    lost: int = 0  # attempts that ended in a fault
    spares: int = 0  # copies started because a node was suspect
    avoid: set[NodeRecord] | None = None
    deaths: list[str] | None = None
    cause: str = ""
    hold: tuple[float, float, int, float] | None = None  # see Placement._holds


@dataclass(slots=True, eq=False)
class NodeRecord:
    name: str
    state: str = "open"
    draining: bool = False
    heard: float = 0.0
    epoch: int = 0  # of its silence timer
    rows: dict[int, int] = field(default_factory=dict)
    up: int = 0  # slots free or busy
    gpus: dict[int, str] = field(default_factory=dict)
    retired: set[int] = field(default_factory=set)
    copies: dict[str, Copy] = field(default_factory=dict)
    holds: set[str] = field(default_factory=set)
    coming: set[str] = field(default_factory=set)
    recent: list[str] = field(default_factory=list)  # bases that came last
    faults: int = 0  # in a row
    aside_until: float | None = None
    asides: int = 0
    deaths: set[str] = field(default_factory=set)
    bytes_per_second: float = 1.0
    prior: float = 1.0
    speed: float = 1.0
    seen: float = 0.0  # observations
    log_sum: float = 0.0
    usable: bool = False
    able: bool = False


class Corrections:
    """Corrects estimates: a factor per kind of job (observed over estimated) and the scatter that
    is left around it.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float, float]] = {}
        self._squares = 4 * 0.3**2  # a prior worth four observations: 30 %
        self._count = 4

    def factor(self, kind: str) -> float:
        """Seconds at speed 1 for each estimated second; 1 before anything is seen, and held back by
        two jobs' worth of doubt.
        """
        seen = self._seen.get(kind)
        if seen is None:
            return 1.0
        count, observed, estimated = seen
        doubt = 2.0 * estimated / count
        return (observed + doubt) / (estimated + doubt)

    def observe(self, kind: str, estimate: float, seconds: float) -> float:
        """Record one job (seconds at speed 1) and return the logarithm of seconds over the estimate
        as it stood.
        """
        residual = math.log(seconds / (estimate * self.factor(kind)))
        count, observed, estimated = self._seen.get(kind, (0, 0.0, 0.0))
        self._seen[kind] = (count + 1, observed + seconds, estimated + estimate)
        self._squares += residual * residual
        self._count += 1
        return residual

    @property
    def scatter(self) -> float:
        """Variance of the logarithm of seconds over estimate."""
        return self._squares / self._count
