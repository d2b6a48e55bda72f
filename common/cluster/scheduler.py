"""Which job next, and where: the states of jobs, slots and nodes, without I/O, threads or a clock of its own.

The runner tells what happened (every call takes `now`, monotonic seconds) and asks `assign(now)` what to start, `cancellations()` what to stop and `changes()`
what to log. Call `assign` after events and at least once a second: silence, set-aside nodes and overdue jobs are judged there.

Policy. Ready jobs are taken longest remaining chain first (a base counts with its longest fine-tune: the upward rank of HEFT, Topcuoglu, Hariri and Wu, IEEE
TPDS 13(3), 2002). Each goes where it is done soonest, transfer of its base included; when that is a faster slot that is still busy, the job waits for it,
unless the slower slot is done before the run can end anyway. Estimates are corrected by what is observed: one factor per kind of job, one speed per node.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class State(str, Enum):
    """Of a job, as DESIGN.md names them. A job whose node is suspect is READY again though its first copy still runs."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"


ENDED = frozenset({State.DONE, State.FAILED, State.BLOCKED})
LEFT = frozenset({State.WAITING, State.READY})  # no copy of it is known to be working


@dataclass(frozen=True)
class Settings:
    """Limits; times in seconds."""

    suspect_after: float = 30.0
    close_after: float = 60.0
    max_retries: int = 2
    faults_in_a_row: int = 3
    set_aside: float = 30.0  # first delay of a node that is set aside; doubles each time, up to set_aside_most
    set_aside_most: float = 1800.0
    no_node_limit: float = 600.0
    wait_for_all_bases: bool = False
    bytes_per_second: float = 50e6  # of a node for which the runner gives none


@dataclass(frozen=True, slots=True)
class Job:
    """One job.

    id: unique. estimate: seconds at speed 1. kind: "base", "finetune" or any other word; jobs of one kind share an estimate factor, and `wait_for_all_bases`
    holds back every kind but "base". needs: id of the base job that must be done first, or None. base: name of the base model that must be on the node
    (default: `needs`). base_bytes: its size, for the time of the transfer.
    """

    id: str
    estimate: float
    kind: str = "job"
    needs: str | None = None
    base: str | None = None
    base_bytes: int = 0


class Slot(NamedTuple):
    """One place where one job runs at a time."""

    node: str
    number: int


class Assignment(NamedTuple):
    """Start `job` on `slot`; `fetch` is the base model that its node does not hold yet, or None."""

    job: str
    slot: Slot
    fetch: str | None


class Cancellation(NamedTuple):
    """Stop this copy; report `slot_free` when the slot is idle again. `slot` is None when only its result was still on its way."""

    job: str
    node: str
    slot: Slot | None


class Change(NamedTuple):
    """For the event log. `what` is "job" (state: a State's value) or "node" (state: open, suspect, closed, set aside, draining)."""

    what: str
    name: str
    state: str
    cause: str


@dataclass(slots=True, eq=False)
class _Copy:
    """One run of a job on a node; `row` is its slot, -1 once the slot is free and only the result is on its way."""

    job: _Record
    node: _Node
    row: int
    order: int


@dataclass(slots=True, eq=False)
class _Record:
    job: Job
    base: str | None
    order: int
    state: State = State.WAITING
    queued: bool = False
    copies: dict[str, _Copy] = field(default_factory=dict)
    dependants: list[_Record] | None = None
    tail: float = 0.0  # the longest dependant's estimate
    tail_kind: str = ""
    lost: int = 0  # attempts that ended in a fault
    spares: int = 0  # copies started because a node was suspect
    avoid: set[str] | None = None
    deaths: list[str] | None = None
    cause: str = ""
    hold: tuple[float, float, int, float] | None = None  # see _holds


@dataclass(slots=True, eq=False)
class _Node:
    name: str
    state: str = "open"
    draining: bool = False
    heard: float = 0.0
    epoch: int = 0  # of its silence timer
    rows: dict[int, int] = field(default_factory=dict)
    up: int = 0  # slots free or busy
    gpus: dict[int, str] = field(default_factory=dict)
    retired: set[int] = field(default_factory=set)
    copies: dict[str, _Copy] = field(default_factory=dict)
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


_FREE, _BUSY, _DOWN = 0, 1, 2
_RECENT = 8  # bases of a node that are looked at when a job there would save a transfer
_FEW = 4  # free slots that are looked at one by one instead of as arrays
_PATIENCE = 32  # jobs that may wait for a faster slot before the rest of the queue is left for the next call
_SKIP = 1000  # retried jobs that may be passed over because the free slots are where they were lost
_MARGIN = 0.15  # waiting for a busy slot must gain at least this share of the job's time on the free one
_SAFETY = 1.5  # a slow slot is taken without asking further when the job is done there by the horizon though it takes this much longer
_REVIEW = 0.1  # the decision to wait for a busy slot holds for this share of the job's time at most
_OVERDUE = 0.2  # a job past its estimate is taken to need this share of the time that it has run


class Estimates:
    """Corrects estimates: a factor per kind of job (observed over estimated) and the scatter that is left around it."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float, float]] = {}
        self._squares = 4 * 0.3**2  # a prior worth four observations: 30 %
        self._count = 4

    def factor(self, kind: str) -> float:
        """Seconds at speed 1 for each estimated second; 1 before anything is seen, and held back by two jobs' worth of doubt."""
        seen = self._seen.get(kind)
        if seen is None:
            return 1.0
        count, observed, estimated = seen
        doubt = 2.0 * estimated / count
        return (observed + doubt) / (estimated + doubt)

    def observe(self, kind: str, estimate: float, seconds: float) -> float:
        """Record one job (seconds at speed 1) and return the logarithm of seconds over the estimate as it stood."""
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


def _larger(old: Floats, size: int, fill: float) -> Floats:
    new = np.full(size, fill)
    new[: len(old)] = old
    return new


class Scheduler:
    """Jobs, nodes and slots. Unknown names raise KeyError, a job given twice or with an unknown base job ValueError: both are the caller's mistake."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.estimates = Estimates()
        self._jobs: dict[str, _Record] = {}
        self._nodes: dict[str, _Node] = {}
        self._heaps: dict[str, list[tuple[float, int, _Record]]] = {}
        self._by_base: dict[str, dict[str, _Record]] = {}  # ready jobs by the base they need
        self._users: dict[str, int] = {}  # jobs not ended, by base
        self._holders: dict[str, set[_Node]] = {}  # nodes that hold a base or are about to
        self._missing: dict[str, Floats] = {}  # per base and slot: seconds a byte takes to come, 0 where the node holds it
        self._counts: dict[str, dict[State, int]] = {}
        self._todo: dict[str, float] = {}  # estimated seconds without a working copy, by kind
        self._left = 0
        self._gated: list[_Record] = []
        self._open_bases = 0
        self._order = itertools.count()
        self._slots: list[Slot] = []
        self._owner: list[_Node] = []
        self._status: list[int] = []
        self._copy: list[_Copy | None] = []
        self._free: set[int] = set()
        none = np.empty(0)
        self._rate: Floats = none  # speed; 0 where nothing may start
        self._inverse: Floats = none  # seconds for each second of work; infinite where nothing may start
        self._inverse_free: Floats = none  # the same, free slots only
        self._seconds_per_byte: Floats = none
        self._start: Floats = none  # of the job there
        self._end: Floats = none  # expected
        self._grow(16)
        self._timers: list[tuple[float, int, str, _Node, float]] = []
        self._cancelled: list[Cancellation] = []
        self._changes: list[Change] = []
        self._able = 0
        self._idle = 0.0  # seconds without a node that can work
        self._idle_from: float | None = None
        self._stopping = False

    # ---- what the runner tells: jobs

    def add_jobs(self, now: float, jobs: Iterable[Job]) -> None:
        """Register jobs, in any order; a job may need one of the same call or of an earlier one. Raises ValueError."""
        self._clock(now)
        new = list(jobs)
        self._check(new)
        for job in new:
            self._enter(job)
        for job in new:
            self._link(self._jobs[job.id])
        for job in new:
            self._open(self._jobs[job.id])
        self._watch(now)

    def started(self, now: float, job: str, node: str) -> None:
        """The copy on `node` has begun to train (its base is there): its expected end counts from now."""
        copy = self._jobs[job].copies.get(node)
        if copy is not None and copy.row >= 0:
            self._start[copy.row] = now
            self._end[copy.row] = now + self._work(copy.job) / copy.node.speed

    def observe(self, job: str, node: str, seconds: float) -> None:
        """A whole training of `job` took `seconds` on `node`: mends the estimates of its kind and the node's speed.

        Leave it out for a job that was only fetched or that went on from a checkpoint. The speed is the posterior mean of its logarithm: the prior is the
        speed given to `add_node` (known to about 30 %), the noise is the scatter seen so far.
        """
        record, host = self._jobs[job], self._nodes[node]
        if seconds <= 0:
            return
        residual = self.estimates.observe(record.job.kind, record.job.estimate, seconds * host.speed)
        host.seen += 1
        host.log_sum += math.log(host.speed) - residual
        doubt = self.estimates.scatter / 0.3**2
        speed = math.exp((doubt * math.log(host.prior) + host.log_sum) / (doubt + host.seen))
        if abs(speed / host.speed - 1) > 0.01:
            host.speed = speed
            self._mark_all(host)

    def finished(self, now: float, job: str, node: str, verified: bool = True) -> bool:
        """The result of `job` from `node` is on the head. Returns True when it made the job done: the first verified result wins.

        Frees the slot if the copy still has one, cancels the other copies. An unverified result is the node's fault. A late result is ignored (False).
        """
        if not verified:
            self.node_fault(now, job, node, "its result was not what was sent")
            return False
        self._clock(now)
        record, host = self._jobs[job], self._nodes.get(node)
        if host is not None:
            self._praise(host)
        copy = record.copies.get(node)
        if copy is not None:
            self._drop(copy, _FREE)
        if record.state not in ENDED:
            for other in list(record.copies.values()):
                self._cancel(now, other)
            if host is not None:
                self._hold(host, job)
            self._finish(record, State.DONE, "")
            self._watch(now)
            return True
        self._watch(now)
        return False

    def job_error(self, now: float, job: str, node: str, cause: str) -> None:
        """The job itself raised an error: it fails at once. Frees the slot (the worker lives). Ignored for a copy that was cancelled."""
        copy = self._jobs[job].copies.get(node)
        if copy is not None:
            self._clock(now)
            self._drop(copy, _FREE)
            self._fail(now, copy.job, cause)
            self._watch(now)

    def node_fault(self, now: float, job: str | None, node: str, cause: str) -> None:
        """Connection lost, disk full, GPU gone, transfer failed: the node's fault; `job`, if one is given, is retried elsewhere.

        The slot is down until `slot_free` says that its worker is ready again.
        """
        self._clock(now)
        host = self._nodes[node]
        copy = self._jobs[job].copies.get(node) if job is not None else None
        if copy is not None:
            self._drop(copy, _DOWN)
            self._avoid(copy)
        self._fault(now, host, cause)
        if copy is not None:
            self._lose(now, copy.job, cause)
        self._watch(now)

    def job_killed(self, now: float, job: str, node: str, cause: str) -> None:
        """Out of memory, or its worker died: the node's fault once a second job dies there, the job's when it died on two nodes (twice where there is one).

        The slot is down until `slot_free`.
        """
        copy = self._jobs[job].copies.get(node)
        if copy is None:
            return
        self._clock(now)
        record, host = copy.job, copy.node
        self._drop(copy, _DOWN)
        self._avoid(copy)
        alone = self._able == host.able  # no other node could take it
        record.deaths = [*(record.deaths or []), node]
        host.deaths.add(job)
        if len(host.deaths) > 1:
            self._fault(now, host, cause)
        if len(set(record.deaths)) > 1 or (alone and len(record.deaths) > 1):
            self._fail(now, record, f"{cause} on {' and '.join(dict.fromkeys(record.deaths))}")
        else:
            self._lose(now, record, cause)
        self._watch(now)

    def out_of_gpu_memory(self, now: float, job: str, node: str, gpu: str) -> Slot | None:
        """As `job_killed`; also takes the slot away if its GPU has another, and returns it: end that worker. Later `slot_free` of it is ignored."""
        copy = self._jobs[job].copies.get(node)
        row = copy.row if copy is not None else -1
        self.job_killed(now, job, node, "out of GPU memory")
        if row < 0:
            return None
        slot, host = self._slots[row], self._nodes[node]
        mates = [index for index in host.rows if host.gpus.get(index) == gpu and index not in host.retired]
        if len(mates) < 2 or slot.number in host.retired:
            return None
        self._set_slot(row, _DOWN)
        host.retired.add(slot.number)
        self._watch(now)
        return slot

    def stop_starting(self) -> None:
        """The first Ctrl-C: what runs goes on, nothing new starts."""
        self._stopping = True

    # ---- what the runner tells: nodes and slots

    def add_node(self, now: float, name: str, speed: float = 1.0, bytes_per_second: float | None = None, holds: Iterable[str] = ()) -> None:
        """A node joins, comes back after it was closed, or is wanted again after draining. Its slots join one by one through `slot_free`.

        speed: relative to the machine that the estimates are for; taken when the node first joins, then mended by `observe`. holds: base models that were
        checked there. Its faults in a row are remembered.
        """
        self._clock(now)
        host = self._nodes.get(name)
        if host is None:
            host = self._nodes[name] = _Node(name, state="closed", prior=speed, speed=speed)
        host.bytes_per_second = bytes_per_second or self.settings.bytes_per_second
        host.draining = False
        if host.state == "closed":
            host.state, host.epoch = "open", host.epoch + 1
            self._timer(now + self.settings.suspect_after, "silence", host, host.epoch)
            self._note("node", name, "open", "")
        host.heard = now
        for base in holds:
            self._hold(host, base)
        self._refresh(host)
        self._watch(now)

    def drain_node(self, now: float, name: str) -> None:
        """Removed from the configuration: running jobs finish, nothing new starts; `jobs_on(name)` is empty when it may be closed."""
        self._clock(now)
        host = self._nodes[name]
        host.draining = True
        self._refresh(host)
        self._note("node", name, "draining", "removed from the configuration")
        self._watch(now)

    def close_node(self, now: float, name: str, cause: str) -> None:
        """The connection is certainly gone (or is being closed): its copies are lost, its slots are down. One fault, whatever ran there."""
        self._clock(now)
        self._close(now, self._nodes[name], cause)
        self._watch(now)

    def slot_free(self, now: float, slot: Slot, gpu: str | None = None) -> bool:
        """The worker of `slot` is ready: it has joined, come back, or is done with its job (whose result may still be on its way).

        Returns False for a slot that was taken away or whose node is closed: end that worker.
        """
        self._clock(now)
        host = self._nodes[slot.node]
        if host.state == "closed" or slot.number in host.retired:
            return False
        if gpu is not None:
            host.gpus[slot.number] = gpu
        row = host.rows.get(slot.number)
        if row is None:
            row = self._new_row(host, slot)
        copy = self._copy[row]
        if copy is not None:
            copy.row = -1
        self._set_slot(row, _FREE)
        self._watch(now)
        return True

    def slot_gone(self, now: float, slot: Slot) -> None:
        """The slot has no worker any more. What ran on it, if nobody said why it ended, is lost without a fault of the node."""
        self._clock(now)
        row = self._nodes[slot.node].rows.get(slot.number)
        if row is None:
            return
        copy = self._copy[row]
        self._set_slot(row, _DOWN)
        if copy is not None:
            self._drop(copy, _DOWN)
            self._lose(now, copy.job, "its worker is gone")
        self._watch(now)

    def heartbeat(self, now: float, node: str) -> None:
        """Something was heard from `node`. A suspect node keeps its jobs; copies started later elsewhere are cancelled."""
        host = self._nodes[node]
        host.heard = max(now, host.heard)
        if host.state != "suspect":
            return
        self._clock(now)
        host.state = "open"
        self._note("node", node, "open", "it speaks again")
        self._refresh(host)
        for copy in list(host.copies.values()):
            for other in list(copy.job.copies.values()):
                if other.order > copy.order:
                    self._cancel(now, other)
            self._settle(now, copy.job, "")
        self._watch(now)

    def base_arrived(self, node: str, base: str) -> None:
        """`node` holds this base model, checked. (A base job that is done is held by its node under the job's id without this.)"""
        self._hold(self._nodes[node], base)

    def base_lost(self, node: str, base: str) -> None:
        """The copy on `node` was wrong or is gone."""
        host = self._nodes[node]
        host.holds.discard(base)
        host.coming.discard(base)
        self._absent(host, base)

    def tick(self, now: float) -> None:
        """Judge silence and let set-aside nodes try again. `assign` does this too."""
        self._clock(now)
        while self._timers and self._timers[0][0] <= now:
            _, _, kind, host, token = heapq.heappop(self._timers)
            if kind == "aside":
                if host.aside_until == token:
                    host.aside_until = None
                    self._note("node", host.name, host.state, "tried again")
                    self._refresh(host)
            elif host.epoch == token and host.state != "closed":
                self._judge(now, host)
        self._watch(now)

    # ---- what the runner asks

    def assign(self, now: float) -> list[Assignment]:
        """Decide what starts now. Each returned job is running and its slot busy from here on."""
        self.tick(now)
        made: list[Assignment] = []
        passed: list[_Record] = []
        waiting = 0
        view: _View | None = None
        while self._free and not self._stopping and waiting < _PATIENCE and len(passed) < _SKIP:
            record = self._pop()
            if record is None:
                break
            view = view or self._view(now)
            row, patient = (None, True) if self._holds(record, view) else self._place(record, view)
            if row is None:
                waiting += patient
                passed.append(record)
                continue
            chosen = self._swap(record, row, view)
            if chosen is not record:
                self._queue(record)
            made.append(self._begin(now, chosen, row, view))
            view.fastest_free = None
        for record in passed:
            self._queue(record)
        self._watch(now)
        return made

    def cancellations(self) -> list[Cancellation]:
        """Copies to stop, since the last call."""
        taken, self._cancelled = self._cancelled, []
        return taken

    def changes(self) -> list[Change]:
        """What changed since the last call, for the event log."""
        taken, self._changes = self._changes, []
        return taken

    def state(self, job: str) -> State:
        """State of a job."""
        return self._jobs[job].state

    def cause(self, job: str) -> str:
        """Why a job failed or is blocked, or was lost last; empty if it was not."""
        return self._jobs[job].cause

    def node_state(self, node: str) -> str:
        """open, suspect, closed, set aside or draining."""
        host = self._nodes[node]
        if host.state != "open":
            return host.state
        if host.aside_until is not None:
            return "set aside"
        return "draining" if host.draining else "open"

    def speed(self, node: str) -> float:
        """Its speed as estimated now."""
        return self._nodes[node].speed

    def counts(self, kind: str | None = None) -> dict[State, int]:
        """Number of jobs in each state, of one kind or of all."""
        tables = [self._counts[kind]] if kind in self._counts else list(self._counts.values()) if kind is None else []
        return {state: sum(table[state] for table in tables) for state in State}

    def kinds(self) -> list[str]:
        """The kinds of job seen, in order of their arrival."""
        return list(self._counts)

    def jobs_on(self, node: str) -> list[str]:
        """Jobs with a copy on `node`, results on their way included."""
        return list(self._nodes[node].copies)

    def copies(self, job: str) -> list[str]:
        """Nodes with a copy of `job`."""
        return list(self._jobs[job].copies)

    def job_at(self, slot: Slot) -> str | None:
        """The job that occupies `slot`, or None."""
        row = self._nodes[slot.node].rows.get(slot.number)
        copy = self._copy[row] if row is not None else None
        return copy.job.job.id if copy is not None else None

    def left(self) -> list[str]:
        """Jobs that have not ended, for the list of what remains."""
        return [name for name, record in self._jobs.items() if record.state not in ENDED]

    @property
    def given_up(self) -> bool:
        """True when for `no_node_limit` seconds no node could work, though jobs are left."""
        return self._left > 0 and self._idle >= self.settings.no_node_limit

    @property
    def over(self) -> bool:
        """True when nothing more will come: all jobs ended, given up, or stopping and nothing runs."""
        return self._left == 0 or self.given_up or (self._stopping and not any(host.copies for host in self._nodes.values()))

    def next_deadline(self) -> float | None:
        """When silence or a set-aside node will next want a tick; None if never."""
        return self._timers[0][0] if self._timers else None

    def time_left(self, now: float) -> float | None:
        """Expected seconds until all is done; None while no slot can work. The work over the slots' speed, or the longest chain if that is longer."""
        view = self._view(now)
        if view.speed <= 0:
            return 0.0 if self._left == 0 else None
        fastest = float(self._rate[: len(self._slots)].max())
        chains = [view.horizon - now]
        for copy in self._copy:
            if copy is not None:
                chains.append(float(view.ready[copy.row]) - now + self._tail(copy.job) / fastest)
        for heap in self._heaps.values():
            self._clean(heap)
            if heap:
                chains.append(self._rank(heap[0][2]) / fastest)
        return max(chains) if self._left else 0.0

    # ---- jobs

    def _check(self, new: list[Job]) -> None:
        by_id = {job.id: job for job in new}
        if len(by_id) < len(new) or not self._jobs.keys().isdisjoint(by_id):
            twice = next(job.id for job in new if job.id in self._jobs or by_id[job.id] is not job)
            raise ValueError(f"job {twice} was given twice")
        for job in new:
            if not (job.estimate > 0 and math.isfinite(job.estimate)):
                raise ValueError(f"job {job.id} has the estimate {job.estimate}; seconds above 0 are needed")
            if job.needs is not None and job.needs not in by_id and job.needs not in self._jobs:
                raise ValueError(f"job {job.id} needs {job.needs}, which is not among the jobs")
            if job.needs in by_id and by_id[job.needs].needs in by_id:
                raise ValueError(f"job {job.id} needs {job.needs}, which needs a job itself; a base job needs none")

    def _enter(self, job: Job) -> None:
        record = self._jobs[job.id] = _Record(job, job.base or job.needs, next(self._order))
        counts = self._counts.setdefault(job.kind, dict.fromkeys(State, 0))
        counts[State.WAITING] += 1
        self._todo[job.kind] = self._todo.get(job.kind, 0.0) + job.estimate
        self._left += 1
        self._open_bases += job.kind == "base"
        if record.base is not None:
            self._users[record.base] = self._users.get(record.base, 0) + 1

    def _link(self, record: _Record) -> None:
        if record.job.needs is None:
            return
        parent = self._jobs[record.job.needs]
        parent.dependants = parent.dependants or []
        parent.dependants.append(record)
        if record.job.estimate > parent.tail:
            parent.tail, parent.tail_kind = record.job.estimate, record.job.kind
            if parent.queued:
                self._queue(parent)

    def _open(self, record: _Record) -> None:
        """Make a waiting job ready if its base is done and no barrier holds it back; blocked if its base failed."""
        if record.state is not State.WAITING:
            return
        parent = self._jobs[record.job.needs] if record.job.needs is not None else None
        if parent is not None and parent.state in (State.FAILED, State.BLOCKED):
            self._finish(record, State.BLOCKED, f"its base job {parent.job.id} {parent.state.value}")
        elif self.settings.wait_for_all_bases and record.job.kind != "base" and self._open_bases:
            self._gated.append(record)
        elif parent is None or parent.state is State.DONE:
            self._move(record, State.READY, "")
            self._queue(record)

    def _move(self, record: _Record, state: State, cause: str) -> None:
        old, kind = record.state, record.job.kind
        record.cause = cause or record.cause
        if old is state:
            return
        record.state = state
        counts = self._counts[kind]
        counts[old] -= 1
        counts[state] += 1
        self._todo[kind] += record.job.estimate * ((state in LEFT) - (old in LEFT))
        self._note("job", record.job.id, state.value, cause)

    def _finish(self, record: _Record, state: State, cause: str) -> None:
        """Done, failed or blocked: for good. Dependants are opened or blocked with it."""
        stack = [(record, state, cause)]
        while stack:
            one, state, cause = stack.pop()
            if one.state in ENDED:
                continue
            self._dequeue(one)
            self._move(one, state, cause)
            self._left -= 1
            self._open_bases -= one.job.kind == "base"
            if one.base is not None:
                self._users[one.base] -= 1
                if not self._users[one.base]:
                    self._missing.pop(one.base, None)
            dependants = sorted(one.dependants or [], key=lambda child: -child.job.estimate)
            if state is State.DONE:
                for child in dependants:
                    self._open(child)
            else:
                stack += [(child, State.BLOCKED, f"its base job {one.job.id} {state.value}") for child in dependants]
        if not self._open_bases and self._gated:
            gated, self._gated = self._gated, []
            for one in gated:
                self._open(one)

    def _fail(self, now: float, record: _Record, cause: str) -> None:
        for copy in list(record.copies.values()):
            self._cancel(now, copy)
        self._finish(record, State.FAILED, cause)

    def _lose(self, now: float, record: _Record, cause: str) -> None:
        record.lost += 1
        self._settle(now, record, cause)

    def _settle(self, now: float, record: _Record, cause: str) -> None:
        """Set the state that follows from a job's copies and lost attempts: running, ready (again), or failed."""
        if record.state in ENDED:
            return
        record.cause = cause or record.cause
        limit = self.settings.max_retries
        if any(copy.node.state == "open" for copy in record.copies.values()):
            again = False
        elif record.copies:  # on suspect nodes only
            again = record.lost <= limit and record.spares < limit
        elif record.lost > limit:
            self._fail(now, record, f"given up after {record.lost} attempts: {cause}")
            return
        else:
            again = True
        if again:
            self._move(record, State.READY, cause)
            self._queue(record)
        else:
            self._dequeue(record)
            self._move(record, State.RUNNING, cause)

    # ---- copies

    def _begin(self, now: float, record: _Record, row: int, view: _View) -> Assignment:
        host = self._owner[row]
        record.spares += bool(record.copies)
        copy = _Copy(record, host, row, next(self._order))
        record.copies[host.name] = host.copies[record.job.id] = copy
        self._dequeue(record)
        self._move(record, State.RUNNING, "")
        fetch = record.base if record.base is not None and record.base not in host.holds else None
        seconds = self._work(record) / host.speed
        if fetch is not None and fetch not in host.coming:
            seconds += record.job.base_bytes / host.bytes_per_second
            host.coming.add(fetch)
            self._present(host, fetch)
        self._set_slot(row, _BUSY, copy)
        self._start[row], self._end[row] = now, now + seconds
        view.ready[row] = now + seconds
        if host.faults:
            self._refresh(host)
        return Assignment(record.job.id, self._slots[row], fetch)

    def _drop(self, copy: _Copy, status: int) -> None:
        """Forget a copy; its slot, if it has one, becomes `status`."""
        del copy.job.copies[copy.node.name]
        del copy.node.copies[copy.job.job.id]
        if copy.row >= 0:
            self._set_slot(copy.row, status)
        if copy.node.faults:
            self._refresh(copy.node)

    def _cancel(self, now: float, copy: _Copy) -> None:
        """Its slot stays busy until the runner says that it is free."""
        row = copy.row
        slot = self._slots[row] if row >= 0 else None
        copy.row = -1
        self._drop(copy, _BUSY)
        if row >= 0:
            self._set_slot(row, _BUSY)
            self._start[row] = self._end[row] = now
        self._cancelled.append(Cancellation(copy.job.job.id, copy.node.name, slot))

    def _avoid(self, copy: _Copy) -> None:
        copy.job.avoid = (copy.job.avoid or set()) | {copy.node.name}

    # ---- nodes

    def _judge(self, now: float, host: _Node) -> None:
        """A silence timer rang."""
        silent = now - host.heard
        if silent >= self.settings.close_after:
            self._close(now, host, f"silent for {silent:.0f} s")
        elif silent >= self.settings.suspect_after:
            if host.state == "open":
                host.state = "suspect"
                self._note("node", host.name, "suspect", f"silent for {silent:.0f} s")
                self._refresh(host)
                for copy in list(host.copies.values()):
                    self._settle(now, copy.job, f"{host.name} is silent")
            self._timer(host.heard + self.settings.close_after, "silence", host, host.epoch)
        else:
            self._timer(host.heard + self.settings.suspect_after, "silence", host, host.epoch)

    def _close(self, now: float, host: _Node, cause: str) -> None:
        if host.state == "closed":
            return
        host.state = "closed"
        self._note("node", host.name, "closed", cause)
        copies = list(host.copies.values())
        for copy in copies:
            self._drop(copy, _DOWN)
            self._avoid(copy)
        for row in host.rows.values():
            self._set_slot(row, _DOWN)
        for base in host.coming:
            self._absent(host, base)
        host.coming.clear()
        if not host.draining:
            self._fault(now, host, cause)
        self._refresh(host)
        for copy in copies:
            self._lose(now, copy.job, cause)

    def _fault(self, now: float, host: _Node, cause: str) -> None:
        """Count a fault; the third in a row, and each one of the trials after it, sets the node aside for a growing time."""
        if host.aside_until is not None:
            return
        host.faults += 1
        if host.faults >= self.settings.faults_in_a_row:
            delay = min(self.settings.set_aside * 2.0**host.asides, self.settings.set_aside_most)
            host.asides += 1
            host.aside_until = now + delay
            self._timer(host.aside_until, "aside", host, host.aside_until)
            self._note("node", host.name, "set aside", f"{cause}; tried again in {delay:.0f} s")
        self._refresh(host)

    def _praise(self, host: _Node) -> None:
        """A verified result: the row of faults is broken."""
        if host.faults or host.deaths:
            host.faults, host.asides, host.aside_until = 0, 0, None
            host.deaths.clear()
            self._refresh(host)

    def _hold(self, host: _Node, base: str) -> None:
        host.coming.discard(base)
        if base in host.holds:
            return
        host.holds.add(base)
        host.recent = [base, *host.recent[: _RECENT - 1]]
        self._present(host, base)

    def _present(self, host: _Node, base: str) -> None:
        self._holders.setdefault(base, set()).add(host)
        missing = self._missing.get(base)
        if missing is not None:
            for row in host.rows.values():
                missing[row] = 0.0

    def _absent(self, host: _Node, base: str) -> None:
        if base not in host.holds:
            self._holders.get(base, set()).discard(host)
            self._missing.pop(base, None)

    def _refresh(self, host: _Node) -> None:
        """Recompute whether a node may get jobs. On trial after being set aside it gets one at a time."""
        healthy = host.faults < self.settings.faults_in_a_row
        works = host.state == "open" and not host.draining and host.aside_until is None
        usable = works and (healthy or not host.copies)
        able = works and healthy and host.up > 0
        self._able += able - host.able
        host.able = able
        if usable != host.usable:
            host.usable = usable
            self._mark_all(host)

    def _timer(self, when: float, kind: str, host: _Node, token: float) -> None:
        heapq.heappush(self._timers, (when, next(self._order), kind, host, token))

    def _note(self, what: str, name: str, state: str, cause: str) -> None:
        self._changes.append(Change(what, name, state, cause))

    def _clock(self, now: float) -> None:
        """Count the time during which no node could work."""
        if self._idle_from is not None:
            self._idle += max(0.0, now - self._idle_from)
            self._idle_from = now

    def _watch(self, now: float) -> None:
        """Start, pause or reset that count: reset by a sound node, paused while a node on trial runs a job."""
        if self._able or not self._left:
            self._idle, self._idle_from = 0.0, None
        elif any(host.state == "open" and host.copies for host in self._nodes.values()):
            self._idle_from = None
        elif self._idle_from is None:
            self._idle_from = now

    # ---- slots: one row each in parallel arrays

    def _grow(self, size: int) -> None:
        self._rate = _larger(self._rate, size, 0.0)
        self._inverse = _larger(self._inverse, size, math.inf)
        self._inverse_free = _larger(self._inverse_free, size, math.inf)
        self._seconds_per_byte = _larger(self._seconds_per_byte, size, 0.0)
        self._start = _larger(self._start, size, math.inf)
        self._end = _larger(self._end, size, -math.inf)
        self._missing.clear()

    def _new_row(self, host: _Node, slot: Slot) -> int:
        row = len(self._slots)
        if row == len(self._rate):
            self._grow(2 * row)
        self._slots.append(slot)
        self._owner.append(host)
        self._status.append(_DOWN)
        self._copy.append(None)
        host.rows[slot.number] = row
        self._missing.clear()
        return row

    def _set_slot(self, row: int, status: int, copy: _Copy | None = None) -> None:
        host, old = self._owner[row], self._status[row]
        self._status[row] = status
        self._copy[row] = copy
        if status != _BUSY:
            self._start[row], self._end[row] = math.inf, -math.inf
            if self._cancelled:  # an order to stop what has just stopped would hit the next job there
                self._cancelled = [each for each in self._cancelled if each.slot != self._slots[row]]
        self._mark(row)
        if (old == _DOWN) != (status == _DOWN):
            host.up += 1 if old == _DOWN else -1
            self._refresh(host)

    def _mark(self, row: int) -> None:
        host, status = self._owner[row], self._status[row]
        open_ = host.usable and status != _DOWN
        free = open_ and status == _FREE
        inverse = 1.0 / host.speed
        self._rate[row] = host.speed if open_ else 0.0
        self._seconds_per_byte[row] = 1.0 / host.bytes_per_second
        self._inverse[row] = inverse if open_ else math.inf
        self._inverse_free[row] = inverse if free else math.inf
        (self._free.add if free else self._free.discard)(row)

    def _mark_all(self, host: _Node) -> None:
        for row in host.rows.values():
            self._mark(row)

    # ---- the queue and the choice

    def _work(self, record: _Record) -> float:
        return record.job.estimate * self.estimates.factor(record.job.kind)

    def _tail(self, record: _Record) -> float:
        return record.tail * self.estimates.factor(record.tail_kind) if record.tail else 0.0

    def _rank(self, record: _Record) -> float:
        """Seconds of the remaining chain. A job that killed a worker comes after all others: it may do it again, and set aside the node that they need."""
        return 0.0 if record.deaths else self._work(record) + self._tail(record)

    def _queue(self, record: _Record) -> None:
        record.queued = True
        heap = self._heaps.setdefault(record.job.kind, [])
        heapq.heappush(heap, (0.0 if record.deaths else -(record.job.estimate + record.tail), record.order, record))
        if record.base is not None:
            self._by_base.setdefault(record.base, {})[record.job.id] = record

    def _dequeue(self, record: _Record) -> None:
        """Its entry in the heap is left behind and skipped when met."""
        record.queued = False
        if record.base is not None:
            mates = self._by_base.get(record.base)
            if mates is not None and mates.pop(record.job.id, None) is not None and not mates:
                del self._by_base[record.base]

    def _clean(self, heap: list[tuple[float, int, _Record]]) -> None:
        while heap and not heap[0][2].queued:
            heapq.heappop(heap)

    def _pop(self) -> _Record | None:
        """The ready job with the longest remaining chain, taken out of the queue."""
        best: list[tuple[float, int, _Record]] | None = None
        for heap in self._heaps.values():
            self._clean(heap)
            if heap and (best is None or self._rank(heap[0][2]) > self._rank(best[0][2])):
                best = heap
        if best is None:
            return None
        record = heapq.heappop(best)[2]
        record.queued = False
        return record

    def _view(self, now: float) -> _View:
        """When each slot is expected to be free, and a lower estimate of when all work can be done."""
        size = len(self._slots)
        end, start, rate = self._end[:size], self._start[:size], self._rate[:size]
        ready = now * (1.0 + _OVERDUE) - _OVERDUE * start
        np.maximum(ready, end, out=ready)
        np.maximum(ready, now, out=ready)
        speed = float(rate.sum())
        work = sum(todo * self.estimates.factor(kind) for kind, todo in self._todo.items())
        busy = float(np.dot(ready, rate)) - now * speed
        return _View(now, ready, speed, now + (work + busy) / speed if speed > 0 else math.inf)

    def _place(self, record: _Record, view: _View) -> tuple[int | None, bool]:
        """The free slot on which to start, or None: True with it when waiting for a busy slot is better, False when no free slot will do."""
        work = self._work(record)
        barred = self._barred(record)
        row, seconds = self._best_free(record, work, barred)
        if seconds == math.inf:
            return None, False
        end = view.now + seconds
        if view.now + _SAFETY * (seconds + self._tail(record)) <= view.horizon:
            return row, False
        on_busy = self._cost(record, work, self._inverse, barred) + view.ready
        better = int(on_busy.argmin())
        if float(on_busy[better]) < end - _MARGIN * seconds:
            until = min(float(view.ready[better]), view.now + _REVIEW * seconds)
            record.hold = (until, self._fastest_free(view), better, float(on_busy[better] - view.ready[better]))
            view.ready[better] = on_busy[better]  # spoken for, in this round
            return None, True
        return row, False

    def _holds(self, record: _Record, view: _View) -> bool:
        """True when an earlier decision to wait still stands; the slot waited for is spoken for again.

        It stands until its time, as long as no free slot is faster than those that were turned down then.
        """
        if record.hold is None:
            return False
        until, speed, row, seconds = record.hold
        if view.now >= until or self._rate[row] == 0.0 or self._fastest_free(view) > speed:
            record.hold = None
            return False
        view.ready[row] += seconds
        return True

    def _fastest_free(self, view: _View) -> float:
        if view.fastest_free is None:
            view.fastest_free = 1.0 / float(self._inverse_free[: len(self._slots)].min())
        return view.fastest_free

    def _best_free(self, record: _Record, work: float, barred: set[str]) -> tuple[int, float]:
        """The free slot that is done first, and its seconds (infinite if there is none); most often only one or two are free."""
        if len(self._free) > _FEW:
            cost = self._cost(record, work, self._inverse_free, barred)
            row = int(cost.argmin())
            return row, float(cost[row])
        best, least = -1, math.inf
        for row in sorted(self._free):
            host = self._owner[row]
            seconds = work / host.speed + self._transfer(record, host)
            if seconds < least and host.name not in barred:
                best, least = row, seconds
        return best, least

    def _transfer(self, record: _Record, host: _Node) -> float:
        base = record.base
        return 0.0 if base is None or base in host.holds or base in host.coming else record.job.base_bytes / host.bytes_per_second

    def _cost(self, record: _Record, work: float, inverse: Floats, barred: set[str]) -> Floats:
        """Seconds that the job would take on each slot, transfer included; infinite where it may not run."""
        size = len(self._slots)
        cost = work * inverse[:size]
        if record.base is not None and record.job.base_bytes:
            missing = self._missing.get(record.base)
            if missing is None:
                missing = self._missing[record.base] = self._seconds_per_byte[:size].copy()
                for host in self._holders.get(record.base, ()):
                    missing[list(host.rows.values())] = 0.0
            cost += record.job.base_bytes * missing
        for name in barred:
            cost[list(self._nodes[name].rows.values())] = math.inf
        return cost

    def _barred(self, record: _Record) -> set[str]:
        """Nodes that have a copy of the job, and those where it was lost if another can take it."""
        barred = set(record.copies)
        if record.avoid and self._able > sum(self._nodes[name].able for name in record.avoid):
            barred |= record.avoid
        return barred

    def _swap(self, record: _Record, row: int, view: _View) -> _Record:
        """Another ready job whose base is on this node, if `record` would wait for a transfer here and can as well start after it."""
        host = self._owner[row]
        if record.base is None or record.base in host.holds or not record.job.base_bytes:
            return record
        for base in host.recent:
            mate = next(iter(self._by_base.get(base, {}).values()), None)
            if mate is None or not mate.queued or mate.copies or mate.avoid:
                continue
            if view.now + (self._work(mate) + self._rank(record)) / host.speed <= view.horizon:
                return mate
        return record


@dataclass(slots=True)
class _View:
    """One round of decisions: when each slot is expected to be free (changed as slots are spoken for), the speed of all, the end of all work if it could be
    divided."""

    now: float
    ready: Floats
    speed: float
    horizon: float
    fastest_free: float | None = None
