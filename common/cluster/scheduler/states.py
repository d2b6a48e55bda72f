"""What a schedule is made of: jobs and their states, slots, nodes and the scheduler's orders."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

NodeState = Literal["open", "suspect", "closed"]


class JobState(str, Enum):
    """State of a job. A job whose node is suspect is READY again though its first copy still
    runs.
    """

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"


ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.BLOCKED})
LEFT = frozenset({JobState.WAITING, JobState.READY})  # without a working copy


@dataclass(frozen=True)
class Limits:
    """Limits of the scheduler; times in seconds."""

    suspect_after: float = 30.0
    close_after: float = 60.0
    max_retries: int = 2
    faults_in_a_row: int = 3
    # first delay of a node that is set aside; doubles each time, up to set_aside_most
    set_aside: float = 30.0
    set_aside_most: float = 1800.0
    no_node_limit: float = 600.0
    wait_for_all_bases: bool = False
    bytes_per_second: float = 50e6  # of a base model on its way to a node


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job as the caller registers it.

    id: unique. estimate: seconds at speed 1. kind: "base", "finetune" or any other word; jobs of
    one kind share a correction of their estimates, and `wait_for_all_bases` holds back every kind
    but "base". needs: id of the base job that must be done first, or None. base: name of the base
    model that must be on the node (default: `needs`). base_bytes: its size, for the time of the
    transfer.
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
    """One run of a job on a node. `row` is its row in the table of slots, -1 once the slot is free
    and only the result is on its way.
    """

    job: JobRecord
    node: NodeRecord
    row: int
    order: int
    share: float  # of its slot, see NodeRecord.shares


@dataclass(slots=True, eq=False)
class JobRecord:
    """All that is known of a job."""

    job: PlannedJob
    base: str | None
    order: int
    state: JobState = JobState.WAITING
    queued: bool = False
    copies: dict[str, Copy] = field(default_factory=dict)  # by node
    dependants: list[JobRecord] | None = None
    tail: float = 0.0  # the longest dependant's estimate
    tail_kind: str = ""
    lost: int = 0  # attempts that ended in a fault
    spares: int = 0  # copies started because a node was suspect
    avoid: set[NodeRecord] | None = None  # nodes on which an attempt was lost
    deaths: list[str] | None = None  # nodes on which it ran out of memory or its worker died
    cause: str = ""


@dataclass(slots=True, eq=False)
class NodeRecord:
    """All that is known of a node."""

    name: str
    state: NodeState = "closed"
    draining: bool = False
    heard: float = 0.0  # when something was heard last
    rows: dict[int, int] = field(default_factory=dict)  # slot number -> row of the table
    up: int = 0  # slots that are free or busy
    gpus: dict[int, str] = field(default_factory=dict)  # slot number -> its GPU
    retired: set[int] = field(default_factory=set)  # slots taken away: the GPU's memory is short
    copies: dict[str, Copy] = field(default_factory=dict)  # by job
    holds: set[str] = field(default_factory=set)  # base models checked there
    coming: set[str] = field(default_factory=set)  # base models being sent
    faults: int = 0  # in a row
    aside_until: float | None = None
    asides: int = 0
    deaths: set[str] = field(default_factory=set)  # jobs killed there since the last result
    speed: float = 1.0  # as estimated now
    # slot number -> its speed over the node's, where it is another: cores beside GPUs
    shares: dict[int, float] = field(default_factory=dict)
    prior: float = 1.0  # as given when it joined
    seen: float = 0.0  # observations of its speed
    log_sum: float = 0.0
    usable: bool = False  # may get jobs
    sound: bool = False  # may get jobs, has workers and is not on trial
