"""The copies of jobs: one run of a job on a node each. A job has several when a node fell silent
and the job was started again elsewhere.
"""

from __future__ import annotations

import itertools

from common.cluster.scheduler.jobs import Jobs
from common.cluster.scheduler.learning import Learning
from common.cluster.scheduler.nodes import Nodes
from common.cluster.scheduler.placement import Round
from common.cluster.scheduler.slots import BUSY, DOWN, SlotTable
from common.cluster.scheduler.states import (
    ENDED,
    Assignment,
    Cancellation,
    Copy,
    JobRecord,
    JobState,
    Limits,
    NodeRecord,
)


class Copies:
    """Starts, loses and cancels copies, and sets the state of the job that follows from it."""

    def __init__(
        self, limits: Limits, jobs: Jobs, nodes: Nodes, slots: SlotTable, learning: Learning
    ) -> None:
        self._limits, self._jobs, self._nodes = limits, jobs, nodes
        self._slots, self._learning = slots, learning
        self._order = itertools.count()
        # by slot, or by node and job where only the result was on its way: the last order counts
        self._cancelled: dict[tuple[str, int | str], Cancellation] = {}

    def cancellations(self) -> list[Cancellation]:
        """Copies to stop, since the last call."""
        taken, self._cancelled = list(self._cancelled.values()), {}
        return taken

    def begin(self, now: float, record: JobRecord, row: int, this: Round) -> Assignment:
        """Start the job on a free slot."""
        host = self._slots.nodes[row]
        record.spares += bool(record.copies)
        share = host.shares.get(self._slots.ids[row].number, 1.0)
        copy = Copy(record, host, row, next(self._order), share)
        record.copies[host.name] = host.copies[record.job.id] = copy
        self._jobs.running(record, "")
        fetch = record.base if record.base not in host.holds else None
        start = now
        if fetch is not None and self._nodes.fetch(host, fetch):
            start += record.job.base_bytes / self._limits.bytes_per_second
        self.set_slot(row, BUSY, copy)
        work = self._learning.work(record)
        self._slots.expect(row, start, record, work)
        this.ready[row] = start + work / self._slots.speed(row)
        if host.faults:
            self._nodes.refresh(host)
        return Assignment(record.job.id, self._slots.ids[row], fetch)

    def drop(self, copy: Copy, status: int) -> None:
        """Forget a copy; its slot, if it has one, becomes `status`."""
        del copy.job.copies[copy.node.name]
        del copy.node.copies[copy.job.job.id]
        if copy.row >= 0:
            self.set_slot(copy.row, status)
        if copy.node.faults:
            self._nodes.refresh(copy.node)

    def cancel(self, now: float, copy: Copy) -> None:
        """Stop a copy; its slot stays busy until `slot_free`."""
        job, node, row = copy.job.job.id, copy.node.name, copy.row
        slot = self._slots.ids[row] if row >= 0 else None
        self.drop(copy, BUSY)
        if row >= 0:
            self._slots.expect(row, now, None, 0.0)
        self._cancelled[slot or (node, job)] = Cancellation(job, node, slot)

    def set_slot(self, row: int, status: int, copy: Copy | None = None) -> None:
        """Change a slot: FREE, BUSY or DOWN."""
        self._nodes.set_slot(row, status, copy)
        if status != BUSY:  # an order to stop what has just ended would hit the next job there
            self._cancelled.pop(self._slots.ids[row], None)

    def avoid(self, copy: Copy) -> None:
        """An attempt was lost there: try other nodes first."""
        copy.job.avoid = (copy.job.avoid or set()) | {copy.node}

    def close(self, now: float, host: NodeRecord, cause: str) -> None:
        """The node is gone: its copies are lost."""
        if host.state == "closed":
            return
        copies = list(host.copies.values())
        self._nodes.close(now, host, cause)
        for row in host.rows.values():
            self._cancelled.pop(self._slots.ids[row], None)
        for copy in copies:
            self.drop(copy, DOWN)
            self.avoid(copy)
        for copy in copies:
            self.lose(now, copy.job, cause)

    def fail(self, now: float, record: JobRecord, cause: str) -> None:
        """The job has failed: stop all its copies."""
        for copy in list(record.copies.values()):
            self.cancel(now, copy)
        self._jobs.finish(record, JobState.FAILED, cause)

    def lose(self, now: float, record: JobRecord, cause: str) -> None:
        """An attempt is lost."""
        record.lost += 1
        self.settle(now, record, cause)

    def settle(self, now: float, record: JobRecord, cause: str) -> None:
        """Set the state that follows from a job's copies and lost attempts: running, ready (again),
        or failed.
        """
        if record.state in ENDED:
            return
        limit = self._limits.max_retries
        if any(copy.node.state == "open" for copy in record.copies.values()):
            self._jobs.running(record, cause)
        elif record.lost > limit and not record.copies:
            self.fail(now, record, f"given up after {record.lost} attempts: {cause}")
        elif record.copies and (record.lost > limit or record.spares >= limit):
            self._jobs.running(record, cause)  # on suspect nodes, and no further copy is due
        else:
            self._jobs.ready(record, cause)
