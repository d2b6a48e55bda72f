"""The scheduler: takes events of jobs, nodes and slots, decides which job starts next and where.

Every call takes `now`, monotonic seconds; there is no I/O, no thread and no clock here. Ask
`assign(now)` what to start, `cancellations()` what to stop and `changes()` what to log. Call
`assign` after events and at least once a second: silent nodes are noticed there.

`jobs.py`, `nodes.py`, `slots.py` and `copies.py` (one run of a job on a node each) keep the
records, `placement.py` chooses, `learning.py` corrects estimates; this class joins them.
"""

from __future__ import annotations

from collections.abc import Iterable

from common.cluster.scheduler.copies import Copies
from common.cluster.scheduler.jobs import Jobs
from common.cluster.scheduler.learning import Learning
from common.cluster.scheduler.nodes import Nodes
from common.cluster.scheduler.placement import Placement, ReadyQueue
from common.cluster.scheduler.slots import DOWN, FREE, SlotTable
from common.cluster.scheduler.states import (
    ENDED,
    Assignment,
    Cancellation,
    Change,
    JobState,
    Limits,
    NodeRecord,
    PlannedJob,
    SlotId,
)

_ALIKE = 1.5  # slots of a node whose measured speeds differ by less are taken as equal


class Scheduler:
    """Jobs, nodes and slots. Unknown names raise KeyError, a job given twice or with an unknown
    base job ValueError: both are the caller's mistake.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.learning = Learning()
        self._log: list[Change] = []
        self._slots = SlotTable(self.limits.bytes_per_second)
        self._nodes = Nodes(self.limits, self._slots, self._log)
        queue = ReadyQueue(self.learning)
        self._jobs = Jobs(self.limits, queue, self._log, self._slots.forget)
        self._placement = Placement(queue, self._slots, self.learning)
        self._copies = Copies(self.limits, self._jobs, self._nodes, self._slots, self.learning)
        self._stopping = self._slots_expected = False

    # ---- events of jobs

    def add_jobs(self, now: float, jobs: Iterable[PlannedJob]) -> None:
        """Register jobs, in any order; a job may need one of the same call or of an earlier one.
        Raises ValueError.
        """
        self._jobs.add(jobs)
        self.tick(now)

    def started(self, now: float, job: str, node: str) -> None:
        """The copy on `node` has begun to train (its base is there): its expected end counts from
        now.
        """
        copy = self._jobs[job].copies.get(node)
        if copy is not None and copy.row >= 0:
            self._slots.expect(copy.row, now, copy.job, self.learning.work(copy.job))

    def observe(self, job: str, node: str, seconds: float) -> None:
        """A whole training of `job` took `seconds` on `node`: corrects the estimates of its kind
        and the node's speed. Not for a job that was only fetched or resumed from a checkpoint.
        """
        record, host = self._jobs[job], self._nodes[node]
        copy = record.copies.get(node)
        seconds *= copy.share if copy is not None else 1.0
        if seconds <= 0:
            return
        if self.learning.observe(record, host, seconds, alone=self._nodes.single):
            self._slots.refresh(host)
        if self.learning.moved():
            self._slots.correct(self.learning.factor)

    def finished(self, now: float, job: str, node: str) -> bool:
        """The verified result of `job` from `node` is on the head. Returns True when this made the
        job done: the first result counts, a later one is ignored (False).

        All other copies are cancelled, and so is one that still occupies a slot of `node`: the
        result was found there, published by an earlier worker.
        """
        record, host = self._jobs[job], self._nodes.get(node)
        if host is not None:
            self._nodes.praise(host)
        copy = record.copies.get(node)
        if copy is not None and copy.row >= 0:
            self._copies.cancel(now, copy)
        elif copy is not None:
            self._copies.drop(copy, FREE)
        if record.state in ENDED:
            return False
        for other in list(record.copies.values()):
            self._copies.cancel(now, other)
        if host is not None:
            self._nodes.hold(host, job)
        self._jobs.finish(record, JobState.DONE, "")
        return True

    def job_error(self, now: float, job: str, node: str, cause: str) -> None:
        """The job itself raised an error: it fails at once. Frees the slot (the worker lives).
        Ignored for a copy that was cancelled.
        """
        copy = self._jobs[job].copies.get(node)
        if copy is not None:
            self._copies.drop(copy, FREE)
            self._copies.fail(now, copy.job, cause)

    def node_fault(self, now: float, job: str | None, node: str, cause: str) -> None:
        """Connection lost, disk full, GPU gone, transfer failed: the node's fault; `job`, if one is
        given, is retried elsewhere. The slot is down until `slot_free`.
        """
        copy = self._jobs[job].copies.get(node) if job is not None else None
        if copy is not None:
            self._copies.drop(copy, DOWN)
            self._copies.avoid(copy)
        self._nodes.fault(now, self._nodes[node], cause)
        if copy is not None:
            self._copies.lose(now, copy.job, cause)

    def job_killed(self, now: float, job: str, node: str, cause: str) -> None:
        """Out of memory, or its worker died: the node's fault once a second job dies there, the
        job's when it died on two nodes (twice where there is one). The slot is down until
        `slot_free`.
        """
        copy = self._jobs[job].copies.get(node)
        if copy is None:
            return
        record, host = copy.job, copy.node
        self._copies.drop(copy, DOWN)
        self._copies.avoid(copy)
        alone = self._nodes.sound == host.sound  # no other node could take it
        record.deaths = [*(record.deaths or []), node]
        host.deaths.add(job)
        if len(host.deaths) > 1:
            self._nodes.fault(now, host, cause)
        if len(set(record.deaths)) > 1 or (alone and len(record.deaths) > 1):
            self._copies.fail(
                now, record, f"{cause} on {' and '.join(dict.fromkeys(record.deaths))}"
            )
        else:
            self._copies.lose(now, record, cause)

    def out_of_gpu_memory(self, now: float, job: str, node: str, gpu: str) -> SlotId | None:
        """As `job_killed`; also takes the slot away if its GPU has another, and returns it: end
        that worker. Later `slot_free` of it is ignored.
        """
        copy = self._jobs[job].copies.get(node)
        row = copy.row if copy is not None else -1
        self.job_killed(now, job, node, "out of GPU memory")
        return self._slots.ids[row] if row >= 0 and self._nodes.shrink(row, gpu) else None

    def stop_starting(self) -> None:
        """The first Ctrl-C: running jobs go on, nothing new starts."""
        self._stopping = True

    # ---- events of nodes and slots

    def add_node(
        self, now: float, name: str, speed: float = 1.0, holds: Iterable[str] = ()
    ) -> None:
        """A node joins, comes back after it was closed, or is wanted again after draining. Its
        slots join one by one through `slot_free`. Its earlier faults in a row still count.

        speed: relative to the machine that the estimates are for; used when the node first joins,
        then corrected by `observe`. holds: base models that were checked there.
        """
        host = self._nodes.get(name) or NodeRecord(name, speed=speed, prior=speed)
        self._nodes.join(now, host)
        for base in holds:
            self._nodes.hold(host, base)
        self.tick(now)

    def drain_node(self, now: float, name: str) -> None:
        """Removed from the configuration: running jobs finish, nothing new starts; close it when
        `jobs_on(name)` is empty.
        """
        self._nodes.drain(self._nodes[name])
        self.tick(now)

    def close_node(self, now: float, name: str, cause: str) -> None:
        """The connection is certainly gone (or is being closed): its copies are lost, its slots are
        down. One fault, whatever ran there.
        """
        self._copies.close(now, self._nodes[name], cause)
        self.tick(now)

    def slot_free(
        self, now: float, slot: SlotId, gpu: str | None = None, share: float | None = None
    ) -> bool:
        """The worker of `slot` is ready: it has joined, come back, or is done with its job (whose
        result may still be on its way). share: its speed over that of the node, where it was
        measured; the same but for large differences, which measurements alone do not make.

        Returns False for a slot that was taken away or whose node is closed: end that worker.
        """
        host = self._nodes[slot.node]
        if host.state == "closed" or slot.number in host.retired:
            return False
        if gpu is not None:
            host.gpus[slot.number] = gpu
        if share is not None:
            host.shares[slot.number] = 1.0 if 1 / _ALIKE < share < _ALIKE else share
        row = host.rows.get(slot.number)
        if row is None:
            row = self._slots.add(host, slot.number)
        copy = self._slots.copies[row]
        if copy is not None:
            copy.row = -1
        self._copies.set_slot(row, FREE)
        return True

    def slot_gone(self, now: float, slot: SlotId) -> None:
        """The slot has no worker any more. A job on it whose end was not reported is lost without a
        fault of the node.
        """
        row = self._nodes[slot.node].rows.get(slot.number)
        if row is None:
            return
        copy = self._slots.copies[row]
        self._copies.set_slot(row, DOWN)
        if copy is not None:
            self._copies.drop(copy, DOWN)
            self._copies.lose(now, copy.job, "its worker is gone")

    def heartbeat(self, now: float, node: str) -> None:
        """Something was heard from `node`. A suspect node keeps its jobs; copies started later
        elsewhere are cancelled.
        """
        host = self._nodes[node]
        if not self._nodes.heard(now, host):
            return
        for copy in list(host.copies.values()):
            for other in list(copy.job.copies.values()):
                if other.order > copy.order:
                    self._copies.cancel(now, other)
            self._copies.settle(now, copy.job, "")

    def base_arrived(self, node: str, base: str) -> None:
        """`node` holds this base model, checked. (The node that trained it holds it without this
        call, under the id of the base job.)
        """
        self._nodes.hold(self._nodes[node], base)

    def base_lost(self, node: str, base: str) -> None:
        """The copy on `node` was wrong or is gone."""
        self._nodes.lose_base(self._nodes[node], base)

    def expect_slots(self, expected: bool) -> None:
        """Slots will come for sure (another project fills them now): do not give up before."""
        self._slots_expected = expected

    def tick(self, now: float) -> None:
        """Notice silent nodes and end delays. `assign` does this too."""
        suspects, silent = self._nodes.expire(now)
        for host in suspects:
            for copy in list(host.copies.values()):
                self._copies.settle(now, copy.job, f"{host.name} is silent")
        for host in silent:
            self._copies.close(now, host, f"silent for {now - host.heard:.0f} s")
        self._nodes.count_idle(now, self._jobs.left > 0 and not self._slots_expected)

    # ---- questions

    def assign(self, now: float) -> list[Assignment]:
        """Decide what starts now. Each returned job is running and its slot busy from here on."""
        self.tick(now)
        made: list[Assignment] = []
        if self._slots.free and not self._stopping:
            this = self._placement.begin(now, self._jobs.todo, self._nodes.sound)
            while (choice := self._placement.next(this)) is not None:
                made.append(self._copies.begin(now, *choice, this))
        return made

    def cancellations(self) -> list[Cancellation]:
        """Copies to stop, since the last call."""
        return self._copies.cancellations()

    def changes(self) -> list[Change]:
        """What changed since the last call, for the event log."""
        taken = list(self._log)
        self._log.clear()
        return taken

    def state(self, job: str) -> JobState:
        return self._jobs[job].state

    def cause(self, job: str) -> str:
        """Why a job failed, is blocked or was lost last; else empty."""
        return self._jobs[job].cause

    def node_state(self, node: str) -> str:
        """open, suspect, closed, set aside or draining."""
        return self._nodes.state(self._nodes[node])

    def speed(self, node: str) -> float:
        """Its speed as estimated now."""
        return self._nodes[node].speed

    def counts(self, kind: str | None = None) -> dict[JobState, int]:
        return self._jobs.counts(kind)

    def kinds(self) -> list[str]:
        """The kinds of job seen, in order of their arrival."""
        return self._jobs.kinds()

    def jobs_on(self, node: str) -> list[str]:
        """Jobs with a copy on `node`, results on their way included."""
        return list(self._nodes[node].copies)

    def copies(self, job: str) -> list[str]:
        """Nodes with a copy of `job`."""
        return list(self._jobs[job].copies)

    def job_at(self, slot: SlotId) -> str | None:
        row = self._nodes[slot.node].rows.get(slot.number)
        copy = self._slots.copies[row] if row is not None else None
        return copy.job.job.id if copy is not None else None

    def left(self) -> list[str]:
        """Jobs that have not ended."""
        return self._jobs.unended()

    @property
    def given_up(self) -> bool:
        """True when for `no_node_limit` seconds no node could work, though jobs are left."""
        return self._jobs.left > 0 and self._nodes.given_up

    @property
    def over(self) -> bool:
        """True when nothing more will come: all jobs ended, given up, or stopping and nothing
        runs.
        """
        if self._jobs.left == 0 or self.given_up:
            return True
        return self._stopping and not any(host.copies for host in self._nodes.all())

    def time_left(self, now: float) -> float | None:
        """Expected seconds until all is done, after `stop_starting` until what runs is done; None
        while no slot can work.
        """
        if not self._jobs.left:
            return 0.0
        return self._placement.time_left(now, self._jobs.todo, stopping=self._stopping)
