"""Where a ready job is started: the table of slots, the queue of ready jobs, and the choice between
them.

Ready jobs are taken longest remaining chain first (a base counts with its longest fine-tune: the
upward rank of HEFT, Topcuoglu, Hariri and Wu, IEEE TPDS 13(3), 2002). Each goes where it is done
soonest, transfer of its base included; when that is a faster slot that is still busy, the job waits
for it, unless the slower slot is done before the run can end anyway. No decision scans the jobs; it
looks at the slots as arrays, one row each.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from common.cluster.scheduler.states import Copy, Corrections, JobRecord, NodeRecord, SlotId

Floats = npt.NDArray[np.float64]

FREE, BUSY, DOWN = 0, 1, 2  # of a slot
# jobs that may wait for a faster slot before the rest of the queue is left for the next round
PATIENCE = 32
# retried jobs that may be passed over in a round because the free slots are where they were lost
SKIP = 1000
_FEW = 4  # free slots that are looked at one by one instead of as arrays
# waiting for a busy slot must gain at least this share of the job's time on the free one
_MARGIN = 0.15
# a slow slot is taken without asking further when the job is done there by the horizon though it
# takes this much longer
_SAFETY = 1.5
_REVIEW = 0.1  # the decision to wait for a busy slot holds for this share of the job's time at most
_OVERDUE = 0.2  # a job past its estimate is taken to need this share of the time that it has run


@dataclass(slots=True)
class View:
    """One round of decisions: when each slot is expected to be free (changed as slots are spoken
    for), the speed of all, and the horizon, when all work would be done if it could be divided.
    """

    now: float
    ready: Floats
    speed: float
    horizon: float
    fastest_free: float | None = None
    passed: list[JobRecord] = field(default_factory=list)
    waiting: int = 0


def _larger(old: Floats, size: int, fill: float) -> Floats:
    new = np.full(size, fill)
    new[: len(old)] = old
    return new


class Placement:
    """Slots (`rows` of nodes point into its arrays) and ready jobs.

    able: number of sound nodes. todo: estimated seconds of the jobs without a working copy, by
    kind. The scheduler keeps both.
    """

    def __init__(self, corrections: Corrections) -> None:
        self.corrections = corrections
        self.able = 0
        self.todo: dict[str, float] = {}
        self.slots: list[SlotId] = []
        self.owner: list[NodeRecord] = []
        self.copies: list[Copy | None] = []
        self.free: set[int] = set()
        self._status: list[int] = []
        self._heaps: dict[str, list[tuple[float, int, JobRecord]]] = {}
        self._by_base: dict[str, dict[str, JobRecord]] = {}  # ready jobs by the base they need
        self._holders: dict[str, set[NodeRecord]] = {}  # nodes that hold a base or are about to
        # per base and slot: seconds a byte takes to come, 0 where the node holds it
        self._missing: dict[str, Floats] = {}
        none = np.empty(0)
        self.rate: Floats = none  # speed; 0 where nothing may start
        self.start: Floats = none  # of the job there
        self.end: Floats = none  # expected
        # seconds for each second of work; infinite where nothing may start
        self._inverse: Floats = none
        self._inverse_free: Floats = none  # the same, free slots only
        self._seconds_per_byte: Floats = none
        self._grow(16)

    def _grow(self, size: int) -> None:
        self.rate = _larger(self.rate, size, 0.0)
        self._inverse = _larger(self._inverse, size, math.inf)
        self._inverse_free = _larger(self._inverse_free, size, math.inf)
        self._seconds_per_byte = _larger(self._seconds_per_byte, size, 0.0)
        self.start = _larger(self.start, size, math.inf)
        self.end = _larger(self.end, size, -math.inf)
        self._missing.clear()

    def add_row(self, host: NodeRecord, slot: SlotId) -> int:
        """A new slot, down."""
        row = len(self.slots)
        if row == len(self.rate):
            self._grow(2 * row)
        self.slots.append(slot)
        self.owner.append(host)
        self._status.append(DOWN)
        self.copies.append(None)
        host.rows[slot.number] = row
        self._missing.clear()
        return row

    def set_slot(self, row: int, status: int, copy: Copy | None = None) -> None:
        """FREE, BUSY (with `copy`, or with a cancelled one that has not ended) or DOWN."""
        host, old = self.owner[row], self._status[row]
        self._status[row] = status
        self.copies[row] = copy
        if status != BUSY:
            self.start[row], self.end[row] = math.inf, -math.inf
        self._mark(row)
        host.up += (status != DOWN) - (old != DOWN)

    def expect(self, row: int, now: float, seconds: float) -> None:
        """The job of a busy slot is expected to take so long from now."""
        self.start[row], self.end[row] = now, now + seconds

    def _mark(self, row: int) -> None:
        host, status = self.owner[row], self._status[row]
        open_ = host.usable and status != DOWN
        free = open_ and status == FREE
        inverse = 1.0 / host.speed
        self.rate[row] = host.speed if open_ else 0.0
        self._seconds_per_byte[row] = 1.0 / host.bytes_per_second
        self._inverse[row] = inverse if open_ else math.inf
        self._inverse_free[row] = inverse if free else math.inf
        (self.free.add if free else self.free.discard)(row)

    def mark_node(self, host: NodeRecord) -> None:
        """The node's speed changed, or whether it may get jobs."""
        for row in host.rows.values():
            self._mark(row)

    def present(self, host: NodeRecord, base: str) -> None:
        """The node holds the base, or it is coming."""
        self._holders.setdefault(base, set()).add(host)
        missing = self._missing.get(base)
        if missing is not None:
            for row in host.rows.values():
                missing[row] = 0.0

    def unused(self, base: str) -> None:
        """No job needs the base any more."""
        self._missing.pop(base, None)

    def absent(self, host: NodeRecord, base: str) -> None:
        """The node no longer holds the base, nor is it coming."""
        if base not in host.holds:
            self._holders.get(base, set()).discard(host)
            self._missing.pop(base, None)

    def work(self, record: JobRecord) -> float:
        """Seconds at speed 1, as corrected by what was seen."""
        return record.job.estimate * self.corrections.factor(record.job.kind)

    def tail(self, record: JobRecord) -> float:
        """The same of its longest dependant."""
        return record.tail * self.corrections.factor(record.tail_kind) if record.tail else 0.0

    def rank(self, record: JobRecord) -> float:
        """Seconds of the remaining chain. A job that killed a worker comes after all others: it may
        do it again, and set aside the node that they need.
        """
        return 0.0 if record.deaths else self.work(record) + self.tail(record)

    def queue(self, record: JobRecord) -> None:
        """It is ready; a second entry of a record that is queued already does no harm."""
        record.queued = True
        heap = self._heaps.setdefault(record.job.kind, [])
        heapq.heappush(
            heap,
            (0.0 if record.deaths else -(record.job.estimate + record.tail), record.order, record),
        )
        if record.base is not None:
            self._by_base.setdefault(record.base, {})[record.job.id] = record

    def dequeue(self, record: JobRecord) -> None:
        """Its entry in the heap is left behind and skipped when met."""
        record.queued = False
        if record.base is not None:
            mates = self._by_base.get(record.base)
            if mates is not None and mates.pop(record.job.id, None) is not None and not mates:
                del self._by_base[record.base]

    def _clean(self, heap: list[tuple[float, int, JobRecord]]) -> None:
        while heap and not heap[0][2].queued:
            heapq.heappop(heap)

    def _pop(self) -> JobRecord | None:
        """The ready job with the longest remaining chain, taken out of the queue."""
        best: list[tuple[float, int, JobRecord]] | None = None
        for heap in self._heaps.values():
            self._clean(heap)
            if heap and (best is None or self.rank(heap[0][2]) > self.rank(best[0][2])):
                best = heap
        if best is None:
            return None
        record = heapq.heappop(best)[2]
        record.queued = False
        return record

    def view(self, now: float) -> View:
        """When each slot is expected to be free, and a lower estimate of when all work can be
        done.
        """
        size = len(self.slots)
        end, start, rate = self.end[:size], self.start[:size], self.rate[:size]
        ready = now * (1.0 + _OVERDUE) - _OVERDUE * start
        np.maximum(ready, end, out=ready)
        np.maximum(ready, now, out=ready)
        speed = float(rate.sum())
        work = sum(todo * self.corrections.factor(kind) for kind, todo in self.todo.items())
        busy = float(np.dot(ready, rate)) - now * speed
        return View(now, ready, speed, now + (work + busy) / speed if speed > 0 else math.inf)

    def next(self, view: View) -> tuple[JobRecord, int] | None:
        """What to start in this round, and in which row; None when the rest stays in the queue.
        Call `finish` after the round.
        """
        while self.free and view.waiting < PATIENCE and len(view.passed) < SKIP:
            record = self._pop()
            if record is None:
                return None
            row, waits = (None, True) if self._holds(record, view) else self._place(record, view)
            if row is None:
                view.waiting += waits
                view.passed.append(record)
                continue
            chosen = self._swap(record, row, view)
            if chosen is not record:
                self.queue(record)
            return chosen, row
        return None

    def finish(self, view: View) -> None:
        """Put back what was passed over."""
        for record in view.passed:
            self.queue(record)

    def time_left(self, now: float) -> float | None:
        """Expected seconds until all is done: the work over the slots' speed, or the longest chain
        if that is longer; None while no slot can work.
        """
        view = self.view(now)
        if view.speed <= 0:
            return None
        fastest = float(self.rate[: len(self.slots)].max())
        chains = [view.horizon - now]
        chains += [
            float(view.ready[copy.row]) - now + self.tail(copy.job) / fastest
            for copy in self.copies
            if copy is not None
        ]
        for heap in self._heaps.values():
            self._clean(heap)
            chains += [self.rank(heap[0][2]) / fastest] if heap else []
        return max(chains)

    def _place(self, record: JobRecord, view: View) -> tuple[int | None, bool]:
        """The free slot on which to start, or None: True with it when waiting for a busy slot is
        better, False when no free slot will do.
        """
        work = self.work(record)
        barred = self._barred(record)
        row, seconds = self._best_free(record, work, barred)
        if seconds == math.inf:
            return None, False
        end = view.now + seconds
        if view.now + _SAFETY * (seconds + self.tail(record)) <= view.horizon:
            return row, False
        on_busy = self._cost(record, work, self._inverse, barred) + view.ready
        better = int(on_busy.argmin())
        if float(on_busy[better]) < end - _MARGIN * seconds:
            until = min(float(view.ready[better]), view.now + _REVIEW * seconds)
            record.hold = (
                until,
                self._fastest_free(view),
                better,
                float(on_busy[better] - view.ready[better]),
            )
            view.ready[better] = on_busy[better]  # spoken for, in this round
            return None, True
        return row, False

    def _holds(self, record: JobRecord, view: View) -> bool:
        """True when an earlier decision to wait still stands; the slot waited for is spoken for
        again.

        It stands until its time, as long as no free slot is faster than those that were turned down
        then.
        """
        if record.hold is None:
            return False
        until, speed, row, seconds = record.hold
        if view.now >= until or self.rate[row] == 0.0 or self._fastest_free(view) > speed:
            record.hold = None
            return False
        view.ready[row] += seconds
        return True

    def _fastest_free(self, view: View) -> float:
        if view.fastest_free is None:
            view.fastest_free = 1.0 / float(self._inverse_free[: len(self.slots)].min())
        return view.fastest_free

    def _best_free(
        self, record: JobRecord, work: float, barred: set[NodeRecord]
    ) -> tuple[int, float]:
        """The free slot that is done first, and its seconds (infinite if there is none); most often
        only one or two are free.
        """
        if len(self.free) > _FEW:
            cost = self._cost(record, work, self._inverse_free, barred)
            row = int(cost.argmin())
            return row, float(cost[row])
        best, least = -1, math.inf
        for row in sorted(self.free):
            host = self.owner[row]
            seconds = work / host.speed + self._transfer(record, host)
            if seconds < least and host not in barred:
                best, least = row, seconds
        return best, least

    def _transfer(self, record: JobRecord, host: NodeRecord) -> float:
        base = record.base
        return (
            0.0
            if base is None or base in host.holds or base in host.coming
            else record.job.base_bytes / host.bytes_per_second
        )

    def _cost(
        self, record: JobRecord, work: float, inverse: Floats, barred: set[NodeRecord]
    ) -> Floats:
        """Seconds that the job would take on each slot, transfer included; infinite where it may
        not run.
        """
        size = len(self.slots)
        cost = work * inverse[:size]
        if record.base is not None and record.job.base_bytes:
            missing = self._missing.get(record.base)
            if missing is None:
                missing = self._missing[record.base] = self._seconds_per_byte[:size].copy()
                for host in self._holders.get(record.base, ()):
                    missing[list(host.rows.values())] = 0.0
            cost += record.job.base_bytes * missing
        for host in barred:
            cost[list(host.rows.values())] = math.inf
        return cost

    def _barred(self, record: JobRecord) -> set[NodeRecord]:
        """Nodes that have a copy of the job, and those where it was lost if another can take it."""
        barred = {copy.node for copy in record.copies.values()}
        if record.avoid and self.able > sum(host.able for host in record.avoid):
            barred |= record.avoid
        return barred

    def _swap(self, record: JobRecord, row: int, view: View) -> JobRecord:
        """Another ready job whose base is on this node, if `record` would wait for a transfer here
        and can as well start after it.
        """
        host = self.owner[row]
        if record.base is None or record.base in host.holds or not record.job.base_bytes:
            return record
        for base in host.recent:
            mate = next(iter(self._by_base.get(base, {}).values()), None)
            if mate is None or not mate.queued or mate.copies or mate.avoid:
                continue
            if view.now + (self.work(mate) + self.rank(record)) / host.speed <= view.horizon:
                return mate
        return record
