"""Drives a run: tells the scheduler what happens on the nodes and does what it decides. One thread, one queue of events; the nodes' threads do what blocks."""

from __future__ import annotations

import contextlib
import queue
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.cluster import scheduler as plan
from common.cluster.config import ClusterConfig, Server, load_config
from common.cluster.connection import manual_rsync_command
from common.cluster.estimates import Estimates, kind
from common.cluster.home import Home
from common.cluster.journal import Journal
from common.cluster.node import BaseArrived, Ended, Event, Fetched, Joined, Left, Needs, Node, Said, Seen, WorkerLink
from common.cluster.scheduler import Scheduler, Slot
from common.errors import InputError, ProjectError
from common.jobs import Job
from common.paths import BASE_MODELS, Paths
from common.reuse import State

CONFIG_SECONDS = 2.0  # how often cluster_config.json is looked at
SEEN_SECONDS = 30.0  # how long the first jobs wait to hear what all nodes have already published
REJOIN_SECONDS = (5.0, 60.0)  # first and longest pause before a lost node is tried again
RESENDS = 2  # of a base model that a node finds damaged, for one job
STARTS = 3  # of a worker in a row that never said hello


@dataclass(frozen=True)
class Work:
    """What is to be run, already planned. `scripts`: by job kind, the script's file name."""

    bases: Sequence[Job]  # one for each distinct training
    siblings: Mapping[str, Sequence[Job]]  # by its hash: jobs with the same training key
    others: Sequence[Job]  # fine-tunes, or the jobs of somebody else's script
    waiting: frozenset[str]  # fine-tunes that may turn out to be done once their base is there
    scripts: Mapping[str, str]
    retrain: bool = False


@dataclass
class Outcome:
    """How the jobs of a run ended. `failed`: by job, (cause, log)."""

    done: int = 0
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    interrupted: bool = False
    why: str = ""

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 130 interrupted."""
        return 130 if self.interrupted else int(bool(self.failed or self.blocked or self.left))


class Runner:
    """One run. `say` takes lines for a person, `show` the status; `interrupts` is raised by the signal handlers of the script."""

    def __init__(
        self, paths: Paths, config_path: Path, config: ClusterConfig, work: Work, needs: Needs, home: Home, journal: Journal, estimates: Estimates,
        settings: plan.Settings, say: Callable[[str], None], show: Callable[[dict[str, Any]], None], *, push_all: bool = False, patience: float = SEEN_SECONDS,
    ) -> None:  # fmt: skip
        self.paths, self.config_path, self.config, self.work, self.needs = paths, config_path, config, work, needs
        self.home, self.journal, self.estimates, self.say, self.show = home, journal, estimates, say, show
        self.interrupts = 0  # 1: finish what runs; 2: stop now
        self._push_all, self._patience = push_all, patience
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._arrived: deque[Callable[[], object]] = deque()
        self._jobs = {job.id: job for job in (*work.bases, *work.others)}
        self._trained_as = {sibling.id: base for base, siblings in work.siblings.items() for sibling in siblings}
        self._scheduler = Scheduler(settings)
        self._nodes: dict[str, Node] = {}
        self._unseen: set[str] = set()
        self._rejoin: dict[str, tuple[float, float]] = {}  # node -> (when, pause)
        self._dead: set[str] = set()  # nodes that cannot work and are not tried again
        self._pending: dict[tuple[str, str], list[tuple[str, Slot]]] = {}  # (node, base on its way) -> what waits for it
        self._found: dict[str, set[str]] = {}  # base -> experiments found on nodes that can be judged when it is there
        self._ending: set[WorkerLink] = set()
        self._greeted: set[WorkerLink] = set()
        self._starts: dict[tuple[str, int], int] = {}
        self._resent: dict[str, int] = {}
        self._progress: dict[str, dict[str, Any]] = {}
        self._bytes: dict[str, int] = {}
        self._per_node: dict[str, dict[str, int]] = {}
        self._logs: dict[str, str] = {}
        self._began = self._beat_at = self._config_at = time.monotonic()
        self._config_identity = _identity(config_path)
        self.outcome = Outcome()

    # -- the loop ---------------------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Run to the end. Raises OSError when the head's own disk fails."""
        now = time.monotonic()
        self._scheduler.add_jobs(now, [self._planned(job) for job in (*self.work.bases, *self.work.others)])
        self.journal.event("start", jobs=len(self._jobs), nodes=[server.name for server in self.config.servers])
        for server in self.config.servers:
            self._add(server)
        try:
            while not self._is_over():
                self._take_events()
                self._periodic(time.monotonic())
                self._decide(time.monotonic())
                self._take_result()
                self._publish_status()
        finally:
            self._stop()
        return self._conclude()

    def _planned(self, job: Job) -> plan.Job:
        needs = self._trained_as.get(job.needs, job.needs) if job.needs else None
        return plan.Job(job.id, max(1e-3, self.estimates.seconds(job)), kind(job), needs if needs in self._jobs else None, job.needs, self._base_bytes(job))

    def _base_bytes(self, job: Job) -> int:
        if job.needs:
            with contextlib.suppress(OSError):
                return self.paths.base_weights(job.needs).stat().st_size
        return 100_000 if job.needs else 0

    def _is_over(self) -> bool:
        if self.interrupts >= 2:
            return True
        nobody = bool(self._nodes) and not self._unseen and not self._rejoin and all(name in self._dead for name in self._nodes)
        if nobody:
            self.outcome.why = "no node is left that can work"
        return nobody or self._scheduler.over

    def _take_events(self) -> None:
        """All events there are; a short wait when there is nothing else to do."""
        with contextlib.suppress(queue.Empty):
            event = self._events.get_nowait() if self._arrived else self._events.get(timeout=0.2)
            while True:
                self._handle(event)
                event = self._events.get_nowait()

    def _take_result(self) -> None:
        """Verify one result that has come home. One at a time: a slot that has become free does not wait for the head to read files."""
        if self._arrived:
            self._arrived.popleft()()

    def _periodic(self, now: float) -> None:
        if self.interrupts == 1:
            self._scheduler.stop_starting()
        if now - self._beat_at >= self.config.heartbeat_seconds:
            self._beat_at = now
            for node in self._nodes.values():
                for worker in list(node.workers.values()):
                    worker.send({"beat": 0})
        if now - self._config_at >= CONFIG_SECONDS:
            self._config_at = now
            self._reread_config(now)
        for name, (when, _) in list(self._rejoin.items()):
            if now >= when:
                self._rejoin[name] = (float("inf"), self._rejoin[name][1])
                self._nodes[name].join()
        self._scheduler.tick(now)

    def _decide(self, now: float) -> None:
        if not self._unseen or now - self._began > self._patience:
            for assignment in self._scheduler.assign(now):
                self._dispatch(now, assignment)
        for cancelled in self._scheduler.cancellations():
            self._cancel(now, cancelled)
        for change in self._scheduler.changes():
            self._note(now, change)

    def _stop(self) -> None:
        for node in self._nodes.values():
            node.stop()
        deadline = time.monotonic() + 5
        while any(node.workers for node in self._nodes.values()) and time.monotonic() < deadline:
            self._take_events()
        shutil.rmtree(self.paths.incoming, ignore_errors=True)

    def _conclude(self) -> Outcome:
        outcome, counts = self.outcome, self._scheduler.counts()
        outcome.done, outcome.interrupted = counts[plan.State.DONE], self.interrupts > 0
        for job in self._jobs:
            state = self._scheduler.state(job)
            if state is plan.State.FAILED:
                outcome.failed[job] = (self._scheduler.cause(job), self._logs.get(job, ""))
            elif state is plan.State.BLOCKED:
                outcome.blocked.append(job)
            elif state is not plan.State.DONE:
                outcome.left.append(job)
        if self._scheduler.given_up:
            outcome.why = f"no node could work for {self._scheduler.settings.no_node_limit:.0f} s"
        self.journal.event("end", done=outcome.done, failed=len(outcome.failed), blocked=len(outcome.blocked), left=len(outcome.left))
        self._publish_status(force=True)
        return outcome

    # -- nodes ------------------------------------------------------------------------------------------------------------------------

    def _add(self, server: Server) -> None:
        node = Node(server, self.paths, self.config, self.needs, self._events.put)
        self._nodes[node.name] = node
        self._unseen.add(node.name)
        self._per_node[node.name] = {"done": 0, "failed": 0}
        node.join()

    def _reread_config(self, now: float) -> None:
        identity = _identity(self.config_path)
        if identity != self._config_identity:
            self._config_identity = identity
            try:
                config = load_config(self.config_path)
            except ProjectError as error:
                self.say(f"the changed configuration is not used: {error}")
                return
            wanted = {server.name: server for server in config.servers}
            for name, node in self._nodes.items():
                if wanted.get(name) != node.server:
                    self.say(f"{name}: removed or changed in {self.config_path.name}: its running jobs finish, nothing new starts there")
                    self._scheduler_drain(now, name)
            self.config = config
        self._finish_drains(now)

    def _scheduler_drain(self, now: float, name: str) -> None:
        self._rejoin.pop(name, None)
        self._unseen.discard(name)
        with contextlib.suppress(KeyError):  # it never joined
            self._scheduler.drain_node(now, name)
        self._dead.add(name)

    def _finish_drains(self, now: float) -> None:
        wanted = {server.name: server for server in self.config.servers}
        for name, node in list(self._nodes.items()):
            if wanted.get(name) != node.server and not self._jobs_on(name):
                with contextlib.suppress(KeyError):
                    self._scheduler.close_node(now, name, "removed from the configuration")
                node.stop()
                del self._nodes[name]
                self._dead.discard(name)
        for name, server in wanted.items():
            if name not in self._nodes:
                self.say(f"{name}: joins")
                self._add(server)

    def _jobs_on(self, name: str) -> bool:
        with contextlib.suppress(KeyError):
            return bool(self._scheduler.jobs_on(name))
        return False

    def _on_seen(self, now: float, event: Seen) -> None:
        name = event.node.name
        for note in event.notes:
            self.say(note)
        for job in event.found:
            base = self._trained_as.get(job, job) if "/" not in job else job
            if base in self._jobs and self._scheduler.state(base) is not plan.State.DONE and not self.work.retrain and base == job:
                event.node.fetch(job, urgent=False)
        self._unseen.discard(name)

    def _on_joined(self, now: float, event: Joined) -> None:
        node = event.node
        self._rejoin.pop(node.name, None)
        trusted = node.shared or self.needs.trusted
        self._scheduler.add_node(now, node.name, holds=self._published_bases() if trusted else ())
        self.journal.event("node", node=node.name, state="joined", slots=len(node.plan.slots))
        if self._push_all and not trusted:
            for base in self._published_bases():
                node.send_base(base)

    def _published_bases(self) -> list[str]:
        return [base for base in {job.needs for job in self.work.others if job.needs} if self.paths.base_metadata(base).is_file()]

    def _on_left(self, now: float, event: Left) -> None:
        node = event.node
        first = node.name in self._unseen
        self._unseen.discard(node.name)
        pause = self._rejoin.get(node.name, (0.0, REJOIN_SECONDS[0]))[1]
        self.journal.event("node", node=node.name, state="left", cause=event.reason)
        if first:
            self.say(f"left out: {event.reason}")
            self.say(f"  its base models by hand: {manual_rsync_command(node.server, BASE_MODELS)}")
        with contextlib.suppress(KeyError):
            self._scheduler.close_node(now, node.name, event.reason)
        if event.transient and node.name not in self._dead and any(other.workers for other in self._nodes.values()) | (not first):
            self._rejoin[node.name] = (now + pause, min(2 * pause, REJOIN_SECONDS[1]))
        else:
            self._rejoin.pop(node.name, None)
            self._dead.add(node.name)

    def _lose(self, now: float, node: Node) -> None:
        """A node was closed: end what we have there, try again later."""
        node.close()
        for key in [key for key in self._pending if key[0] == node.name]:
            del self._pending[key]
        if node.name not in self._dead and node.name not in self._rejoin:
            self._rejoin[node.name] = (now + REJOIN_SECONDS[0], REJOIN_SECONDS[0])

    # -- what happens -----------------------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        now = time.monotonic()
        handlers: dict[type, Callable[[float, Any], None]] = {
            Seen: self._on_seen, Joined: self._on_joined, Left: self._on_left, Said: self._on_said, Ended: self._on_ended,
            BaseArrived: self._on_base_arrived, Fetched: self._on_fetched,
        }  # fmt: skip
        handlers[type(event)](now, event)

    def _on_said(self, now: float, event: Said) -> None:
        worker, message = event.worker, event.message
        name, slot = worker.node.name, Slot(worker.node.name, worker.slot.index)
        if worker in self._ending or worker.node.workers.get(worker.slot.index) is not worker:
            return
        with contextlib.suppress(KeyError):
            self._scheduler.heartbeat(now, name)
        if "hello" in message:
            self._on_hello(now, worker, slot, message["hello"])
        elif "progress" in message and message["progress"] in self._jobs:
            self._progress[message["progress"]] = {**message, "node": name}
        elif "done" in message and message["done"] in self._jobs:
            self._on_done(now, worker, slot, message)
        elif "failed" in message and message["failed"] in self._jobs:
            self._on_failed(now, worker, slot, message)

    def _on_hello(self, now: float, worker: WorkerLink, slot: Slot, hello: Mapping[str, Any]) -> None:
        if "refused" in hello:
            self.say(f"{slot.node}: {hello['refused']}: this slot is left out")
            self._ending.add(worker)
            self._scheduler.slot_gone(now, slot)
            if not any(other is not worker and other not in self._ending for other in worker.node.workers.values()):
                self._on_left(now, Left(worker.node, f"{slot.node}: {hello['refused']}", False))
            return
        worker.log = str(hello.get("log", ""))
        self._greeted.add(worker)
        self._starts.pop(slot, None)
        self._free(now, worker, slot)

    def _free(self, now: float, worker: WorkerLink, slot: Slot) -> None:
        if not self._scheduler.slot_free(now, slot, worker.slot.gpu):
            self._ending.add(worker)
            worker.end()

    def _on_done(self, now: float, worker: WorkerLink, slot: Slot, message: Mapping[str, Any]) -> None:
        job, node, result = self._jobs[message["done"]], worker.node, message.get("result") or {}
        self._free(now, worker, slot)
        self._progress.pop(job.id, None)
        seconds = float(message.get("seconds", 0))
        if not result.get("reused") and not result.get("resumed"):
            self._scheduler.observe(job.id, node.name, max(seconds, 1e-3))
        self._keep_log(job.id, message)
        if job.kind == "script":
            self._finished(now, job, node.name, seconds)
        elif node.shared:
            self._arrived.append(partial(self._accept, now, job, node, self.paths, seconds))
        else:
            node.fetch(job.id, urgent=job.kind == "base")

    def _on_failed(self, now: float, worker: WorkerLink, slot: Slot, message: Mapping[str, Any]) -> None:
        job, node, cause, text = self._jobs[message["failed"]], worker.node.name, message.get("cause"), str(message.get("error"))
        self._progress.pop(job.id, None)
        self._keep_log(job.id, message)
        if cause != "cancelled":
            self._per_node[node]["failed"] += 1
        if cause == "error":
            self._scheduler.job_error(now, job.id, node, text)
        elif cause == "base_missing":
            self._resend(now, job, node, text)
        elif cause == "out_of_memory":
            self._scheduler.job_killed(now, job.id, node, text)
        elif cause == "out_of_gpu_memory":
            taken = self._scheduler.out_of_gpu_memory(now, job.id, node, str(worker.slot.gpu))
            if taken and taken != slot and (other := worker.node.workers.get(taken.number)):
                self._ending.add(other)
                other.end()
        elif cause != "cancelled":
            self._scheduler.node_fault(now, job.id, node, text)
        if cause == "gpu_gone":
            self._lose_gpu(now, worker)
        else:
            self._free(now, worker, slot)

    def _resend(self, now: float, job: Job, node: str, text: str) -> None:
        self._resent[job.id] = self._resent.get(job.id, 0) + 1
        if job.needs and self._resent[job.id] <= RESENDS and not self._nodes[node].shared:
            self._scheduler.base_lost(node, job.needs)
            self._scheduler.node_fault(now, job.id, node, text)
            self.say(f"{node}: {text}: it is sent again")
        else:
            self._scheduler.job_error(now, job.id, node, text)

    def _lose_gpu(self, now: float, worker: WorkerLink) -> None:
        for other in list(worker.node.workers.values()):
            if other.slot.gpu == worker.slot.gpu:
                self._ending.add(other)
                other.end()
                self._scheduler.slot_gone(now, Slot(worker.node.name, other.slot.index))

    def _on_ended(self, now: float, event: Ended) -> None:
        worker, node = event.worker, event.worker.node
        slot = Slot(node.name, worker.slot.index)
        current = node.workers.get(worker.slot.index) is worker
        if current:
            del node.workers[worker.slot.index]
        if not current or worker in self._ending or self.interrupts >= 2:
            self._ending.discard(worker)
            return
        if event.code is None:
            self._scheduler.close_node(now, node.name, f"connection lost ({event.words or 'no answer'})")
            return
        job = self._scheduler.job_at(slot)
        how = f"its worker died ({_exit(event.code)})" + (f": {event.words}" if event.words else "")
        self.journal.event("worker", node=node.name, slot=worker.slot.index, state="ended", cause=how, job=job)
        if job:
            self._progress.pop(job, None)
            self._keep_log(job, {"log": event.words})
            self._per_node[node.name]["failed"] += 1
            self._scheduler.job_killed(now, job, node.name, how)
        self._restart(now, worker, slot, how)

    def _restart(self, now: float, worker: WorkerLink, slot: Slot, how: str) -> None:
        if worker not in self._greeted:
            self._starts[slot] = self._starts.get(slot, 0) + 1
            if self._starts[slot] >= STARTS:
                self.say(f"{slot.node}: slot {slot.number} is left out: {how}")
                self._scheduler.slot_gone(now, slot)
                if not worker.node.workers:
                    self._on_left(now, Left(worker.node, f"{slot.node}: {how}", False))
                return
        worker.node.start_worker(worker.slot)

    def _on_base_arrived(self, now: float, event: BaseArrived) -> None:
        name = event.node.name
        self._bytes[name] = self._bytes.get(name, 0) + event.bytes
        waiting = self._pending.pop((name, event.base), [])
        if event.error:
            self.say(f"{event.error}; by hand: {manual_rsync_command(event.node.server, BASE_MODELS)}")
            self.journal.event("sync", node=name, base=event.base, error=event.error)
        else:
            self.journal.event("sync", node=name, base=event.base, bytes=event.bytes)
            with contextlib.suppress(KeyError):
                self._scheduler.base_arrived(name, event.base)
        for job, slot in waiting:
            worker = event.node.workers.get(slot.number)
            if worker is None:
                continue
            if event.error:
                self._scheduler.node_fault(now, job, name, event.error)
                self._free(now, worker, slot)
            elif self._scheduler.job_at(slot) == job:
                self._start(now, job, slot)
            else:
                self._free(now, worker, slot)

    def _on_fetched(self, now: float, event: Fetched) -> None:
        name = event.node.name
        self._bytes[name] = self._bytes.get(name, 0) + event.bytes
        for job in event.jobs:
            if event.error:
                with contextlib.suppress(KeyError):
                    self._scheduler.node_fault(now, job, name, event.error)
            else:
                self._arrived.append(partial(self._accept, now, self._jobs[job], event.node, Paths(event.root), None))
        if event.root != self.paths.root:
            self._arrived.append(partial(shutil.rmtree, event.root, ignore_errors=True))

    # -- what is done -----------------------------------------------------------------------------------------------------------------

    def _accept(self, now: float, job: Job, node: Node, root: Paths, seconds: float | None) -> None:
        ran_there = node.name in self._scheduler.copies(job.id)
        if self._scheduler.state(job.id) is plan.State.DONE:
            self._scheduler.finished(now, job.id, node.name)
            return
        if refused := self.home.accept(job, root):
            if ran_there:
                self.journal.event("refused", job=job.id, node=node.name, cause=refused)
                self._scheduler.finished(now, job.id, node.name, verified=False)
            elif job.needs and not self.paths.base_metadata(job.needs).is_file():
                self._found.setdefault(job.needs, set()).add(job.id)
            return
        self._finished(now, job, node.name, seconds)
        if job.kind == "base":
            self._base_is_home(now, job)

    def _finished(self, now: float, job: Job, node: str, seconds: float | None) -> None:
        if self._scheduler.finished(now, job.id, node):
            counts = self._per_node.setdefault(node, {"done": 0, "failed": 0})
            counts["done"] += 1
            self.journal.event("done", job=job.id, node=node, kind=kind(job), seconds=seconds, work=self.estimates.work(job))

    def _base_is_home(self, now: float, job: Job) -> None:
        hashes = [job.id, *(sibling.id for sibling in self.work.siblings.get(job.id, ()))]
        for node in self._nodes.values():
            if node.shared:
                for base in hashes:
                    with contextlib.suppress(KeyError):
                        self._scheduler.base_arrived(node.name, base)
        for base in hashes:
            for node in self._nodes.values():
                for found in self._found.get(base, ()):
                    if not node.shared:
                        node.fetch(found, urgent=False)
        for other in self.work.others:
            if other.needs in hashes and other.id in self.work.waiting and self.home.judge(other, self.paths).state is State.DONE:
                self._scheduler.finished(now, other.id, "head")
                self.journal.event("reused", job=other.id)

    def _keep_log(self, job: str, message: Mapping[str, Any]) -> None:
        if text := str(message.get("log") or ""):
            self._logs[job] = self.journal.job_log(job, text)

    # -- what is decided --------------------------------------------------------------------------------------------------------------

    def _dispatch(self, now: float, assignment: plan.Assignment) -> None:
        job, slot, base = assignment
        if base is None:
            self._start(now, job, slot)
            return
        waiting = self._pending.setdefault((slot.node, base), [])
        waiting.append((job, slot))
        if len(waiting) == 1:
            self._nodes[slot.node].send_base(base)

    def _start(self, now: float, job: str, slot: Slot) -> None:
        node, planned = self._nodes[slot.node], self._jobs[job]
        worker = node.workers.get(slot.number)
        if worker is None:  # it ended a moment ago; its end is told next
            return
        values = dict(planned.values)
        if planned.kind == "finetune" and not node.shared:
            values["overwrite"] = True  # a node's folder is only a place to work in
        if self.work.retrain:
            values["_retrain"] = True
        worker.send({"job": job, "script": self.work.scripts[planned.kind], "values": values})
        self._scheduler.started(now, job, slot.node)
        self.journal.event("started", job=job, node=slot.node, slot=slot.number)

    def _cancel(self, now: float, cancelled: plan.Cancellation) -> None:
        if cancelled.slot is None:
            return
        for waiting in self._pending.values():
            if (cancelled.job, cancelled.slot) in waiting:
                return  # seen when the base arrives
        worker = self._nodes[cancelled.node].workers.get(cancelled.slot.number)
        if worker is not None:
            worker.send({"cancel": cancelled.job})

    def _note(self, now: float, change: plan.Change) -> None:
        if change.what == "node":
            self.journal.event("node", node=change.name, state=change.state, cause=change.cause)
            if change.state != "open" or change.cause:
                self.say(f"{change.name}: {change.state}" + (f": {change.cause}" if change.cause else ""))
            if change.state == "closed" and change.name in self._nodes:
                self._lose(now, self._nodes[change.name])
            return
        if change.state == plan.State.FAILED.value:
            log = self._logs.get(change.name, "")
            self.say(f"failed: {change.name}: {change.cause}" + (f" (log: {log})" if log else ""))
            self.journal.event("failed", job=change.name, error=change.cause, log=log)
        elif change.state == plan.State.BLOCKED.value:
            self.journal.event("blocked", job=change.name, error=change.cause)
        elif change.cause:
            self.journal.event("job", job=change.name, state=change.state, cause=change.cause)

    # -- what is shown ----------------------------------------------------------------------------------------------------------------

    def _publish_status(self, *, force: bool = False) -> None:
        status = self.status()
        self.journal.status(status, force=force)
        self.show(status)

    def status(self) -> dict[str, Any]:
        """What --status and the bar show."""
        now = time.monotonic()
        phases = {name: {state.value: number for state, number in self._scheduler.counts(name).items()} for name in self._scheduler.kinds()}
        return {
            "phases": phases,
            "time_left": self._scheduler.time_left(now),
            "elapsed": now - self._began,
            "nodes": [self._node_status(node, now) for node in self._nodes.values()],
            "ended": self._is_over(),
        }

    def _node_status(self, node: Node, now: float) -> dict[str, Any]:
        try:
            state, jobs = self._scheduler.node_state(node.name), self._scheduler.jobs_on(node.name)
        except KeyError:
            state, jobs = "left out" if node.name in self._dead else "connecting", []
        running = [{"job": job, **{key: self._progress.get(job, {}).get(key) for key in ("epoch", "of")}} for job in jobs]
        rate = self._bytes.get(node.name, 0) / max(1.0, now - self._began)
        return {
            "name": node.name, "state": state, "slots": len(node.plan.slots), "running": running, **self._per_node.get(node.name, {}),
            "bytes": self._bytes.get(node.name, 0), "bytes_per_second": rate,
        }  # fmt: skip


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _exit(code: int) -> str:
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"
