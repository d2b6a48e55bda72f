"""Which job next, and where: the states of jobs, slots and nodes, without I/O, threads or a clock
of its own.

The runner tells what happened (every call takes `now`, monotonic seconds) and asks `assign(now)`
what to start, `cancellations()` what to stop and `changes()` what to log. Call `assign` after
events and at least once a second: silence and set-aside nodes are judged there.

Where a job is started is `placement.py`'s choice; this file keeps the books: it is the only one
that changes the state of a job, a node or a slot.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable

from common.cluster.scheduler.placement import BUSY, DOWN, FREE, Placement, View
from common.cluster.scheduler.states import (
    ENDED,
    LEFT,
    Assignment,
    Cancellation,
    Change,
    Copy,
    Corrections,
    JobRecord,
    JobState,
    Limits,
    NodeRecord,
    PlannedJob,
    SlotId,
)

__all__ = [
    "ENDED",
    "Assignment",
    "Cancellation",
    "Change",
    "JobState",
    "Limits",
    "PlannedJob",
    "Scheduler",
    "SlotId",
]

_RECENT = 8  # bases of a node that are looked at when a job there would save a transfer


class Scheduler:
    """Jobs, nodes and slots. Unknown names raise KeyError, a job given twice or with an unknown
    base job ValueError: both are the caller's mistake.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.corrections = Corrections()
        self._placement = Placement(self.corrections)
        self._jobs: dict[str, JobRecord] = {}
        self._nodes: dict[str, NodeRecord] = {}
        self._users: dict[str, int] = {}  # jobs not ended, by base
        self._counts: dict[str, dict[JobState, int]] = {}
        self._left = 0
        self._gated: list[JobRecord] = []
        self._open_bases = 0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, str, NodeRecord, float]] = []
        self._cancelled: list[Cancellation] = []
        self._changes: list[Change] = []
        self._idle = 0.0  # seconds without a node that can work
        self._idle_from: float | None = None
        self._stopping = False

    # ---- what the runner tells: jobs

    def add_jobs(self, now: float, jobs: Iterable[PlannedJob]) -> None:
        """Register jobs, in any order; a job may need one of the same call or of an earlier one.
        Raises ValueError.
        """
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
        """The copy on `node` has begun to train (its base is there): its expected end counts from
        now.
        """
        copy = self._jobs[job].copies.get(node)
        if copy is not None and copy.row >= 0:
            self._placement.expect(copy.row, now, self._placement.work(copy.job) / copy.node.speed)

    def observe(self, job: str, node: str, seconds: float) -> None:
        """A whole training of `job` took `seconds` on `node`: mends the estimates of its kind and
        the node's speed.

        Leave it out for a job that was only fetched or that went on from a checkpoint. The speed is
        the posterior mean of its logarithm: the prior is the speed given to `add_node` (known to
        about 30 %), the noise is the scatter seen so far.
        """
        record, host = self._jobs[job], self._nodes[node]
        if seconds <= 0:
            return
        residual = self.corrections.observe(
            record.job.kind, record.job.estimate, seconds * host.speed
        )
        host.seen += 1
        host.log_sum += math.log(host.speed) - residual
        doubt = self.corrections.scatter / 0.3**2
        speed = math.exp((doubt * math.log(host.prior) + host.log_sum) / (doubt + host.seen))
        if abs(speed / host.speed - 1) > 0.01:
            host.speed = speed
            self._placement.mark_node(host)

    def finished(self, now: float, job: str, node: str) -> bool:
        """The verified result of `job` from `node` is on the head. Returns True when it made the
        job done: the first one wins, a late one is ignored (False).

        All other copies are cancelled, and so is one that still has a slot of `node`: the result
        was found there, published by an earlier worker.
        """
        self._clock(now)
        record, host = self._jobs[job], self._nodes.get(node)
        if host is not None:
            self._praise(host)
        copy = record.copies.get(node)
        if copy is not None and copy.row >= 0:
            self._cancel(now, copy)
        elif copy is not None:
            self._drop(copy, FREE)
        if record.state not in ENDED:
            for other in list(record.copies.values()):
                self._cancel(now, other)
            if host is not None:
                self._hold(host, job)
            self._finish(record, JobState.DONE, "")
            self._watch(now)
            return True
        self._watch(now)
        return False

    def job_error(self, now: float, job: str, node: str, cause: str) -> None:
        """The job itself raised an error: it fails at once. Frees the slot (the worker lives).
        Ignored for a copy that was cancelled.
        """
        copy = self._jobs[job].copies.get(node)
        if copy is not None:
            self._clock(now)
            self._drop(copy, FREE)
            self._fail(now, copy.job, cause)
            self._watch(now)

    def node_fault(self, now: float, job: str | None, node: str, cause: str) -> None:
        """Connection lost, disk full, GPU gone, transfer failed: the node's fault; `job`, if one is
        given, is retried elsewhere.

        The slot is down until `slot_free` says that its worker is ready again.
        """
        self._clock(now)
        host = self._nodes[node]
        copy = self._jobs[job].copies.get(node) if job is not None else None
        if copy is not None:
            self._drop(copy, DOWN)
            self._avoid(copy)
        self._fault(now, host, cause)
        if copy is not None:
            self._lose(now, copy.job, cause)
        self._watch(now)

    def job_killed(self, now: float, job: str, node: str, cause: str) -> None:
        """Out of memory, or its worker died: the node's fault once a second job dies there, the
        job's when it died on two nodes (twice where there is one).

        The slot is down until `slot_free`.
        """
        copy = self._jobs[job].copies.get(node)
        if copy is None:
            return
        self._clock(now)
        record, host = copy.job, copy.node
        self._drop(copy, DOWN)
        self._avoid(copy)
        alone = self._placement.able == host.able  # no other node could take it
        record.deaths = [*(record.deaths or []), node]
        host.deaths.add(job)
        if len(host.deaths) > 1:
            self._fault(now, host, cause)
        if len(set(record.deaths)) > 1 or (alone and len(record.deaths) > 1):
            self._fail(now, record, f"{cause} on {' and '.join(dict.fromkeys(record.deaths))}")
        else:
            self._lose(now, record, cause)
        self._watch(now)

    def out_of_gpu_memory(self, now: float, job: str, node: str, gpu: str) -> SlotId | None:
        """As `job_killed`; also takes the slot away if its GPU has another, and returns it: end
        that worker. Later `slot_free` of it is ignored.
        """
        copy = self._jobs[job].copies.get(node)
        row = copy.row if copy is not None else -1
        self.job_killed(now, job, node, "out of GPU memory")
        if row < 0:
            return None
        slot, host = self._placement.slots[row], self._nodes[node]
        mates = [
            index
            for index in host.rows
            if host.gpus.get(index) == gpu and index not in host.retired
        ]
        if len(mates) < 2 or slot.number in host.retired:
            return None
        self._set_slot(row, DOWN)
        host.retired.add(slot.number)
        self._watch(now)
        return slot

    def stop_starting(self) -> None:
        """The first Ctrl-C: what runs goes on, nothing new starts."""
        self._stopping = True

    # ---- what the runner tells: nodes and slots

    def add_node(
        self,
        now: float,
        name: str,
        speed: float = 1.0,
        bytes_per_second: float | None = None,
        holds: Iterable[str] = (),
    ) -> None:
        """A node joins, comes back after it was closed, or is wanted again after draining. Its
        slots join one by one through `slot_free`.

        speed: relative to the machine that the estimates are for; taken when the node first joins,
        then mended by `observe`. holds: base models that were checked there. Its faults in a row
        are remembered.
        """
        self._clock(now)
        host = self._nodes.get(name)
        if host is None:
            host = self._nodes[name] = NodeRecord(name, state="closed", prior=speed, speed=speed)
        host.bytes_per_second = bytes_per_second or self.limits.bytes_per_second
        host.draining = False
        if host.state == "closed":
            host.state, host.epoch = "open", host.epoch + 1
            self._timer(now + self.limits.suspect_after, "silence", host, host.epoch)
            self._note("node", name, "open", "")
        host.heard = now
        for base in holds:
            self._hold(host, base)
        self._refresh(host)
        self._watch(now)

    def drain_node(self, now: float, name: str) -> None:
        """Removed from the configuration: running jobs finish, nothing new starts; `jobs_on(name)`
        is empty when it may be closed.
        """
        self._clock(now)
        host = self._nodes[name]
        host.draining = True
        self._refresh(host)
        self._note("node", name, "draining", "removed from the configuration")
        self._watch(now)

    def close_node(self, now: float, name: str, cause: str) -> None:
        """The connection is certainly gone (or is being closed): its copies are lost, its slots are
        down. One fault, whatever ran there.
        """
        self._clock(now)
        self._close(now, self._nodes[name], cause)
        self._watch(now)

    def slot_free(self, now: float, slot: SlotId, gpu: str | None = None) -> bool:
        """The worker of `slot` is ready: it has joined, come back, or is done with its job (whose
        result may still be on its way).

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
            row = self._placement.add_row(host, slot)
        copy = self._placement.copies[row]
        if copy is not None:
            copy.row = -1
        self._set_slot(row, FREE)
        self._watch(now)
        return True

    def slot_gone(self, now: float, slot: SlotId) -> None:
        """The slot has no worker any more. What ran on it, if nobody said why it ended, is lost
        without a fault of the node.
        """
        self._clock(now)
        row = self._nodes[slot.node].rows.get(slot.number)
        if row is None:
            return
        copy = self._placement.copies[row]
        self._set_slot(row, DOWN)
        if copy is not None:
            self._drop(copy, DOWN)
            self._lose(now, copy.job, "its worker is gone")
        self._watch(now)

    def heartbeat(self, now: float, node: str) -> None:
        """Something was heard from `node`. A suspect node keeps its jobs; copies started later
        elsewhere are cancelled.
        """
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
        """`node` holds this base model, checked. (A base job that is done is held by its node under
        the job's id without this.)
        """
        self._hold(self._nodes[node], base)

    def base_lost(self, node: str, base: str) -> None:
        """The copy on `node` was wrong or is gone."""
        host = self._nodes[node]
        host.holds.discard(base)
        host.coming.discard(base)
        self._placement.absent(host, base)

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
        if self._placement.free and not self._stopping:
            view = self._placement.view(now)
            while (choice := self._placement.next(view)) is not None:
                made.append(self._begin(now, *choice, view))
            self._placement.finish(view)
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

    def state(self, job: str) -> JobState:
        """JobState of a job."""
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

    def counts(self, kind: str | None = None) -> dict[JobState, int]:
        """Number of jobs in each state, of one kind or of all."""
        tables = (
            [self._counts[kind]]
            if kind in self._counts
            else list(self._counts.values())
            if kind is None
            else []
        )
        return {state: sum(table[state] for table in tables) for state in JobState}

    def kinds(self) -> list[str]:
        """The kinds of job seen, in order of their arrival."""
        return list(self._counts)

    def jobs_on(self, node: str) -> list[str]:
        """Jobs with a copy on `node`, results on their way included."""
        return list(self._nodes[node].copies)

    def copies(self, job: str) -> list[str]:
        """Nodes with a copy of `job`."""
        return list(self._jobs[job].copies)

    def job_at(self, slot: SlotId) -> str | None:
        """The job that occupies `slot`, or None."""
        row = self._nodes[slot.node].rows.get(slot.number)
        copy = self._placement.copies[row] if row is not None else None
        return copy.job.job.id if copy is not None else None

    def left(self) -> list[str]:
        """Jobs that have not ended, for the list of what remains."""
        return [name for name, record in self._jobs.items() if record.state not in ENDED]

    @property
    def given_up(self) -> bool:
        """True when for `no_node_limit` seconds no node could work, though jobs are left."""
        return self._left > 0 and self._idle >= self.limits.no_node_limit

    @property
    def over(self) -> bool:
        """True when nothing more will come: all jobs ended, given up, or stopping and nothing
        runs.
        """
        return (
            self._left == 0
            or self.given_up
            or (self._stopping and not any(host.copies for host in self._nodes.values()))
        )

    def time_left(self, now: float) -> float | None:
        """Expected seconds until all is done; None while no slot can work."""
        return self._placement.time_left(now) if self._left else 0.0

    # ---- jobs

    def _check(self, new: list[PlannedJob]) -> None:
        by_id = {job.id: job for job in new}
        if len(by_id) < len(new) or not self._jobs.keys().isdisjoint(by_id):
            twice = next(job.id for job in new if job.id in self._jobs or by_id[job.id] is not job)
            raise ValueError(f"job {twice} was given twice")
        for job in new:
            if not (job.estimate > 0 and math.isfinite(job.estimate)):
                raise ValueError(
                    f"job {job.id} has the estimate {job.estimate}; seconds above 0 are needed"
                )
            if job.needs is not None and job.needs not in by_id and job.needs not in self._jobs:
                raise ValueError(f"job {job.id} needs {job.needs}, which is not among the jobs")
            if job.needs in by_id and by_id[job.needs].needs in by_id:
                raise ValueError(
                    f"job {job.id} needs {job.needs}, which needs a job itself; a base job needs"
                    " none"
                )

    def _enter(self, job: PlannedJob) -> None:
        record = self._jobs[job.id] = JobRecord(job, job.base or job.needs, next(self._order))
        counts = self._counts.setdefault(job.kind, dict.fromkeys(JobState, 0))
        counts[JobState.WAITING] += 1
        self._placement.todo[job.kind] = self._placement.todo.get(job.kind, 0.0) + job.estimate
        self._left += 1
        self._open_bases += job.kind == "base"
        if record.base is not None:
            self._users[record.base] = self._users.get(record.base, 0) + 1

    def _link(self, record: JobRecord) -> None:
        if record.job.needs is None:
            return
        parent = self._jobs[record.job.needs]
        parent.dependants = parent.dependants or []
        parent.dependants.append(record)
        if record.job.estimate > parent.tail:
            parent.tail, parent.tail_kind = record.job.estimate, record.job.kind
            if parent.queued:
                self._placement.queue(parent)

    def _open(self, record: JobRecord) -> None:
        """Make a waiting job ready if its base is done and no barrier holds it back; blocked if its
        base failed.
        """
        if record.state is not JobState.WAITING:
            return
        parent = self._jobs[record.job.needs] if record.job.needs is not None else None
        if parent is not None and parent.state in (JobState.FAILED, JobState.BLOCKED):
            self._finish(
                record, JobState.BLOCKED, f"its base job {parent.job.id} {parent.state.value}"
            )
        elif self.limits.wait_for_all_bases and record.job.kind != "base" and self._open_bases:
            self._gated.append(record)
        elif parent is None or parent.state is JobState.DONE:
            self._move(record, JobState.READY, "")
            self._placement.queue(record)

    def _move(self, record: JobRecord, state: JobState, cause: str) -> None:
        old, kind = record.state, record.job.kind
        record.cause = cause or record.cause
        if old is state:
            return
        record.state = state
        counts = self._counts[kind]
        counts[old] -= 1
        counts[state] += 1
        self._placement.todo[kind] += record.job.estimate * ((state in LEFT) - (old in LEFT))
        self._note("job", record.job.id, state.value, cause)

    def _finish(self, record: JobRecord, state: JobState, cause: str) -> None:
        """Done, failed or blocked: for good. Dependants are opened or blocked with it."""
        stack = [(record, state, cause)]
        while stack:
            one, state, cause = stack.pop()
            if one.state in ENDED:
                continue
            self._placement.dequeue(one)
            self._move(one, state, cause)
            self._left -= 1
            self._open_bases -= one.job.kind == "base"
            if one.base is not None:
                self._users[one.base] -= 1
                if not self._users[one.base]:
                    self._placement.unused(one.base)
            dependants = sorted(one.dependants or [], key=lambda child: -child.job.estimate)
            if state is JobState.DONE:
                for child in dependants:
                    self._open(child)
            else:
                stack += [
                    (child, JobState.BLOCKED, f"its base job {one.job.id} {state.value}")
                    for child in dependants
                ]
        if not self._open_bases and self._gated:
            gated, self._gated = self._gated, []
            for one in gated:
                self._open(one)

    def _fail(self, now: float, record: JobRecord, cause: str) -> None:
        for copy in list(record.copies.values()):
            self._cancel(now, copy)
        self._finish(record, JobState.FAILED, cause)

    def _lose(self, now: float, record: JobRecord, cause: str) -> None:
        record.lost += 1
        self._settle(now, record, cause)

    def _settle(self, now: float, record: JobRecord, cause: str) -> None:
        """Set the state that follows from a job's copies and lost attempts: running, ready (again),
        or failed.
        """
        if record.state in ENDED:
            return
        record.cause = cause or record.cause
        limit = self.limits.max_retries
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
            self._move(record, JobState.READY, cause)
            self._placement.queue(record)
        else:
            self._placement.dequeue(record)
            self._move(record, JobState.RUNNING, cause)

    # ---- copies

    def _begin(self, now: float, record: JobRecord, row: int, view: View) -> Assignment:
        host = self._placement.owner[row]
        record.spares += bool(record.copies)
        copy = Copy(record, host, row, next(self._order))
        record.copies[host.name] = host.copies[record.job.id] = copy
        self._placement.dequeue(record)
        self._move(record, JobState.RUNNING, "")
        fetch = record.base if record.base is not None and record.base not in host.holds else None
        seconds = self._placement.work(record) / host.speed
        if fetch is not None and fetch not in host.coming:
            seconds += record.job.base_bytes / host.bytes_per_second
            host.coming.add(fetch)
            self._placement.present(host, fetch)
        self._set_slot(row, BUSY, copy)
        self._placement.expect(row, now, seconds)
        view.ready[row] = now + seconds
        view.fastest_free = None
        if host.faults:
            self._refresh(host)
        return Assignment(record.job.id, self._placement.slots[row], fetch)

    def _drop(self, copy: Copy, status: int) -> None:
        """Forget a copy; its slot, if it has one, becomes `status`."""
        del copy.job.copies[copy.node.name]
        del copy.node.copies[copy.job.job.id]
        if copy.row >= 0:
            self._set_slot(copy.row, status)
        if copy.node.faults:
            self._refresh(copy.node)

    def _cancel(self, now: float, copy: Copy) -> None:
        """Its slot stays busy until the runner says that it is free."""
        row = copy.row
        slot = self._placement.slots[row] if row >= 0 else None
        copy.row = -1
        self._drop(copy, BUSY)
        if row >= 0:
            self._set_slot(row, BUSY)
            self._placement.expect(row, now, 0.0)
        self._cancelled.append(Cancellation(copy.job.job.id, copy.node.name, slot))

    def _avoid(self, copy: Copy) -> None:
        copy.job.avoid = (copy.job.avoid or set()) | {copy.node}

    # ---- nodes

    def _judge(self, now: float, host: NodeRecord) -> None:
        """A silence timer rang."""
        silent = now - host.heard
        if silent >= self.limits.close_after:
            self._close(now, host, f"silent for {silent:.0f} s")
        elif silent >= self.limits.suspect_after:
            if host.state == "open":
                host.state = "suspect"
                self._note("node", host.name, "suspect", f"silent for {silent:.0f} s")
                self._refresh(host)
                for copy in list(host.copies.values()):
                    self._settle(now, copy.job, f"{host.name} is silent")
            self._timer(host.heard + self.limits.close_after, "silence", host, host.epoch)
        else:
            self._timer(host.heard + self.limits.suspect_after, "silence", host, host.epoch)

    def _close(self, now: float, host: NodeRecord, cause: str) -> None:
        if host.state == "closed":
            return
        host.state = "closed"
        self._note("node", host.name, "closed", cause)
        copies = list(host.copies.values())
        for copy in copies:
            self._drop(copy, DOWN)
            self._avoid(copy)
        for row in host.rows.values():
            self._set_slot(row, DOWN)
        for base in host.coming:
            self._placement.absent(host, base)
        host.coming.clear()
        if not host.draining:
            self._fault(now, host, cause)
        self._refresh(host)
        for copy in copies:
            self._lose(now, copy.job, cause)

    def _fault(self, now: float, host: NodeRecord, cause: str) -> None:
        """Count a fault; the third in a row, and each one of the trials after it, sets the node
        aside for a growing time.
        """
        if host.aside_until is not None:
            return
        host.faults += 1
        if host.faults >= self.limits.faults_in_a_row:
            delay = min(self.limits.set_aside * 2.0**host.asides, self.limits.set_aside_most)
            host.asides += 1
            host.aside_until = now + delay
            self._timer(host.aside_until, "aside", host, host.aside_until)
            self._note("node", host.name, "set aside", f"{cause}; tried again in {delay:.0f} s")
        self._refresh(host)

    def _praise(self, host: NodeRecord) -> None:
        """A verified result: the row of faults is broken."""
        if host.faults or host.deaths:
            host.faults, host.asides, host.aside_until = 0, 0, None
            host.deaths.clear()
            self._refresh(host)

    def _hold(self, host: NodeRecord, base: str) -> None:
        host.coming.discard(base)
        if base in host.holds:
            return
        host.holds.add(base)
        host.recent = [base, *host.recent[: _RECENT - 1]]
        self._placement.present(host, base)

    def _refresh(self, host: NodeRecord) -> None:
        """Recompute whether a node may get jobs. On trial after being set aside it gets one at a
        time.
        """
        healthy = host.faults < self.limits.faults_in_a_row
        works = host.state == "open" and not host.draining and host.aside_until is None
        usable = works and (healthy or not host.copies)
        able = works and healthy and host.up > 0
        self._placement.able += able - host.able
        host.able = able
        if usable != host.usable:
            host.usable = usable
            self._placement.mark_node(host)

    def _set_slot(self, row: int, status: int, copy: Copy | None = None) -> None:
        host = self._placement.owner[row]
        had = host.up
        self._placement.set_slot(row, status, copy)
        # an order to stop what has just stopped would hit the next job there
        if status != BUSY and self._cancelled:
            self._cancelled = [
                each for each in self._cancelled if each.slot != self._placement.slots[row]
            ]
        if (host.up > 0) != (had > 0):
            self._refresh(host)

    def _timer(self, when: float, kind: str, host: NodeRecord, token: float) -> None:
        heapq.heappush(self._timers, (when, next(self._order), kind, host, token))

    def _note(self, what: str, name: str, state: str, cause: str) -> None:
        self._changes.append(Change(what, name, state, cause))

    def _clock(self, now: float) -> None:
        """Count the time during which no node could work."""
        if self._idle_from is not None:
            self._idle += max(0.0, now - self._idle_from)
            self._idle_from = now

    def _watch(self, now: float) -> None:
        """Start, pause or reset that count: reset by a sound node, paused while a node on trial
        runs a job.
        """
        if self._placement.able or not self._left:
            self._idle, self._idle_from = 0.0, None
        elif any(host.state == "open" and host.copies for host in self._nodes.values()):
            self._idle_from = None
        elif self._idle_from is None:
            self._idle_from = now
