"""The workers of a run: what they report, and what they are given."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

from common.cluster.scheduler.states import Cancellation, SlotId
from common.cluster.ssh.arrivals import Arrivals
from common.cluster.ssh.context import RunContext
from common.cluster.ssh.events import Ended, Said, Started
from common.cluster.ssh.nodes import Node, RunNodes, Stage
from common.cluster.ssh.worker_link import WorkerLink, WorkerState
from common.jobs.job_files import Job

RESENDS = 2  # of a base model that a node finds damaged or lacks, for one job
STARTS = 3  # of a worker in a row that never said hello


class Workers:
    """Handles the events of all workers of a run."""

    def __init__(self, run: RunContext, nodes: RunNodes, arrivals: Arrivals) -> None:
        self._run, self._nodes, self._arrivals = run, nodes, arrivals
        self._starts: dict[SlotId, int] = {}  # of workers that never said hello
        self._resent: dict[str, int] = {}  # by job
        self._waiting: set[WorkerLink] = set()  # for a slot, and some that waited

    def _node_of(self, worker: WorkerLink) -> Node | None:
        """The node on which this is the current worker of its slot."""
        node = self._nodes.of(worker.node)
        current = node is not None and node.workers.get(worker.slot.index) is worker
        return node if current else None

    def beat(self, now: float) -> None:
        """A sign of life to every worker, and the end of those that are frozen: silent while others
        on their node report. The silence of a whole node is the scheduler's matter.
        """
        for node in self._nodes:
            for worker in node.workers.values():
                worker.send({"beat": 0})
            ready = [w for w in node.workers.values() if w.state is WorkerState.READY]
            if not node.is_open:
                self._lose_if_silent(now, node)
            if not node.is_open or all(
                now - worker.heard > self._run.config.suspect_seconds for worker in ready
            ):
                continue
            for worker in ready:
                if (silent := now - worker.heard) > self._run.config.close_seconds:
                    self._end_now(now, worker, f"it was silent for {silent:.0f} s")
                elif self._is_stalled(now, worker):
                    minutes = self._run.config.stall_minutes
                    why = f"{worker.job} finished no epoch in {minutes:g} minutes (stall_minutes)"
                    self._end_now(now, worker, why)

    def _is_stalled(self, now: float, worker: WorkerLink) -> bool:
        """Whether its training goes on without an epoch; a user's own script has none."""
        job = self._run.scheduler.job_at(worker.place)
        return (
            job == worker.job
            and self._run.jobs[job].kind != "script"
            and now - worker.epoch_at > 60 * self._run.config.stall_minutes
        )

    def _lose_if_silent(self, now: float, node: Node) -> None:
        """A node on which all slots are waited for is not yet the scheduler's matter."""
        waiting = [w for w in node.workers.values() if w.state is WorkerState.WAITING]
        silence = min((now - worker.heard for worker in waiting), default=0.0)
        if silence > self._run.config.close_seconds:
            self._nodes.lose(now, node, f"{node.name}: silent for {silence:.0f} s", transient=True)

    def _end_now(self, now: float, worker: WorkerLink, why: str) -> None:
        threading.Thread(target=worker.kill, daemon=True).start()
        self.on_ended(now, Ended(worker, 128 + signal.SIGKILL, why))

    # -- what is given to workers

    def start(self, now: float, name: str, slot: SlotId) -> None:
        """Give a job to the worker of its slot."""
        run, job, node = self._run, self._run.jobs[name], self._nodes.get(slot.node)
        worker = node.workers.get(slot.number) if node is not None else None
        # its end is reported next, or its slot is given up
        if node is None or worker is None or worker.is_leaving:
            return
        values = dict(job.values)
        if job.kind == "finetune" and not node.shared:
            values["overwrite"] = True  # a node's folder is only a place to work in
        if run.work.retrain:
            values["_retrain"] = True
        worker.send({"job": name, "script": run.work.scripts[job.kind], "values": values})
        worker.job, worker.epoch, worker.epoch_at = name, None, now
        run.scheduler.started(now, name, slot.node)
        run.journal.event("started", job=name, node=slot.node, slot=slot.number)

    def free(self, now: float, worker: WorkerLink, share: float | None = None) -> None:
        """The worker has nothing to do; the scheduler may give up its slot. share: the slot's speed
        over that of its node's first slot, where both were measured.
        """
        slot_is_kept = worker.is_leaving or self._run.scheduler.slot_free(
            now, worker.place, worker.slot.gpu, share
        )
        if not slot_is_kept:
            worker.state = WorkerState.ENDING
            worker.end()

    def cancel(self, now: float, cancelled: Cancellation) -> None:
        """Stop a copy of a job, also one that only waits for its files."""
        node = self._nodes.get(cancelled.node)
        if cancelled.slot is None or node is None:
            return
        self._run.journal.event("cancelled", job=cancelled.job, node=cancelled.node)
        worker = node.workers.get(cancelled.slot.number)
        waiting = node.waiting.get(cancelled.slot.number)
        if waiting is not None and waiting.job == cancelled.job:
            del node.waiting[cancelled.slot.number]
            if worker is not None:
                self.free(now, worker)
        elif worker is not None:
            worker.send({"cancel": cancelled.job})

    # -- what workers report

    def on_started(self, now: float, event: Started) -> None:
        """A worker was started: it becomes its slot's, unless the node was lost meanwhile."""
        worker, node = event.worker, self._nodes.of(event.worker.node)
        if node is not None and node.stage in (Stage.STARTING, Stage.OPEN):
            node.workers[worker.slot.index] = worker
        else:
            worker.end()

    def on_last_words(self, now: float, event: Said) -> None:
        """One message while the run is stopped: a result counts that needs no copying."""
        node = self._node_of(event.worker)
        if node is not None and node.shared and "done" in event.message:
            self.on_said(now, event)
        else:
            event.worker.handled()

    def on_said(self, now: float, event: Said) -> None:
        """One message of a worker."""
        worker, message, jobs = event.worker, event.message, self._run.jobs
        worker.handled()
        node = self._node_of(worker)
        if node is None or worker.is_leaving:
            return
        if node.is_open:
            self._run.scheduler.heartbeat(now, node.name)
        if "hello" in message:
            self._on_hello(now, node, worker, message["hello"])
        elif "waiting" in message:
            self._on_waiting(node, worker, message["waiting"])
        elif message.get("progress") in jobs:
            self._run.progress[message["progress"]] = message
            # without an epoch it waits for another process that makes the same result
            if message["epoch"] is None or message["epoch"] != worker.epoch:
                worker.epoch, worker.epoch_at = message["epoch"], now
        elif message.get("done") in jobs:
            self._on_done(now, node, worker, message)
        elif message.get("failed") in jobs:
            self._on_failed(now, node, worker, message)
        if "yields" in message:
            self._on_yields(now, node, worker)

    def _on_waiting(self, node: Node, worker: WorkerLink, holder: Mapping[str, Any]) -> None:
        if worker.state not in (WorkerState.STARTING, WorkerState.WAITING):
            return
        worker.state, worker.holder = WorkerState.WAITING, str(holder["holder"])
        self._waiting.add(worker)
        since = time.strftime("%d %b %H:%M", time.localtime(float(holder["since"])))
        self._run.say(
            f"{node.name}: slot {worker.slot.index} is held by {worker.holder} since {since}:"
            " waiting for it (--no-wait leaves it out)"
        )

    def _on_yields(self, now: float, node: Node, worker: WorkerLink) -> None:
        """Another project's turn: the worker ends, and a new one waits for the slot."""
        worker.state = WorkerState.YIELDING
        node.waiting.pop(worker.slot.index, None)
        self._run.scheduler.slot_gone(now, worker.place)
        self._run.journal.event("worker", node=node.name, slot=worker.slot.index, state="yields")

    @property
    def waiting(self) -> bool:
        """Whether a slot is waited for that another project fills."""
        self._waiting = {
            worker
            for worker in self._waiting
            if worker.state is WorkerState.WAITING and self._node_of(worker)
        }
        return bool(self._waiting)

    def _on_hello(
        self, now: float, node: Node, worker: WorkerLink, hello: Mapping[str, Any]
    ) -> None:
        if worker.state not in (WorkerState.STARTING, WorkerState.WAITING):
            return  # a second hello would free a busy slot
        if "refused" in hello:
            self._lose_slot(now, node, worker, str(hello["refused"]))
            return
        worker.log, worker.state = str(hello.get("log", "")), WorkerState.READY
        self._starts.pop(worker.place, None)
        speed = hello.get("speed")
        if not node.is_open:
            self._nodes.opened(now, node, speed)
        self.free(now, worker, speed / node.measured if speed and node.measured else None)

    def _lose_slot(self, now: float, node: Node, worker: WorkerLink, why: str) -> None:
        """The slot gets no worker any more; a node without a slot is left out."""
        self._run.say(f"{node.name}: slot {worker.slot.index} is left out: {why}")
        worker.state = WorkerState.ENDING
        node.gone.add(worker.slot.index)
        node.waiting.pop(worker.slot.index, None)
        if node.is_open:
            self._run.scheduler.slot_gone(now, worker.place)
        if len(node.gone) == len(node.plan.slots):
            self._nodes.lose(now, node, f"{node.name}: {why}", transient=False)

    def _on_done(
        self, now: float, node: Node, worker: WorkerLink, message: Mapping[str, Any]
    ) -> None:
        job = self._run.jobs[message["done"]]
        if "yields" not in message:
            self.free(now, worker)
        self._run.progress.pop(job.id, None)
        self._run.keep_log(job.id, message)
        self._arrivals.trained(now, job, node, message)

    def _on_failed(
        self, now: float, node: Node, worker: WorkerLink, message: Mapping[str, Any]
    ) -> None:
        run, job = self._run, self._run.jobs[message["failed"]]
        if run.data_are_new():
            return
        cause, text = message.get("cause"), str(message.get("error"))
        # already cancelled: ignore its outcome; the job may run elsewhere on the node
        if run.scheduler.job_at(worker.place) != job.id:
            cause = "gpu_gone" if cause == "gpu_gone" else "cancelled"
        elif cause == "cancelled":
            cause, text = "", f"{node.name}: its worker gave up a job that was not cancelled"
        if cause != "cancelled":
            run.progress.pop(job.id, None)
            run.keep_log(job.id, message)
        if cause == "base_missing" and self._send_again(job, node, worker, text):
            return
        node.failed += cause != "cancelled"
        self._count_failure(now, job.id, node, worker, str(cause), text)
        if cause == "gpu_gone":
            self._lose_gpu(now, node, worker, text)
        elif "yields" not in message:
            self.free(now, worker)

    def _count_failure(
        self, now: float, job: str, node: Node, worker: WorkerLink, cause: str, text: str
    ) -> None:
        scheduler = self._run.scheduler
        if cause in ("error", "base_missing"):
            scheduler.job_error(now, job, node.name, text)
        elif cause == "out_of_memory":
            scheduler.job_killed(now, job, node.name, text)
        elif cause == "out_of_gpu_memory":
            taken = scheduler.out_of_gpu_memory(now, job, node.name, str(worker.slot.gpu))
            if taken and taken != worker.place and (other := node.workers.get(taken.number)):
                other.state = WorkerState.ENDING
                other.end()
        elif cause != "cancelled":
            scheduler.node_fault(now, job, node.name, text)

    def _send_again(self, job: Job, node: Node, worker: WorkerLink, text: str) -> bool:
        """A base model is damaged on the node, or absent: send it and start the job again, in its
        slot.
        """
        base = job.needs
        self._resent[job.id] = self._resent.get(job.id, 0) + 1
        if base is None or node.shared or self._resent[job.id] > RESENDS:
            return False
        self._run.say(f"{node.name}: {text}: it is sent again")
        self._run.journal.event("resent", node=node.name, base=base, job=job.id, cause=text)
        node.holds.discard(base)
        self._run.scheduler.base_lost(node.name, base)
        if node.wait(job.id, worker.slot.index, [base]):
            node.threads.send_bases([base], damaged=True)
        return True

    def _lose_gpu(self, now: float, node: Node, worker: WorkerLink, why: str) -> None:
        for other in list(node.workers.values()):
            if other.slot.gpu == worker.slot.gpu:
                other.end()
                self._lose_slot(now, node, other, why)

    def on_ended(self, now: float, event: Ended) -> None:
        """A worker has ended. Unless that was expected, its job is lost and its slot gets a new
        worker.
        """
        worker, node = event.worker, self._node_of(event.worker)
        if node is None:
            return
        del node.workers[worker.slot.index]
        if worker.state is WorkerState.YIELDING and event.code is not None:
            node.threads.start_worker(worker.slot)
        if worker.is_leaving:
            return
        if event.code is None:
            why = f"{node.name}: connection lost ({event.words or 'no answer'})"
            self._nodes.lose(now, node, why, transient=True)
            return
        how = f"its worker died ({_exit(event.code)})" + (f": {event.words}" if event.words else "")
        self._job_died(now, node, event, how)
        self._restart(now, node, worker, how)

    def _job_died(self, now: float, node: Node, event: Ended, how: str) -> None:
        run, slot = self._run, event.worker.place
        job = run.scheduler.job_at(slot) if node.is_open else None
        run.journal.event(
            "worker", node=node.name, slot=slot.number, state="ended", cause=how, job=job
        )
        if job:
            node.waiting.pop(slot.number, None)
            node.failed += 1
            run.progress.pop(job, None)
            run.keep_log(job, {"log": event.log or event.words})
            run.scheduler.job_killed(now, job, node.name, how)
        elif node.is_open:
            # it gets no job until its next worker says hello
            run.scheduler.slot_gone(now, slot)

    def _restart(self, now: float, node: Node, worker: WorkerLink, how: str) -> None:
        if worker.state is WorkerState.STARTING:
            self._starts[worker.place] = self._starts.get(worker.place, 0) + 1
            if self._starts[worker.place] >= STARTS:
                self._lose_slot(now, node, worker, how)
                return
        node.threads.start_worker(worker.slot)


def _exit(code: int) -> str:
    if code <= 128:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(code - 128).name
    return f"signal {code - 128}"
