"""Watches tasks in Slurm: reads the event logs that they write and asks squeue, at most every 10 s,
about those that end without an event.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cluster.estimates import Estimates, kind
from common.cluster.journal import Journal, events_file, events_in
from common.cluster.protocol import CURVES
from common.cluster.results import Results
from common.cluster.slurm.queue import NEVER, QueuedTask, final_states, queued_tasks
from common.cluster.slurm.task import part, progress_file
from common.cluster.work import Outcome, Report, Show, Work, once
from common.errors import ProjectError
from common.jobs.job_files import Job
from common.paths import Paths

ASK_SECONDS = 10.0  # between two calls of squeue, for any number of tasks
LOOK_SECONDS = 0.5  # between two looks at the event logs
USUAL_REASONS = {
    "None",
    "Priority",
    "Resources",
    "Dependency",
    "BeginTime",
    "JobArrayTaskLimit",
    "",
}
USUAL_REASONS |= {"Cleaning", NEVER}
OPEN = ("waiting", "running")  # states of jobs that have not ended
Place = tuple[str, str, int]  # run, array's label, index


class Watch:
    """The jobs of one command. `places`: by task, the name of each of its jobs in the task's event
    log -> the job's id.
    """

    def __init__(
        self,
        paths: Paths,
        work: Work,
        places: Mapping[Place, Mapping[str, str]],
        results: Results,
        journal: Journal,
        estimates: Estimates,
        say: Report,
        show: Show,
    ) -> None:
        self._paths, self._work, self._results = paths, work, results
        self._journal, self._estimates, self._say, self._show = journal, estimates, say, show
        self._jobs = {job.id: job for job in (*work.bases, *work.others)}
        self._by_place = {
            place: {name: self._jobs[job] for name, job in jobs.items()}
            for place, jobs in places.items()
        }
        self._states = dict.fromkeys(self._jobs, "left")
        for jobs in places.values():
            self._states.update(dict.fromkeys(jobs.values(), "waiting"))
        self._seconds: dict[str, float] = {}  # by job, as estimated
        self._started: dict[str, float] = {}  # by job, the time of its last start
        self._read: dict[Place, int] = {}  # bytes of its event log
        self._nodes: dict[Place, str] = {}
        self._arrays: dict[tuple[str, str], str] = {}
        self._gone: Counter[Place] = Counter()  # how often squeue has shown a task as ended
        self._say_once = once(say)
        self._accounting = True
        self._asked = -ASK_SECONDS
        self.outcome = Outcome()

    def run(self, queued: Sequence[QueuedTask], leave: Callable[[], bool]) -> Outcome:
        """Watch until every job has ended, or `leave` returns true. `queued`: a fresh answer of
        squeue.
        """
        self._take(queued)
        while True:
            self._read_events()
            self._ask()
            over = not any(state in OPEN for state in self._states.values())
            last = over or leave()
            status = self.status(over)
            self._journal.status(status)
            self._show(status)
            if last:
                return self._conclude(over)
            time.sleep(LOOK_SECONDS)

    def _conclude(self, over: bool) -> Outcome:
        outcome, states = self.outcome, self._states
        outcome.done = sum(state == "done" for state in states.values())
        outcome.blocked = [job for job, state in states.items() if state == "blocked"]
        outcome.left = [job for job, state in states.items() if state in ("left", *OPEN)]
        outcome.interrupted = not over
        if not over:
            outcome.why = (
                "the jobs go on in Slurm: run the same command again to see them, with --cancel to"
                " end them"
            )
        counts = {name: len(getattr(outcome, name)) for name in ("failed", "blocked", "left")}
        self._journal.event("end", done=outcome.done, **counts)
        return outcome

    # -- event logs

    def _read_events(self) -> None:
        """Read new lines in the logs of tasks that have not ended."""
        for run in {run for run, _, _ in self._by_place}:
            with contextlib.suppress(OSError):
                there = set(os.listdir(self._paths.run(run)))
                for place in self._by_place:
                    name = events_file(part(*place[1:]))
                    if place[0] == run and name in there and self._open_jobs(place):
                        self._read_log(place, self._paths.run(run) / name)

    def _open_jobs(self, place: Place) -> list[str]:
        """Jobs of a task that have not ended."""
        return [j.id for j in self._by_place[place].values() if self._states[j.id] in OPEN]

    def _read_log(self, place: Place, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._read.get(place, 0))
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read[place] = self._read.get(place, 0) + len(whole) + len(newline)
        for event in events_in(whole):
            job = self._by_place[place].get(str(event.get("job")))
            if job is not None and self._states[job.id] in OPEN:
                self._on_event(place, job, event)

    def _on_event(self, place: Place, job: Job, event: Mapping[str, Any]) -> None:
        match event.get("event"):
            case "started":
                self._states[job.id] = "running"
                self._nodes[place] = str(event.get("node"))
                self._started[job.id] = float(event.get("time", 0.0))
            case "job":  # requeued
                self._states[job.id] = "waiting"
            case "failed":
                self._failed(job, str(event.get("error")), str(event.get("log", "")))
            case "done":
                if remark := event.get("remark"):
                    self._say_once(str(remark))
                refused = self._results.accept(job, self._paths) if job.kind != "script" else ""
                if refused:
                    self._failed(job, refused, "", record=True)
                else:
                    self._states[job.id] = "done"

    def _failed(self, job: Job, cause: str, log: str, *, record: bool = False) -> None:
        """`record`: the task has written no event of it."""
        self._states[job.id] = "failed"
        self.outcome.failed[job.id] = (cause, log)
        line = f"failed: {job.id}: {cause}" + (f" (log: {log})" if log else "")
        self._say(line, failed=job.id)
        if record:
            self._journal.event("failed", job=job.id, error=cause, log=log)
        hashes = {job.id, *(sibling.id for sibling in self._work.siblings.get(job.id, ()))}
        for other in self._work.others:
            if other.needs in hashes and self._states[other.id] not in ("done", "failed"):
                self._states[other.id] = "blocked"
                error = f"its base model {job.id} failed"
                self._journal.event("blocked", job=other.id, error=error)

    # -- squeue

    def _ask(self) -> None:
        if time.monotonic() - self._asked < ASK_SECONDS:
            return
        try:
            self._take(queued_tasks(self._paths))
        except ProjectError as error:
            # doubles the interval, so that a controller in trouble is asked less often
            self._asked = time.monotonic() + ASK_SECONDS
            self._say(f"{error}: asked again")

    def _take(self, queued: Sequence[QueuedTask]) -> None:
        self._asked = time.monotonic()
        by_place = {task.place: task for task in queued}
        self._arrays.update({(task.run, task.label): task.array for task in queued})
        for shown in queued:
            self._report_reason(shown)
        for place in self._by_place:
            waiting, task = self._open_jobs(place), by_place.get(place)
            if not waiting:
                continue
            if task is None or task.ended:
                self._gone[place] += 1
                # its last events may still be on the way through the shared file system
                if self._gone[place] > 1:
                    self._ended(place, task)
            else:
                self._gone[place] = 0
                if task.state == "PENDING":  # requeued, for example after its node failed
                    self._states.update(dict.fromkeys(waiting, "waiting"))

    def _report_reason(self, task: QueuedTask) -> None:
        """Say once why Slurm starts no task, where it is for an unusual reason."""
        if task.state != "PENDING" or task.place not in self._by_place:
            return
        if task.reason not in USUAL_REASONS:
            self._say_once(f"Slurm holds tasks back: {task.reason}")

    def _ended(self, place: Place, task: QueuedTask | None) -> None:
        """A task ended without an event about some of its jobs."""
        state = task.state if task else self._final_state(place)
        cause = f"its Slurm task ended ({state or 'Slurm no longer knows how'}) before it was done"
        for job_id in self._open_jobs(place):
            job = self._jobs[job_id]
            if job.kind != "script" and not self._results.accept(job, self._paths):
                self._states[job_id] = "done"
                work = self._estimates.work(job)
                self._journal.event("done", job=job_id, kind=kind(job), seconds=None, work=work)
            elif state == "CANCELLED":
                self._states[job_id] = "left"
            else:
                self._failed(job, cause, self._error_log(place), record=True)

    def _final_state(self, place: Place) -> str:
        """What accounting knows of a task, or ''."""
        array = self._arrays.get(place[:2])
        if array and self._accounting:
            try:
                return final_states([array]).get((array, place[2]), "")
            except ProjectError:  # the cluster keeps no accounting
                self._accounting = False
        return ""

    def _error_log(self, place: Place) -> str:
        """The task's standard error, relative to the project folder, or ''."""
        run, label, index = place
        path = self._paths.slurm(run) / f"{self._arrays.get((run, label), '')}_{index}_0_log.err"
        return str(path.relative_to(self._paths.root)) if path.is_file() else ""

    # -- status

    def status(self, ended: bool) -> dict[str, Any]:
        """What --status and the bar show."""
        phases: dict[str, Counter[str]] = {}
        for job in self._jobs.values():
            phases.setdefault(kind(job), Counter())[self._states[job.id]] += 1
        running = {
            place: jobs
            for place in self._by_place
            if (jobs := [j for j in self._open_jobs(place) if self._states[j] == "running"])
        }
        left = sum(
            self._seconds_of(job) for job in self._jobs.values() if self._states[job.id] in OPEN
        )
        nodes = sorted({self._nodes[place] for place in running if place in self._nodes})
        return {
            "engine": "slurm",
            "run": self._journal.run_id,
            "phases": {name: dict(counts) for name, counts in phases.items()},
            "time_left": left / len(running) if running else None,
            "nodes": [self._node_status(node, running) for node in nodes],
            "ended": ended,
        }

    def _seconds_of(self, job: Job) -> float:
        """The estimate, made once: estimating all of 100,000 jobs takes seconds."""
        if job.id not in self._seconds:
            self._seconds[job.id] = self._estimates.seconds(job)
        return self._seconds[job.id]

    def _node_status(self, node: str, running: Mapping[Place, Sequence[str]]) -> dict[str, Any]:
        here = {place: jobs for place, jobs in running.items() if self._nodes.get(place) == node}
        return {
            "name": node,
            "state": "open",
            "slots": len(here),
            "running": [self._progress(place, job) for place, jobs in here.items() for job in jobs],
            "done": 0,
            "failed": 0,
            "bytes_per_second": 0.0,
        }

    def _progress(self, place: Place, job: str) -> dict[str, Any]:
        """A running job, with its epoch where the task has written it."""
        shown = {"job": job, "epoch": None, "of": None, "seconds": time.time() - self._started[job]}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            progress = json.loads(progress_file(self._paths, *place).read_bytes())
            if self._by_place[place][progress["job"]].id == job:
                shown |= {"epoch": progress["epoch"], "of": progress["of"]}
                shown |= {key: progress[key] for key in CURVES if key in progress}
        return shown
