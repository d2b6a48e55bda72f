"""The jobs: their states, what they wait for, and how many are left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from common.cluster.scheduler.placement import ReadyQueue
from common.cluster.scheduler.states import (
    ENDED,
    LEFT,
    Change,
    JobRecord,
    JobState,
    Limits,
    PlannedJob,
)


class Jobs:
    """Keeps each job's record; `log` takes changes of state, `unused` is called with a base model
    that no job needs any more.

    left: number of jobs that have not ended. todo: estimated seconds of the jobs without a working
    copy, by kind.
    """

    def __init__(
        self, limits: Limits, queue: ReadyQueue, log: list[Change], unused: Callable[[str], None]
    ) -> None:
        self._limits, self._queue, self._log, self._unused = limits, queue, log, unused
        self._records: dict[str, JobRecord] = {}
        self._counts: dict[str, dict[JobState, int]] = {}
        self._users: dict[str, int] = {}  # jobs not ended, by base
        self._gated: list[JobRecord] = []  # held back until all base jobs have ended
        self._open_bases = 0
        self.left = 0
        self.todo: dict[str, float] = {}

    def __getitem__(self, name: str) -> JobRecord:
        return self._records[name]

    def unended(self) -> list[str]:
        """Jobs that have not ended, in the order in which they were added."""
        return [name for name, record in self._records.items() if record.state not in ENDED]

    def kinds(self) -> list[str]:
        """The kinds of job seen, in order of their arrival."""
        return list(self._counts)

    def counts(self, kind: str | None) -> dict[JobState, int]:
        """Number of jobs in each state, of one kind or of all."""
        tables = [table for name, table in self._counts.items() if kind in (None, name)]
        return {state: sum(table[state] for table in tables) for state in JobState}

    # ---- adding

    def add(self, jobs: Iterable[PlannedJob]) -> None:
        """Register jobs and queue those that are ready. Raises ValueError and changes nothing when
        one is given twice, has no usable estimate or needs an unsuitable job.
        """
        new = list(jobs)
        self._check(new)
        for job in new:
            self._enter(job)
        for job in new:
            self._link(self._records[job.id])
        for job in new:
            self._open(self._records[job.id])

    def _check(self, new: list[PlannedJob]) -> None:
        by_id = {job.id: job for job in new}
        for job in new:
            if job.id in self._records or by_id[job.id] is not job:
                raise ValueError(f"job {job.id} was given twice")
            if not (job.estimate > 0 and math.isfinite(job.estimate)):
                raise ValueError(
                    f"job {job.id} has the estimate {job.estimate}; seconds above 0 are needed"
                )
            if job.needs is not None and job.needs not in by_id and job.needs not in self._records:
                raise ValueError(f"job {job.id} needs {job.needs}, which is not among the jobs")
            if job.needs in by_id and by_id[job.needs].needs in by_id:
                raise ValueError(
                    f"job {job.id} needs {job.needs}, which needs a job itself; a base job needs"
                    " none"
                )

    def _enter(self, job: PlannedJob) -> None:
        record = JobRecord(job, job.base or job.needs, len(self._records))
        self._records[job.id] = record
        counts = self._counts.setdefault(job.kind, dict.fromkeys(JobState, 0))
        counts[JobState.WAITING] += 1
        self.todo[job.kind] = self.todo.get(job.kind, 0.0) + job.estimate
        self.left += 1
        self._open_bases += job.kind == "base"
        if record.base is not None:
            self._users[record.base] = self._users.get(record.base, 0) + 1

    def _link(self, record: JobRecord) -> None:
        if record.job.needs is None:
            return
        parent = self._records[record.job.needs]
        parent.dependants = parent.dependants or []
        parent.dependants.append(record)
        if record.job.estimate > parent.tail:
            parent.tail, parent.tail_kind = record.job.estimate, record.job.kind
            if parent.queued:
                self._queue.put(parent)

    def _open(self, record: JobRecord) -> None:
        """Make a waiting job ready if its base is done and no barrier holds it back; blocked if its
        base failed.
        """
        if record.state is not JobState.WAITING:
            return
        parent = self._records[record.job.needs] if record.job.needs is not None else None
        if parent is not None and parent.state in (JobState.FAILED, JobState.BLOCKED):
            cause = f"its base job {parent.job.id} {parent.state.value}"
            self.finish(record, JobState.BLOCKED, cause)
        elif self._limits.wait_for_all_bases and record.job.kind != "base" and self._open_bases:
            self._gated.append(record)
        elif parent is None or parent.state is JobState.DONE:
            self.ready(record, "")

    # ---- changes of state

    def ready(self, record: JobRecord, cause: str) -> None:
        """Queue the job."""
        self._move(record, JobState.READY, cause)
        self._queue.put(record)

    def running(self, record: JobRecord, cause: str) -> None:
        """A copy of the job works."""
        self._queue.remove(record)
        self._move(record, JobState.RUNNING, cause)

    def finish(self, record: JobRecord, state: JobState, cause: str) -> None:
        """Done, failed or blocked: final. Dependants become ready, or blocked with it."""
        stack = [(record, state, cause)]
        while stack:
            one, state, cause = stack.pop()
            if one.state in ENDED:
                continue
            self._end(one, state, cause)
            dependants = sorted(one.dependants or [], key=lambda child: -child.job.estimate)
            if state is JobState.DONE:
                for child in dependants:
                    self._open(child)
            else:
                cause = f"its base job {one.job.id} {state.value}"
                stack += [(child, JobState.BLOCKED, cause) for child in dependants]
        if not self._open_bases and self._gated:
            gated, self._gated = self._gated, []
            for one in gated:
                self._open(one)

    def _end(self, record: JobRecord, state: JobState, cause: str) -> None:
        self._queue.remove(record)
        self._move(record, state, cause)
        self.left -= 1
        self._open_bases -= record.job.kind == "base"
        if record.base is not None:
            self._users[record.base] -= 1
            if not self._users[record.base]:
                self._unused(record.base)

    def _move(self, record: JobRecord, state: JobState, cause: str) -> None:
        old, kind = record.state, record.job.kind
        record.cause = cause or record.cause
        if old is state:
            return
        record.state = state
        self._counts[kind][old] -= 1
        self._counts[kind][state] += 1
        self.todo[kind] += record.job.estimate * ((state in LEFT) - (old in LEFT))
        self._log.append(Change("job", record.job.id, state.value, cause))
