"""Which ready job is started where.

The job with the longest remaining chain goes first (a base counts with its longest fine-tune: the
upward rank of HEFT, Topcuoglu, Hariri and Wu, IEEE TPDS 13(3), 2002). It goes to the slot where it
is done first, transfer of its base included; where that slot is still busy, the job waits for it.
A free slot that is done with the whole chain before the cluster can be done with all work is taken
without comparing: waiting could gain nothing.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from common.cluster.scheduler.learning import Learning
from common.cluster.scheduler.slots import Floats, SlotTable
from common.cluster.scheduler.states import JobRecord, NodeRecord

_LOOK = 128  # jobs that may be passed over in a round before the rest is left for the next one
_MARGIN = 0.15  # waiting must gain this share of the job's time: estimates are not exact
# How much longer than expected a chain may take and still be done in time. Where a slot needs more
# than twice the time of the fastest, an error costs most: only one chain in a hundred may be late.
_SAFETY, _SLOW, _ONE_IN_A_HUNDRED = 1.25, 2.0, 2.3  # the last in standard deviations


class ReadyQueue:
    """Ready jobs, longest remaining chain first. A job that killed a worker comes after all others:
    it may do so again and set aside the node that they need.
    """

    def __init__(self, learning: Learning) -> None:
        self._learning = learning
        # one heap a kind: within a kind a correction does not change the order
        self._heaps: dict[str, list[tuple[float, int, JobRecord]]] = {}

    def put(self, record: JobRecord) -> None:
        """Queue a job; a second entry of one job is harmless."""
        record.queued = True
        length = 0.0 if record.deaths else record.job.estimate + record.tail
        heap = self._heaps.setdefault(record.job.kind, [])
        heapq.heappush(heap, (-length, record.order, record))

    def remove(self, record: JobRecord) -> None:
        """Take a job out; its entry is skipped when it comes up."""
        record.queued = False

    def longest(self) -> list[JobRecord]:
        """The first job of each kind."""
        for heap in self._heaps.values():
            while heap and not heap[0][2].queued:
                heapq.heappop(heap)
        return [heap[0][2] for heap in self._heaps.values() if heap]

    def pop(self) -> JobRecord | None:
        """Take out the job with the longest remaining chain."""
        record = max(self.longest(), key=self._chain, default=None)
        if record is not None:
            heapq.heappop(self._heaps[record.job.kind])
            record.queued = False
        return record

    def _chain(self, record: JobRecord) -> float:
        return 0.0 if record.deaths else self._learning.chain(record)


@dataclass(slots=True)
class Round:
    """One round of decisions.

    ready: when each slot is expected to be free, jobs that wait for it included. horizon: when all
    work could be done if it were divided evenly. sound: number of nodes that could take any job.
    """

    now: float
    sound: int
    ready: Floats
    horizon: float
    fastest: float  # speed of a slot
    passed: list[JobRecord] = field(default_factory=list)


class Placement:
    """Chooses jobs and slots."""

    def __init__(self, queue: ReadyQueue, slots: SlotTable, learning: Learning) -> None:
        self._queue, self._slots, self._learning = queue, slots, learning

    def begin(self, now: float, todo: dict[str, float], sound: int) -> Round:
        """Start a round. todo: estimated seconds of all jobs without a working copy, by kind."""
        ready = self._slots.expected_free(now)
        fastest = float(self._slots.speeds().max(initial=0.0))
        horizon = self._horizon(now, ready, todo, self._learning)
        return Round(now, sound, ready, horizon, fastest)

    def _horizon(
        self, now: float, ready: Floats, todo: dict[str, float], learning: Learning
    ) -> float:
        speeds = self._slots.speeds()
        speed = float(speeds.sum())
        work = sum(seconds * learning.factor(kind) for kind, seconds in todo.items())
        busy = float(ready @ speeds) - now * speed
        return now + (work + busy) / speed if speed > 0 else math.inf

    def next(self, this: Round) -> tuple[JobRecord, int] | None:
        """A job to start now and its row, or None at the end of the round."""
        while self._slots.free and len(this.passed) < _LOOK:
            record = self._queue.pop()
            if record is None:
                break
            row = self._choose(record, this)
            if row is not None:
                return record, row
            this.passed.append(record)
        for record in this.passed:
            self._queue.put(record)
        return None

    def _choose(self, record: JobRecord, this: Round) -> int | None:
        """The free slot on which to start the job, or None when it waits for a busy one or may run
        on no free one.
        """
        work = self._learning.work(record)
        seconds = self._slots.seconds(record, work)
        for host in self._barred(record, this.sound):
            seconds[list(host.rows.values())] = math.inf
        end = this.ready + seconds
        free = int((end + self._slots.not_free).argmin())
        if end[free] == math.inf or free not in self._slots.free:
            return None
        tail = self._learning.tail(record)
        slow = float(seconds[free]) * this.fastest > _SLOW * work
        safety = math.exp(_ONE_IN_A_HUNDRED * self._learning.doubt(record)) if slow else _SAFETY
        if this.now + safety * (float(seconds[free]) + tail) <= this.horizon:
            return free
        first = int(end.argmin())
        if end[first] >= end[free] - _MARGIN * seconds[free]:
            return free
        this.ready[first] = end[first]
        return None

    def _barred(self, record: JobRecord, sound: int) -> set[NodeRecord]:
        """Nodes with a copy of the job, and those where it was lost if another can take it."""
        barred = {copy.node for copy in record.copies.values()}
        if record.avoid and sound > sum(host.sound for host in record.avoid):
            barred |= record.avoid
        return barred

    def time_left(self, now: float, todo: dict[str, float], *, stopping: bool) -> float | None:
        """Expected seconds until all is done: the work over the slots' speed, or the longest chain
        if that is longer; None while no slot can work. stopping: until what runs now is done.
        """
        running = list(self._slots.running(now))
        learning = self._learning.including((record, so_far) for record, _, so_far in running)
        ready = self._slots.expected_free(now, self._slots.ends(learning.factor))
        if stopping:
            return max((float(ready[row]) - now for _, row, _ in running), default=0.0)
        horizon = self._horizon(now, ready, todo, learning)
        if horizon == math.inf:
            return None
        fastest = float(self._slots.speeds().max())
        ends = [float(ready[row]) + learning.tail(job) / fastest for job, row, _ in running]
        ends += [now + learning.chain(job) / fastest for job in self._queue.longest()]
        return max(horizon, *ends) - now if ends else horizon - now
