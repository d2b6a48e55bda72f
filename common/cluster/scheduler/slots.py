"""The table of slots: one row a slot, numbers as arrays, so that a decision looks at a thousand
slots at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from common.cluster.scheduler.states import Copy, JobRecord, NodeRecord, SlotId

Floats = npt.NDArray[np.float64]

FREE, BUSY, DOWN = 0, 1, 2
_OVERDUE = 0.2  # a job past its estimate is taken to need this share of the time that it has run


def _larger(old: Floats, size: int, fill: float) -> Floats:
    new = np.full(size, fill)
    new[: len(old)] = old
    return new


class SlotTable:
    """Rows of slots. `NodeRecord.rows` and `Copy.row` point into it. `bytes_per_second`: of a base
    model on its way to a node.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self.ids: list[SlotId] = []
        self.nodes: list[NodeRecord] = []
        self.copies: list[Copy | None] = []
        self.free: set[int] = set()  # rows on which a job can start now
        self._status: list[int] = []
        self._holders: dict[str, set[NodeRecord]] = {}  # of a base, on its way included
        self._transfer: dict[str, Floats] = {}  # by base: seconds, 0 where the node has it
        none = np.empty(0)
        # seconds for each second of work; infinite where nothing may start
        self._inverse: Floats = none
        self._not_free: Floats = none  # 0 where a job can start now, else infinite
        # of the job that runs there: when it trains, its estimated seconds on this slot, its kind,
        # and when it is expected to end
        self._start: Floats = none
        self._estimate: Floats = none
        self._end: Floats = none
        self._kind = np.empty(0, dtype=np.intp)
        self._kinds: dict[str, int] = {}
        self._grow(16)

    def _grow(self, size: int) -> None:
        self._inverse = _larger(self._inverse, size, math.inf)
        self._not_free = _larger(self._not_free, size, math.inf)
        self._start = _larger(self._start, size, math.inf)
        self._end = _larger(self._end, size, -math.inf)
        self._estimate = _larger(self._estimate, size, 0.0)
        self._kind = np.resize(self._kind, size)

    def add(self, host: NodeRecord, number: int) -> int:
        """A new slot, down. Returns its row."""
        row = len(self.ids)
        if row == len(self._inverse):
            self._grow(2 * row)
        self.ids.append(SlotId(host.name, number))
        self.nodes.append(host)
        self.copies.append(None)
        self._status.append(DOWN)
        host.rows[number] = row
        self._transfer.clear()
        return row

    def set(self, row: int, status: int, copy: Copy | None = None) -> None:
        """FREE, BUSY (with `copy`, or with a cancelled one that has not ended) or DOWN."""
        host, old = self.nodes[row], self._status[row]
        self._status[row], self.copies[row] = status, copy
        if status != BUSY:
            self._start[row], self._end[row], self._estimate[row] = math.inf, -math.inf, 0.0
        host.up += (status != DOWN) - (old != DOWN)
        self._mark(row)

    def expect(self, row: int, start: float, record: JobRecord | None, work: float) -> None:
        """The job trains from `start` on and takes `work` seconds at speed 1; None: the slot is
        busy, but free at any moment.
        """
        speed = self.speed(row)
        self._start[row], self._end[row], self._estimate[row] = start, start + work / speed, 0.0
        if record is not None:
            self._estimate[row] = record.job.estimate / speed
            self._kind[row] = self._kinds.setdefault(record.job.kind, len(self._kinds))

    def correct(self, factor: Callable[[str], float]) -> None:
        """Estimates turned out to be wrong: expect all running jobs to end accordingly."""
        self._end[: len(self.ids)] = self.ends(factor)

    def ends(self, factor: Callable[[str], float]) -> Floats:
        """When running jobs are expected to end by other factors of their kinds."""
        size = len(self.ids)
        factors = np.array([factor(kind) for kind in self._kinds] or [1.0])
        end = self._start[:size] + self._estimate[:size] * factors[self._kind[:size]]
        return np.where(self._estimate[:size] > 0, end, self._end[:size])

    def refresh(self, host: NodeRecord) -> None:
        """The node's speed changed, or whether it may get jobs."""
        for row in host.rows.values():
            self._mark(row)

    def speed(self, row: int) -> float:
        """Speed of a slot, whether it can be used or not."""
        host = self.nodes[row]
        return host.speed * host.shares.get(self.ids[row].number, 1.0)

    def _mark(self, row: int) -> None:
        host, status = self.nodes[row], self._status[row]
        works = host.usable and status != DOWN
        free = works and status == FREE
        self._inverse[row] = 1.0 / self.speed(row) if works else math.inf
        self._not_free[row] = 0.0 if free else math.inf
        (self.free.add if free else self.free.discard)(row)

    # ---- base models on nodes

    def base_present(self, host: NodeRecord, base: str) -> None:
        """The node holds the base, or it is being sent there."""
        self._holders.setdefault(base, set()).add(host)
        if base in self._transfer:
            self._transfer[base][list(host.rows.values())] = 0.0

    def base_absent(self, host: NodeRecord, base: str) -> None:
        """The node lost the base, or its transfer failed."""
        self._holders.get(base, set()).discard(host)
        self._transfer.pop(base, None)

    def forget(self, base: str) -> None:
        """No job needs the base any more."""
        self._transfer.pop(base, None)

    # ---- what a decision looks at

    @property
    def not_free(self) -> Floats:
        """0 where a job can start now, infinite elsewhere."""
        return self._not_free[: len(self.ids)]

    def speeds(self) -> Floats:
        """Speed of each slot, 0 where nothing may start."""
        return 1.0 / self._inverse[: len(self.ids)]

    def expected_free(self, now: float, ends: Floats | None = None) -> Floats:
        """When each slot is expected to be free, now at the earliest; by other `ends` than the
        expected ones where they are given.
        """
        size = len(self.ids)
        ready = now * (1.0 + _OVERDUE) - _OVERDUE * self._start[:size]
        np.maximum(ready, self._end[:size] if ends is None else ends, out=ready)
        np.maximum(ready, now, out=ready)
        return ready

    def running(self, now: float) -> Iterator[tuple[JobRecord, int, float]]:
        """The jobs that occupy slots: each with its row and its seconds so far at speed 1."""
        for row, copy in enumerate(self.copies):
            if copy is not None:
                so_far = max(0.0, now - float(self._start[row])) * self.speed(row)
                yield copy.job, row, so_far

    def seconds(self, record: JobRecord, work: float) -> Floats:
        """Seconds that `work` takes on each slot, transfer of its base included; infinite where
        nothing may start.
        """
        seconds = work * self._inverse[: len(self.ids)]
        if record.base is not None and record.job.base_bytes:
            seconds += self._transfer_of(record.base, record.job.base_bytes)
        return seconds

    def _transfer_of(self, base: str, size: int) -> Floats:
        transfer = self._transfer.get(base)
        if transfer is None:
            transfer = np.full(len(self.ids), size / self._bytes_per_second)
            for host in self._holders.get(base, ()):
                transfer[list(host.rows.values())] = 0.0
            self._transfer[base] = transfer
        return transfer
