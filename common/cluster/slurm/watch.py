"""Follows tasks that Slurm runs: what they tell in their event logs, and, at most every 10 s, what
Slurm says of those that tell nothing.
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
from common.cluster.results import Results
from common.cluster.slurm.queue import NEVER, Seen, final_states, tasks
from common.cluster.slurm.task import part, progress_file
from common.cluster.work import Outcome, Report, Work
from common.errors import ProjectError
from common.jobs.job_files import Job
from common.paths import Paths

ASK_SECONDS = 10.0  # between two calls of squeue, however many tasks there are
LOOK_SECONDS = 0.5  # between two looks at the event logs
USUAL = frozenset(
    (
        "None",
        "Priority",
        "Resources",
        "Dependency",
        "BeginTime",
        "JobArrayTaskLimit",
        "Cleaning",
        NEVER,
        "",
    )
)
Place = tuple[str, str, int]  # run, array's label, index


class Watch:
    """The jobs of one command and the tasks that run them. `places`: the task of each job that
    Slurm was given; `ids`: a job's name in its task's log.
    """

    def __init__(
        self,
        paths: Paths,
        work: Work,
        places: Mapping[str, Place],
        ids: Mapping[str, str],
        home: Results,
        journal: Journal,
        estimates: Estimates,
        say: Report,
        show: Callable[[dict[str, Any]], None],
    ) -> None:
        self._paths, self._work, self._places, self._home, self._journal, self._estimates = (
            paths,
            work,
            places,
            home,
            journal,
            estimates,
        )
        self._say, self._show = say, show
        self._jobs = {job.id: job for job in (*work.bases, *work.others)}
        self._states: dict[str, str] = {
            job: "waiting" if job in places else "left" for job in self._jobs
        }
        self._by_place: dict[Place, dict[str, Job]] = {}  # by its name in the task's log
        for job, place in places.items():
            self._by_place.setdefault(place, {})[ids.get(job, job)] = self._jobs[job]
        self._read: dict[Place, int] = {}
        self._nodes: dict[Place, str] = {}
        self._arrays: dict[tuple[str, str], str] = {}
        self._gone: Counter[Place] = Counter()
        self._reasons: set[str] = set()
        self._accounting = True
        self._asked = -ASK_SECONDS
        self._began = time.monotonic()
        self.outcome = Outcome()

    # -- the loop

    def run(self, seen: Sequence[Seen], leave: Callable[[], bool]) -> Outcome:
        """Watch until every job has ended, or `leave` says so. `seen`: what squeue has just
        said.
        """
        self._take(seen)
        while True:
            self._read_events()
            self._ask()
            over = not any(state in ("waiting", "running") for state in self._states.values())
            last = over or leave()
            self._publish(over, force=last)
            if last:
                return self._conclude(over)
            time.sleep(LOOK_SECONDS)

    def _conclude(self, over: bool) -> Outcome:
        outcome, states = self.outcome, self._states
        outcome.done = sum(state == "done" for state in states.values())
        outcome.blocked = [job for job, state in states.items() if state == "blocked"]
        outcome.left = [
            job for job, state in states.items() if state in ("left", "waiting", "running")
        ]
        outcome.interrupted = not over
        if not over:
            outcome.why = (
                "the jobs go on in Slurm: run the same command again to see them, with --cancel to"
                " end them"
            )
        self._journal.event(
            "end",
            done=outcome.done,
            failed=len(outcome.failed),
            blocked=len(outcome.blocked),
            left=len(outcome.left),
        )
        return outcome

    # -- what the tasks tell

    def _read_events(self) -> None:
        """New lines of the logs of tasks that have not ended."""
        for run in {run for run, _, _ in self._by_place}:
            with contextlib.suppress(OSError):
                there = set(os.listdir(self._paths.run(run)))
                for place in [place for place in self._by_place if place[0] == run]:
                    name = events_file(part(*place[1:]))
                    if name in there and self._undecided(place):
                        self._read_log(place, self._paths.run(run) / name)

    def _undecided(self, place: Place) -> list[str]:
        return [
            job.id
            for job in self._by_place[place].values()
            if self._states[job.id] in ("waiting", "running")
        ]

    def _read_log(self, place: Place, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._read.get(place, 0))
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read[place] = self._read.get(place, 0) + len(whole) + len(newline)
        for event in events_in(whole):
            job = self._by_place[place].get(str(event.get("job")))
            if job is not None and self._states[job.id] in ("waiting", "running"):
                self._on_event(place, job, event)

    def _on_event(self, place: Place, job: Job, event: Mapping[str, Any]) -> None:
        what = event.get("event")
        if what == "started":
            self._states[job.id] = "running"
            self._nodes[place] = str(event.get("node"))
        elif what == "job":
            self._states[job.id] = "waiting"
        elif what == "failed":
            self._failed(job, str(event.get("error")), str(event.get("log", "")))
        elif what == "done":
            refused = self._home.accept(job, self._paths) if job.kind != "script" else ""
            if refused:
                self._failed(job, refused, "", tell=True)
            else:
                self._states[job.id] = "done"

    def _failed(self, job: Job, cause: str, log: str, *, tell: bool = False) -> None:
        """`tell`: its task did not."""
        self._states[job.id] = "failed"
        self.outcome.failed[job.id] = (cause, log)
        line = f"failed: {job.id}: {cause}" + (f" (log: {log})" if log else "")
        self._say(line, failed=job.id)
        if tell:
            self._journal.event("failed", job=job.id, error=cause, log=log)
        hashes = {job.id, *(sibling.id for sibling in self._work.siblings.get(job.id, ()))}
        for other in self._work.others:
            if other.needs in hashes and self._states[other.id] not in ("done", "failed"):
                self._states[other.id] = "blocked"
                self._journal.event(
                    "blocked", job=other.id, error=f"its base model {job.id} failed"
                )

    # -- what Slurm tells

    def _ask(self) -> None:
        if time.monotonic() - self._asked < ASK_SECONDS:
            return
        self._asked = time.monotonic()
        try:
            self._take(tasks(self._paths))
        except ProjectError as error:
            self._asked += ASK_SECONDS  # a controller in trouble is asked less often
            self._say(f"{error}: asked again")

    def _take(self, seen: Sequence[Seen]) -> None:
        self._asked = time.monotonic()
        states = {task.place: task for task in seen}
        self._arrays.update({(task.run, task.label): task.array for task in seen})
        for task in seen:
            self._remark(task)
        for place in self._by_place:
            if not self._undecided(place):
                continue
            found = states.get(place)
            if found is not None and not found.ended:
                self._gone[place] = 0
                if found.state == "PENDING":  # a node failed: it was running, and waits again
                    self._states.update(dict.fromkeys(self._undecided(place), "waiting"))
                continue
            self._gone[place] += 1
            # its last words may still be on their way through the shared file system
            if self._gone[place] > 1:
                self._ended(place, found)

    def _remark(self, task: Seen) -> None:
        if (
            task.place in self._by_place
            and task.state == "PENDING"
            and task.reason not in USUAL
            and task.reason not in self._reasons
        ):
            self._reasons.add(task.reason)
            self._say(f"Slurm lets tasks wait: {task.reason}")

    def _ended(self, place: Place, found: Seen | None) -> None:
        """A task ended without a word about some of its jobs."""
        state = found.state if found else self._final_state(place)
        log = self._last_words(place)
        for job_id in self._undecided(place):
            job = self._jobs[job_id]
            if job.kind != "script" and not self._home.accept(job, self._paths):
                self._states[job_id] = "done"
                self._journal.event(
                    "done", job=job_id, kind=kind(job), seconds=None, work=self._estimates.work(job)
                )
            elif state.startswith("CANCELLED"):
                self._states[job_id] = "left"
            else:
                self._failed(
                    job,
                    f"its Slurm task ended ({state or 'Slurm no longer knows how'}) before it was"
                    " done",
                    log,
                    tell=True,
                )

    def _final_state(self, place: Place) -> str:
        array = self._arrays.get(place[:2])
        if array and self._accounting:
            try:
                return final_states([array]).get((array, place[2]), "")
            except ProjectError:  # the cluster keeps no accounting
                self._accounting = False
        return ""

    def _last_words(self, place: Place) -> str:
        """The file to which submitit sent the task's errors, relative to the project folder."""
        run, label, index = place
        path = self._paths.slurm(run) / f"{self._arrays.get((run, label), '')}_{index}_0_log.err"
        return str(path.relative_to(self._paths.root)) if path.is_file() else ""

    # -- what is shown

    def _publish(self, ended: bool, *, force: bool) -> None:
        status = self.status(ended)
        self._journal.status(status, force=force)
        self._show(status)

    def status(self, ended: bool) -> dict[str, Any]:
        """What --status and the bar show."""
        phases: dict[str, Counter[str]] = {}
        for job in self._jobs.values():
            phases.setdefault(kind(job), Counter())[self._states[job.id]] += 1
        running = [
            place
            for place in self._by_place
            if any(self._states[job] == "running" for job in self._undecided(place))
        ]
        left = sum(
            self._estimates.seconds(job)
            for job in self._jobs.values()
            if self._states[job.id] in ("waiting", "running")
        )
        return {
            "engine": "slurm",
            "phases": {name: dict(counts) for name, counts in phases.items()},
            "time_left": left / len(running) if running else None,
            "elapsed": time.monotonic() - self._began,
            "nodes": [
                self._node_status(node, running)
                for node in sorted(
                    {self._nodes[place] for place in running if place in self._nodes}
                )
            ],
            "ended": ended,
        }

    def _node_status(self, node: str, running: Sequence[Place]) -> dict[str, Any]:
        here = [place for place in running if self._nodes.get(place) == node]
        jobs = [
            {"job": job, **self._progress(place, job)}
            for place in here
            for job in self._undecided(place)
            if self._states[job] == "running"
        ]
        return {
            "name": node,
            "state": "open",
            "slots": len(here),
            "running": jobs,
            "done": 0,
            "failed": 0,
            "bytes": 0,
            "bytes_per_second": 0.0,
        }

    def _progress(self, place: Place, job: str) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            progress = json.loads(progress_file(self._paths, *place).read_bytes())
            if self._by_place[place][progress["job"]].id == job:
                return {"epoch": progress["epoch"], "of": progress["of"]}
        return {"epoch": None, "of": None}
