"""The event loop of a run: reports what happens on the nodes to the scheduler and does what it
decides. One thread, one queue of events; the nodes' threads do what blocks.
"""

from __future__ import annotations

import contextlib
import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from common.cluster.estimates import kind
from common.cluster.protocol import CURVES
from common.cluster.scheduler.states import Change, JobState, PlannedJob
from common.cluster.ssh.arrivals import SETTLE_SECONDS, Arrivals
from common.cluster.ssh.context import RunContext
from common.cluster.ssh.events import (
    Arrived,
    Broken,
    Ended,
    Event,
    Fetched,
    Joined,
    Judged,
    Left,
    Listed,
    Said,
    Started,
)
from common.cluster.ssh.nodes import Node, RunNodes
from common.cluster.ssh.sending import Sending
from common.cluster.ssh.worker_link import WorkerLink
from common.cluster.ssh.workers import Workers
from common.cluster.work import Outcome, Show
from common.jobs.job_files import Job

SAVE_SECONDS = 5.0  # that trainings have to reach the end of an epoch and save a checkpoint
END_SECONDS = 5.0  # that workers have to end themselves when the run is over
DATA_SECONDS = 2.0  # between two looks at the head's data
AT_ONCE = 1_000  # events handled before the rest of a turn

SHOW_SECONDS = 1.0  # between two looks at all nodes, for the bar and --status
TOLD = ("epoch", "of", *CURVES)  # what is shown of a running job


class Runner:
    """One run. `interrupts` is raised by the signal handlers of the script."""

    def __init__(self, context: RunContext, show: Show) -> None:
        self.context, self._show = context, show
        self.interrupts = 0  # 1: finish what runs; 2: stop now
        self.outcome = Outcome()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.nodes = RunNodes(context, self._events.put)
        self._arrivals = Arrivals(context, self.nodes, self._events.put)
        self._workers = Workers(context, self.nodes, self._arrivals)
        self._sending = Sending(context, self.nodes, self._workers)
        self._stopping = False
        self._began = self._beat_at = self._data_at = time.monotonic()
        self._status_at = -math.inf
        self._handlers: dict[type, Callable[[float, Any], None]] = {
            Listed: self.nodes.on_listed,
            Joined: self.nodes.on_joined,
            Left: self.nodes.on_left,
            Started: self._workers.on_started,
            Said: self._workers.on_said,
            Ended: self._workers.on_ended,
            Arrived: self._sending.on_arrived,
            Fetched: self._arrivals.on_fetched,
            Judged: self._arrivals.on_judged,
            Broken: _raise,
        }

    # -- the loop

    def run(self) -> Outcome:
        """Run to the end. Raises OSError when the head's own disk fails."""
        self._start_nodes()
        try:
            while not self._is_over():
                self._turn()
        finally:
            self._stop()
        return self._conclude()

    def _start_nodes(self) -> None:
        run = self.context
        trained_as = {
            sibling.id: base for base, siblings in run.work.siblings.items() for sibling in siblings
        }
        planned = [self._planned(job, trained_as) for job in run.jobs.values()]
        run.scheduler.add_jobs(time.monotonic(), planned)
        names = [server.name for server in run.config.servers]
        run.journal.event("start", jobs=len(run.jobs), nodes=names)
        for server in run.config.servers:
            self.nodes.add(server)

    def _planned(self, job: Job, trained_as: Mapping[str, str]) -> PlannedJob:
        run = self.context
        needs = trained_as.get(job.needs, job.needs) if job.needs else None
        return PlannedJob(
            job.id,
            max(1e-3, run.estimates.seconds(job)),
            kind(job),
            needs if needs in run.jobs else None,
            job.needs,
            self._base_bytes(job),
        )

    def _base_bytes(self, job: Job) -> int:
        if job.needs:
            with contextlib.suppress(OSError):
                return self.context.paths.base_weights(job.needs).stat().st_size
        return 100_000 if job.needs else 0

    def _is_over(self) -> bool:
        if self.interrupts >= 2:
            return True
        if self.context.new_data:
            self.outcome.why = (
                f"{self.context.new_data} was prepared again since this run started: start it again"
            )
            return True
        if self.nodes.hopeless:
            self.outcome.why = "no node is left that can work"
            return True
        pushing = self.context.push_all and not self.interrupts and self._sending.pending
        return self.context.scheduler.over and not pushing

    def _turn(self) -> None:
        self._take_events()
        self._periodic(time.monotonic())
        self._decide(time.monotonic())
        self._arrivals.verify(time.monotonic())
        self._publish_status()

    def _take_events(self) -> None:
        """Handle the events there are; wait shortly when there is nothing else to do."""
        wait = SETTLE_SECONDS if self._arrivals.due else 0.2
        with contextlib.suppress(queue.Empty):
            for _ in range(AT_ONCE):
                event = self._events.get(timeout=wait)
                self._handlers[type(event)](time.monotonic(), event)
                wait = 0.0

    def _periodic(self, now: float) -> None:
        run = self.context
        if self.interrupts == 1 and not self._stopping:
            self._stopping = True
            run.scheduler.stop_starting()
            run.say(
                "running jobs finish, nothing new starts; Ctrl-C again stops now: trainings save at"
                " their next epoch, within 5 s, and the next run goes on from there"
            )
        if now - self._beat_at >= run.config.heartbeat_seconds:
            self._beat_at = now
            self._workers.beat(now)
        if now - self._data_at >= DATA_SECONDS:
            self._data_at = now
            run.data_are_new()
        self.nodes.tick(now)
        run.scheduler.expect_slots(self._workers.waiting)
        run.scheduler.tick(now)

    def _decide(self, now: float) -> None:
        scheduler = self.context.scheduler
        waited = now - self._began > self.context.patience
        if waited or all(node.seen and not node.expected for node in self.nodes):
            for assignment in scheduler.assign(now):
                self._sending.dispatch(now, assignment)
        for cancelled in scheduler.cancellations():
            self._workers.cancel(now, cancelled)
        for change in scheduler.changes():
            self._note(now, change)

    # -- the end

    def _stop(self) -> None:
        """End all workers and wait for their end, so that nothing is left running on a node. When
        the user stops the run, trainings first have a moment to save their state.
        """
        waited = {worker for node in self.nodes for worker in node.workers.values()}
        if self.interrupts >= 2:
            for worker in waited:
                worker.send({"stop": 1})
            self._await_ends(waited, SAVE_SECONDS)
        for worker in waited:
            worker.end()
        self._await_ends(waited, END_SECONDS)
        _kill(waited)
        for node in self.nodes:
            node.stop()
        if self.interrupts >= 2:
            self._take_arrivals(END_SECONDS)
        shutil.rmtree(self.context.paths.incoming, ignore_errors=True)

    def _take_arrivals(self, seconds: float) -> None:
        """Count the results that are being verified: trainings may end while they are stopped."""
        deadline = time.monotonic() + seconds
        while self._arrivals.pending and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=0.1)
                if isinstance(event, (Judged, Broken)):
                    self._handlers[type(event)](time.monotonic(), event)

    def _await_ends(self, waited: set[WorkerLink], seconds: float) -> None:
        """Remove from `waited` the workers that end within this time."""
        deadline = time.monotonic() + seconds
        while waited and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=0.1)
                if isinstance(event, Started):
                    event.worker.end()
                    waited.add(event.worker)
                elif isinstance(event, Ended):
                    waited.discard(event.worker)
                elif isinstance(event, Said):
                    self._workers.on_last_words(time.monotonic(), event)
                    self._arrivals.verify(math.inf)
                elif isinstance(event, Judged):
                    self._arrivals.on_judged(time.monotonic(), event)

    def _conclude(self) -> Outcome:
        run, outcome = self.context, self.outcome
        outcome.done = run.scheduler.counts()[JobState.DONE]
        outcome.interrupted = self.interrupts > 0
        for job in run.jobs:
            state = run.scheduler.state(job)
            if state is JobState.FAILED:
                outcome.failed[job] = (run.scheduler.cause(job), run.logs.get(job, ""))
            elif state is JobState.BLOCKED:
                outcome.blocked.append(job)
            elif state is not JobState.DONE:
                outcome.left.append(job)
        if run.scheduler.given_up:
            outcome.why = f"no node could work for {run.scheduler.limits.no_node_limit:.0f} s"
        run.journal.event(
            "end",
            done=outcome.done,
            failed=len(outcome.failed),
            blocked=len(outcome.blocked),
            left=len(outcome.left),
        )
        self._publish_status(force=True)
        return outcome

    # -- what is reported

    def _note(self, now: float, change: Change) -> None:
        run, name, cause = self.context, change.name, change.cause
        if change.what == "node":
            self._note_node(now, change)
        elif change.state == JobState.FAILED.value:
            log = run.logs.get(name, "")
            run.say(f"failed: {name}: {cause}" + (f" (log: {log})" if log else ""), failed=name)
            run.journal.event("failed", job=name, error=cause, log=log)
        elif change.state == JobState.BLOCKED.value:
            run.journal.event("blocked", job=name, error=cause)
        elif cause:
            run.journal.event("job", job=name, state=change.state, cause=cause)

    def _note_node(self, now: float, change: Change) -> None:
        run, cause = self.context, change.cause
        run.journal.event("node", node=change.name, state=change.state, cause=cause)
        node = self.nodes.get(change.name)
        if node is not None and change.state == "closed" and node.is_open:  # for its silence
            node.lose(now)
            run.say(f"{change.name}: closed: {cause}")
        elif change.state not in ("open", "closed", "draining") or (
            change.state == "open" and cause
        ):
            run.say(f"{change.name}: {change.state}" + (f": {cause}" if cause else ""))

    def _publish_status(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._status_at < SHOW_SECONDS:
            return
        self._status_at = now
        status = self.status()
        self.context.journal.status(status)
        self._show(status)

    def status(self) -> dict[str, Any]:
        """What --status and the bar show."""
        scheduler, now = self.context.scheduler, time.monotonic()
        phases = {
            name: {state.value: number for state, number in scheduler.counts(name).items()}
            for name in scheduler.kinds()
        }
        return {
            "run": self.context.journal.run_id,
            "phases": phases,
            "time_left": scheduler.time_left(now),
            "nodes": [self._node_status(node, now) for node in self.nodes],
            "stopping": self.interrupts > 0,
            "ended": self._is_over(),
        }

    def _node_status(self, node: Node, now: float) -> dict[str, Any]:
        run, state, jobs = self.context, node.shown_state, list[str]()
        if node.is_open:
            state, jobs = run.scheduler.node_state(node.name), run.scheduler.jobs_on(node.name)
        running = [
            {"job": job, "epoch": None, "of": None}
            | {key: run.progress[job].get(key) for key in TOLD if job in run.progress}
            for job in jobs
        ]
        return {
            "name": node.name,
            "state": state,
            "slots": len(node.plan.slots),
            "running": running,
            "done": node.done,
            "failed": node.failed,
            "bytes_per_second": node.bytes / max(1.0, now - self._began),
        }


def _raise(now: float, event: Broken) -> None:
    raise event.error


def _kill(workers: set[WorkerLink]) -> None:
    """End workers that do not end by themselves; one behind a cut link ends once it hears
    nothing.
    """
    threads = [threading.Thread(target=worker.kill, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + END_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
