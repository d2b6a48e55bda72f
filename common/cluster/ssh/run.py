"""Drives a run: tells the scheduler what happens on the nodes and does what it decides. One thread,
one queue of events; the nodes' threads do what blocks.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.cluster.config import ClusterConfig, Server, load_config
from common.cluster.estimates import Estimates, kind
from common.cluster.journal import Journal
from common.cluster.results import Home
from common.cluster.scheduler import scheduler as plan
from common.cluster.scheduler.scheduler import Scheduler, SlotId
from common.cluster.ssh.node import (
    Arrived,
    Broken,
    Ended,
    Event,
    Fetched,
    Joined,
    Left,
    Node,
    Said,
    Seen,
    WorkerLink,
)
from common.cluster.ssh.nodes import REJOIN_SECONDS, Item, Member, Waiting
from common.cluster.ssh.payload import Needs
from common.cluster.transport.connection import manual_rsync_command
from common.cluster.work import Outcome, Say, Show, Work
from common.errors import ProjectError
from common.jobs.inputs import beside_files, data_files, path_of
from common.jobs.job_files import Job
from common.jobs.verdicts import State
from common.paths import BASE_MODELS, Paths

CONFIG_SECONDS = 2.0  # how often cluster_config.json is looked at
SEEN_SECONDS = 30.0  # how long the first jobs wait to hear what all nodes have already published
RESENDS = 2  # of a base model that a node finds damaged or lacks, for one job
END_SECONDS = 5.0  # that workers have to end themselves when the run is over
STARTS = 3  # of a worker in a row that never said hello
SILENCE = ("heartbeat_seconds", "suspect_seconds", "close_seconds")
AT_ONCE = 1_000  # events that are handled before everything else is looked at again


class Runner:
    """One run. `say` takes lines for a person, `show` the status; `interrupts` is raised by the
    signal handlers of the script.
    """

    def __init__(
        self,
        paths: Paths,
        config_path: Path,
        config: ClusterConfig,
        work: Work,
        needs: Needs,
        home: Home,
        journal: Journal,
        estimates: Estimates,
        limits: plan.Limits,
        say: Say,
        show: Show,
        *,
        push_all: bool = False,
        patience: float = SEEN_SECONDS,
    ) -> None:
        self.paths, self.config_path, self.config, self.work, self.needs = (
            paths,
            config_path,
            config,
            work,
            needs,
        )
        self.home, self.journal, self.estimates, self.say, self.show = (
            home,
            journal,
            estimates,
            say,
            show,
        )
        self.interrupts = 0  # 1: finish what runs; 2: stop now
        self._stopping = False
        self._push_all, self._patience = push_all, patience
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._arrived: deque[Callable[[], object]] = deque()
        self._jobs = {job.id: job for job in (*work.bases, *work.others)}
        self._trained_as = {
            sibling.id: base for base, siblings in work.siblings.items() for sibling in siblings
        }
        self._scheduler = Scheduler(limits)
        self._members: dict[str, Member] = {}
        self._worked = False  # a worker has spoken
        # base -> (node, experiment found there), to be judged when it is here
        self._found: dict[str, set[tuple[str, str]]] = {}
        self._ending: set[WorkerLink] = set()
        self._greeted: set[WorkerLink] = set()
        self._starts: dict[SlotId, int] = {}
        self._resent: dict[str, int] = {}
        self._seconds: dict[str, float] = {}  # of jobs whose results are on their way
        self._progress: dict[str, dict[str, Any]] = {}
        self._logs: dict[str, str] = {}
        self._began = self._beat_at = self._config_at = time.monotonic()
        self._config_identity = _identity(config_path)
        self.outcome = Outcome()

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
        self._scheduler.add_jobs(
            time.monotonic(), [self._planned(job) for job in (*self.work.bases, *self.work.others)]
        )
        self.journal.event(
            "start", jobs=len(self._jobs), nodes=[server.name for server in self.config.servers]
        )
        for server in self.config.servers:
            self._add(server)

    def _turn(self) -> None:
        self._take_events()
        self._periodic(time.monotonic())
        self._decide(time.monotonic())
        self._take_result()
        self._publish_status()

    def _planned(self, job: Job) -> plan.PlannedJob:
        needs = self._trained_as.get(job.needs, job.needs) if job.needs else None
        return plan.PlannedJob(
            job.id,
            max(1e-3, self.estimates.seconds(job)),
            kind(job),
            needs if needs in self._jobs else None,
            job.needs,
            self._base_bytes(job),
        )

    def _base_bytes(self, job: Job) -> int:
        if job.needs:
            with contextlib.suppress(OSError):
                return self.paths.base_weights(job.needs).stat().st_size
        return 100_000 if job.needs else 0

    def _is_over(self) -> bool:
        if self.interrupts >= 2:
            return True
        if self._members and not any(self._may_work(member) for member in self._members.values()):
            self.outcome.why = "no node is left that can work"
            return True
        return self._scheduler.over and not (
            self._push_all and not self.interrupts and self._pushing()
        )

    def _may_work(self, member: Member) -> bool:
        """A node that was lost is waited for, but not where none has worked at all."""
        return (
            not member.tried
            or member.stage in ("joined", "open")
            or (member.stage in ("joining", "lost") and self._worked)
        )

    def _pushing(self) -> bool:
        return any(member.coming for member in self._members.values())

    def _take_events(self) -> None:
        """The events there are; a short wait when there is nothing else to do."""
        wait = 0.0 if self._arrived else 0.2
        with contextlib.suppress(queue.Empty):
            for _ in range(AT_ONCE):
                self._handle(self._events.get(timeout=wait))
                wait = 0.0

    def _take_result(self) -> None:
        """Verify one result that has come home. One at a time: a slot that has become free does not
        wait for the head to read files.
        """
        if self._arrived:
            self._arrived.popleft()()

    def _periodic(self, now: float) -> None:
        if self.interrupts == 1 and not self._stopping:
            self._stopping = True
            self._scheduler.stop_starting()
            self.say(
                "running jobs finish, nothing new starts; Ctrl-C again stops now (everything can be"
                " resumed)"
            )
        if now - self._beat_at >= self.config.heartbeat_seconds:
            self._beat_at = now
            for member in self._members.values():
                for worker in list(member.node.workers.values()):
                    worker.send({"beat": 0})
            self._end_frozen(now)
        if now - self._config_at >= CONFIG_SECONDS:
            self._config_at = now
            self._reread_config(now)
        for member in self._members.values():
            if member.stage == "lost" and now >= member.again_at and not member.draining:
                member.stage = "joining"
                member.node.join()
        self._scheduler.tick(now)

    def _end_frozen(self, now: float) -> None:
        """A worker that is silent while others on its node speak is ended. The silence of a whole
        node is the scheduler's matter.
        """
        for member in self._members.values():
            workers = [
                worker
                for worker in member.node.workers.values()
                if worker in self._greeted and worker not in self._ending
            ]
            if member.stage != "open" or all(
                now - worker.heard > self.config.suspect_seconds for worker in workers
            ):
                continue
            for worker in workers:
                if (silent := now - worker.heard) > self.config.close_seconds:
                    threading.Thread(target=worker.kill, daemon=True).start()
                    self._on_ended(
                        now,
                        Ended(worker, 128 + signal.SIGKILL, f"it was silent for {silent:.0f} s"),
                    )

    def _decide(self, now: float) -> None:
        if now - self._began > self._patience or all(
            member.seen and not member.expected for member in self._members.values()
        ):
            for assignment in self._scheduler.assign(now):
                self._dispatch(now, assignment)
        for cancelled in self._scheduler.cancellations():
            self._cancel(now, cancelled)
        for change in self._scheduler.changes():
            self._note(now, change)

    def _stop(self) -> None:
        """End all workers, and wait for their end, so that nothing of ours runs on a node when we
        have gone.
        """
        waited = {
            worker for member in self._members.values() for worker in member.node.workers.values()
        }
        for worker in waited:
            worker.end()
        deadline = time.monotonic() + END_SECONDS
        while waited and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=0.1)
                if isinstance(event, Ended):
                    waited.discard(event.worker)
                elif isinstance(event, Said):
                    event.worker.handled()
        _kill(waited)
        for member in self._members.values():
            member.node.stop()
        shutil.rmtree(self.paths.incoming, ignore_errors=True)

    def _conclude(self) -> Outcome:
        outcome, counts = self.outcome, self._scheduler.counts()
        outcome.done, outcome.interrupted = counts[plan.JobState.DONE], self.interrupts > 0
        for job in self._jobs:
            state = self._scheduler.state(job)
            if state is plan.JobState.FAILED:
                outcome.failed[job] = (self._scheduler.cause(job), self._logs.get(job, ""))
            elif state is plan.JobState.BLOCKED:
                outcome.blocked.append(job)
            elif state is not plan.JobState.DONE:
                outcome.left.append(job)
        if self._scheduler.given_up:
            outcome.why = f"no node could work for {self._scheduler.limits.no_node_limit:.0f} s"
        self.journal.event(
            "end",
            done=outcome.done,
            failed=len(outcome.failed),
            blocked=len(outcome.blocked),
            left=len(outcome.left),
        )
        self._publish_status(force=True)
        return outcome

    # -- nodes

    def _add(self, server: Server) -> None:
        member = Member(Node(server, self.paths, self.config, self.needs, self._events.put))
        self._members[server.name] = member
        member.node.join()

    def _of(self, node: Node) -> Member | None:
        """The member that `node` is now; None for one that was removed."""
        member = self._members.get(node.name)
        return member if member is not None and member.node is node else None

    def _reread_config(self, now: float) -> None:
        identity = _identity(self.config_path)
        if identity is not None and identity != self._config_identity:
            self._config_identity = identity
            try:
                self.config = self._with_our_times(load_config(self.config_path))
            except ProjectError as error:
                self.say(f"the changed configuration is not used: {error}")
                return
            wanted = {server.name: server for server in self.config.servers}
            for name, member in self._members.items():
                if wanted.get(name) != member.node.server and not member.draining:
                    self._drain(now, name, member)
        self._finish_drains(now)

    def _with_our_times(self, config: ClusterConfig) -> ClusterConfig:
        """Workers that run know the times of silence that they were started with."""
        ours = {name: getattr(self.config, name) for name in SILENCE}
        if any(getattr(config, name) != value for name, value in ours.items()):
            self.say(f"{', '.join(SILENCE)}: a change counts from the next run on")
        return config.model_copy(update=ours)

    def _drain(self, now: float, name: str, member: Member) -> None:
        self.say(
            f"{name}: removed or changed in {self.config_path.name}: its running jobs finish,"
            " nothing new starts there"
        )
        member.draining = True
        self.journal.event(
            "node", node=name, state="draining", cause="removed or changed in the configuration"
        )
        with contextlib.suppress(KeyError):  # no worker there has spoken yet
            self._scheduler.drain_node(now, name)

    def _finish_drains(self, now: float) -> None:
        for name, member in list(self._members.items()):
            if member.draining and not self._jobs_on(name):
                with contextlib.suppress(KeyError):
                    self._scheduler.close_node(now, name, "removed from the configuration")
                member.node.stop()
                del self._members[name]
        for server in self.config.servers:
            if server.name not in self._members:
                self.say(f"{server.name}: joins")
                self._add(server)

    def _jobs_on(self, name: str) -> bool:
        with contextlib.suppress(KeyError):
            return bool(self._scheduler.jobs_on(name))
        return False

    def _on_seen(self, now: float, event: Seen) -> None:
        for note in event.notes:
            self.say(note)
        if (member := self._of(event.node)) is None:
            return
        for job in event.found:
            if (
                job in self._jobs
                and self._scheduler.state(job) is not plan.JobState.DONE
                and not self.work.retrain
            ):
                member.expected.add(job)
                event.node.fetch(job, urgent=False)
        member.seen = True

    def _on_joined(self, now: float, event: Joined) -> None:
        if (member := self._of(event.node)) is None:
            return
        member.tried, member.stage, member.lacking = True, "joined", set(event.lacking)
        member.gone.clear()
        self.journal.event(
            "node", node=event.node.name, state="joined", slots=len(event.node.plan.slots)
        )
        if (
            self._push_all
            and not (event.node.shared or self.needs.trusted)
            and (bases := self._published_bases())
        ):
            for base in bases:
                member.coming.setdefault(base, [])
            event.node.send_bases(bases)

    def _published_bases(self) -> list[str]:
        return [
            base
            for base in {job.needs for job in self.work.others if job.needs}
            if self.paths.base_metadata(base).is_file()
        ]

    def _on_left(self, now: float, event: Left) -> None:
        if (member := self._of(event.node)) is None:
            return
        node, was = event.node, member.stage
        self.journal.event("node", node=node.name, state="left", cause=event.reason)
        if not member.tried:
            self.say(f"left out: {event.reason}")
            self.say(f"  its base models by hand: {manual_rsync_command(node.server, BASE_MODELS)}")
        elif was in ("joined", "open"):
            self.say(f"lost: {event.reason}")
        node.close()
        member.lose(now)
        if not event.transient:
            member.stage = "dead"
        if was == "open":
            self._scheduler.close_node(now, node.name, event.reason)

    # -- what happens

    def _handle(self, event: Event) -> None:
        now = time.monotonic()
        handlers: dict[type, Callable[[float, Any], None]] = {
            Seen: self._on_seen,
            Joined: self._on_joined,
            Left: self._on_left,
            Said: self._on_said,
            Ended: self._on_ended,
            Arrived: self._on_arrived,
            Fetched: self._on_fetched,
            Broken: _raise,
        }
        handlers[type(event)](now, event)

    def _on_said(self, now: float, event: Said) -> None:
        worker, message = event.worker, event.message
        worker.handled()
        member, slot = self._of(worker.node), SlotId(worker.node.name, worker.slot.index)
        if (
            member is None
            or worker in self._ending
            or worker.node.workers.get(worker.slot.index) is not worker
        ):
            return
        if member.stage == "open":
            self._scheduler.heartbeat(now, slot.node)
        # a second one would free a slot that is busy
        if "hello" in message and worker not in self._greeted:
            self._on_hello(now, member, worker, message["hello"])
        elif "progress" in message and message["progress"] in self._jobs:
            self._progress[message["progress"]] = {**message, "node": slot.node}
        elif "done" in message and message["done"] in self._jobs:
            self._on_done(now, worker, slot, message)
        elif "failed" in message and message["failed"] in self._jobs:
            self._on_failed(now, member, worker, message)

    def _on_hello(
        self, now: float, member: Member, worker: WorkerLink, hello: Mapping[str, Any]
    ) -> None:
        slot = SlotId(worker.node.name, worker.slot.index)
        if "refused" in hello:
            self._lose_slot(now, member, worker, str(hello["refused"]))
            return
        worker.log = str(hello.get("log", ""))
        self._greeted.add(worker)
        self._starts.pop(slot, None)
        if member.stage != "open":
            # Only now: before its first worker speaks, the silence of a node says nothing.
            trusted = member.node.shared or self.needs.trusted
            holds = self._published_bases() if trusted else member.holds
            self._scheduler.add_node(now, slot.node, self.estimates.speed(slot.node), holds=holds)
            member.stage, member.pause, self._worked = "open", REJOIN_SECONDS[0], True
            if member.draining:
                self._scheduler.drain_node(now, slot.node)
        self._free(now, worker, slot)

    def _lose_slot(self, now: float, member: Member, worker: WorkerLink, why: str) -> None:
        """The slot gets no worker any more; without a slot the node is left out."""
        name = worker.node.name
        self.say(f"{name}: slot {worker.slot.index} is left out: {why}")
        self._ending.add(worker)
        member.gone.add(worker.slot.index)
        member.waiting.pop(worker.slot.index, None)
        if member.stage == "open":
            self._scheduler.slot_gone(now, SlotId(name, worker.slot.index))
        if len(member.gone) == len(worker.node.plan.slots):
            self._on_left(now, Left(worker.node, f"{name}: {why}", False))

    def _free(self, now: float, worker: WorkerLink, slot: SlotId) -> None:
        if worker not in self._ending and not self._scheduler.slot_free(now, slot, worker.slot.gpu):
            self._ending.add(worker)
            worker.end()

    def _on_done(
        self, now: float, worker: WorkerLink, slot: SlotId, message: Mapping[str, Any]
    ) -> None:
        job, node, result = self._jobs[message["done"]], worker.node, message.get("result") or {}
        self._free(now, worker, slot)
        self._progress.pop(job.id, None)
        if not result.get("reused") and not result.get("resumed"):
            self._seconds[job.id] = max(float(message.get("seconds", 0)), 1e-3)
            self._scheduler.observe(job.id, node.name, self._seconds[job.id])
        self._keep_log(job.id, message)
        if job.kind == "script":
            self._finished(now, job, node.name)
        elif node.shared:
            self._arrived.append(partial(self._accept, job, node, self.paths))
        else:
            node.fetch(job.id, urgent=job.kind == "base")

    def _on_failed(
        self, now: float, member: Member, worker: WorkerLink, message: Mapping[str, Any]
    ) -> None:
        job, cause, text = (
            self._jobs[message["failed"]],
            message.get("cause"),
            str(message.get("error")),
        )
        node, slot = worker.node.name, SlotId(worker.node.name, worker.slot.index)
        # cancelled meanwhile: what became of it says nothing, and the job may run elsewhere on the
        # node
        if self._scheduler.job_at(slot) != job.id:
            cause = "gpu_gone" if cause == "gpu_gone" else "cancelled"
        elif cause == "cancelled":
            cause, text = "", f"{node}: its worker gave up a job that was not cancelled"
        if cause != "cancelled":
            self._progress.pop(job.id, None)
            self._keep_log(job.id, message)
        if cause == "base_missing" and self._send_again(job, member, worker, text):
            return
        member.failed += cause != "cancelled"
        if cause in ("error", "base_missing"):
            self._scheduler.job_error(now, job.id, node, text)
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
            self._lose_gpu(now, member, worker, text)
        else:
            self._free(now, worker, slot)

    def _send_again(self, job: Job, member: Member, worker: WorkerLink, text: str) -> bool:
        """A base model is damaged on the node, or not there: bring it and start the job again, in
        its slot.
        """
        name, base = worker.node.name, job.needs
        self._resent[job.id] = self._resent.get(job.id, 0) + 1
        if base is None or worker.node.shared or self._resent[job.id] > RESENDS:
            return False
        self.say(f"{name}: {text}: it is sent again")
        self.journal.event("resent", node=name, base=base, job=job.id, cause=text)
        member.holds.discard(base)
        self._scheduler.base_lost(name, base)
        if member.wait(job.id, worker.slot.index, [base]):
            worker.node.send_bases([base], damaged=True)
        return True

    def _lose_gpu(self, now: float, member: Member, worker: WorkerLink, why: str) -> None:
        for other in list(worker.node.workers.values()):
            if other.slot.gpu == worker.slot.gpu:
                other.end()
                self._lose_slot(now, member, other, why)

    def _on_ended(self, now: float, event: Ended) -> None:
        worker, node = event.worker, event.worker.node
        slot, member = SlotId(node.name, worker.slot.index), self._of(node)
        current = node.workers.get(worker.slot.index) is worker
        if current:
            del node.workers[worker.slot.index]
        if member is None or not current or worker in self._ending or self.interrupts >= 2:
            self._ending.discard(worker)
            return
        if event.code is None:
            self._on_left(
                now,
                Left(node, f"{node.name}: connection lost ({event.words or 'no answer'})", True),
            )
            return
        job = self._scheduler.job_at(slot) if member.stage == "open" else None
        how = f"its worker died ({_exit(event.code)})" + (f": {event.words}" if event.words else "")
        self.journal.event(
            "worker", node=node.name, slot=worker.slot.index, state="ended", cause=how, job=job
        )
        if job:
            member.waiting.pop(slot.number, None)
            member.failed += 1
            self._progress.pop(job, None)
            self._keep_log(job, {"log": event.log or event.words})
            self._scheduler.job_killed(now, job, node.name, how)
        elif member.stage == "open":
            # nothing may be given to it until the next worker speaks
            self._scheduler.slot_gone(now, slot)
        self._restart(now, member, worker, how)

    def _restart(self, now: float, member: Member, worker: WorkerLink, how: str) -> None:
        slot = SlotId(worker.node.name, worker.slot.index)
        if worker not in self._greeted:
            self._starts[slot] = self._starts.get(slot, 0) + 1
            if self._starts[slot] >= STARTS:
                self._lose_slot(now, member, worker, how)
                return
        worker.node.start_worker(worker.slot)

    def _on_arrived(self, now: float, event: Arrived) -> None:
        name = event.node.name
        if (member := self._of(event.node)) is None:
            return
        member.bytes += event.bytes
        bases = [item for item in event.items if isinstance(item, str)]
        for base in bases:
            self.journal.event(
                "sync",
                node=name,
                base=base,
                **({"error": event.error} if event.error else {"bytes": event.bytes}),
            )
        if files := [path_of(item) for item in event.items if not isinstance(item, str)]:
            self.journal.event(
                "data",
                node=name,
                files=files,
                **({"error": event.error} if event.error else {"bytes": event.bytes}),
            )
        if event.error:
            folder = BASE_MODELS if bases else event.items[0][0]
            self.say(f"{event.error}; by hand: {manual_rsync_command(event.node.server, folder)}")
        else:
            self._note_arrival(member, event.items)
        for waiting in member.arrived(event.items, failed=bool(event.error)):
            self._go_on(now, member, waiting, event.error)

    def _note_arrival(self, member: Member, items: Sequence[Item]) -> None:
        member.lacking.difference_update(items)
        for base in items:
            if isinstance(base, str):
                member.holds.add(base)
                if member.stage == "open":
                    self._scheduler.base_arrived(member.node.name, base)

    def _go_on(self, now: float, member: Member, waiting: Waiting, error: str) -> None:
        slot, worker = SlotId(member.node.name, waiting.slot), member.node.workers.get(waiting.slot)
        if worker is None:  # its end is told next
            return
        if error:
            self._scheduler.node_fault(now, waiting.job, slot.node, error)
            self._free(now, worker, slot)
        else:
            self._start(now, waiting.job, slot)

    def _on_fetched(self, now: float, event: Fetched) -> None:
        name, member = event.node.name, self._of(event.node)
        if member is not None:
            member.bytes += event.bytes
        for job in event.jobs:
            if not event.error:
                self._arrived.append(
                    partial(self._accept, self._jobs[job], event.node, Paths(event.root))
                )
            elif name in self._scheduler.copies(job):
                self._scheduler.node_fault(now, job, name, event.error)
        if event.error:
            self.journal.event("fetch", node=name, jobs=list(event.jobs), error=event.error)
        if event.root != self.paths.root:
            self._arrived.append(partial(shutil.rmtree, event.root, ignore_errors=True))
        if member is not None:
            self._arrived.append(partial(member.expected.difference_update, event.jobs))

    # -- what is done

    def _accept(self, job: Job, node: Node, root: Paths) -> None:
        now = time.monotonic()
        ran_there = node.name in self._scheduler.copies(job.id)
        if self._scheduler.state(job.id) is plan.JobState.DONE:
            self._scheduler.finished(now, job.id, node.name)
            return
        if refused := self.home.accept(job, root):
            if ran_there:
                self.journal.event("refused", job=job.id, node=node.name, cause=refused)
                # results of another configuration: no node can help that
                in_the_way = self.home.judge(job, self.paths).state is State.CONFLICT
                (self._scheduler.job_error if in_the_way else self._scheduler.node_fault)(
                    now, job.id, node.name, refused
                )
            elif job.needs and not self.paths.base_metadata(job.needs).is_file():
                self._found.setdefault(job.needs, set()).add((node.name, job.id))
            return
        self._finished(now, job, node.name)
        if job.kind == "base":
            self._base_is_home(now, job)

    def _finished(self, now: float, job: Job, node: str) -> None:
        ran_there = node in self._scheduler.copies(job.id)
        if self._scheduler.finished(now, job.id, node):
            if node in self._members:
                self._members[node].done += 1
            seconds = self._seconds.pop(job.id, None) if ran_there else None
            self.journal.event(
                "done",
                job=job.id,
                node=node,
                kind=kind(job),
                seconds=seconds,
                work=self.estimates.work(job),
            )

    def _base_is_home(self, now: float, job: Job) -> None:
        hashes = [job.id, *(sibling.id for sibling in self.work.siblings.get(job.id, ()))]
        for member in self._members.values():
            if member.node.shared:
                self._note_arrival(member, hashes)
        for node, found in {pair for base in hashes for pair in self._found.pop(base, ())}:
            if node in self._members:
                self._members[node].expected.add(found)
                self._members[node].node.fetch(found, urgent=False)
        for other in self.work.others:
            if other.needs in hashes and other.id in self.work.waiting and self._is_current(other):
                self._scheduler.finished(now, other.id, "head")
                self.journal.event("reused", job=other.id)

    def _is_current(self, job: Job) -> bool:
        """Whether a fine-tune that waited for its base is there already: the base may have come out
        as it was before.
        """
        verdict = self.home.judge(job, self.paths)
        return verdict.state is State.DONE and not (self.work.retrain and verdict.other_code)

    def _keep_log(self, job: str, message: Mapping[str, Any]) -> None:
        if text := str(message.get("log") or ""):
            self._logs[job] = self.journal.job_log(job, text)

    # -- what is decided

    def _dispatch(self, now: float, assignment: plan.Assignment) -> None:
        name, slot, base = assignment
        member, job = self._members[slot.node], self._jobs[name]
        items: list[Item] = [base] if base else []
        if member.lacking:
            items += [
                file for file in (*data_files(job), *beside_files(job)) if file in member.lacking
            ]
        if not items:
            self._start(now, name, slot)
            return
        new = member.wait(name, slot.number, items)
        if bases := [item for item in new if isinstance(item, str)]:
            member.node.send_bases(bases)
        if files := [item for item in new if not isinstance(item, str)]:
            member.node.send_data(files)

    def _start(self, now: float, job: str, slot: SlotId) -> None:
        node, planned = self._members[slot.node].node, self._jobs[job]
        worker = node.workers.get(slot.number)
        # its end is told next, or its slot is given up
        if worker is None or worker in self._ending:
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
        member = self._members.get(cancelled.node)
        if cancelled.slot is None or member is None:
            return
        self.journal.event("cancelled", job=cancelled.job, node=cancelled.node)
        worker = member.node.workers.get(cancelled.slot.number)
        waiting = member.waiting.get(cancelled.slot.number)
        if waiting is not None and waiting.job == cancelled.job:
            del member.waiting[cancelled.slot.number]
            if worker is not None:
                self._free(now, worker, cancelled.slot)
        elif worker is not None:
            worker.send({"cancel": cancelled.job})

    def _note(self, now: float, change: plan.Change) -> None:
        if change.what == "node":
            self._note_node(now, change)
        elif change.state == plan.JobState.FAILED.value:
            log = self._logs.get(change.name, "")
            self.say(f"failed: {change.name}: {change.cause}" + (f" (log: {log})" if log else ""))
            self.journal.event("failed", job=change.name, error=change.cause, log=log)
        elif change.state == plan.JobState.BLOCKED.value:
            self.journal.event("blocked", job=change.name, error=change.cause)
        elif change.cause:
            self.journal.event("job", job=change.name, state=change.state, cause=change.cause)

    def _note_node(self, now: float, change: plan.Change) -> None:
        self.journal.event("node", node=change.name, state=change.state, cause=change.cause)
        member = self._members.get(change.name)
        # for its silence
        if member is not None and change.state == "closed" and member.stage == "open":
            member.node.close()
            member.lose(now)
            self.say(f"{change.name}: closed: {change.cause}")
        elif change.state not in ("open", "closed", "draining") or (
            change.state == "open" and change.cause
        ):
            self.say(
                f"{change.name}: {change.state}" + (f": {change.cause}" if change.cause else "")
            )

    # -- what is shown

    def _publish_status(self, *, force: bool = False) -> None:
        status = self.status()
        self.journal.status(status, force=force)
        self.show(status)

    def status(self) -> dict[str, Any]:
        """What --status and the bar show."""
        now = time.monotonic()
        phases = {
            name: {state.value: number for state, number in self._scheduler.counts(name).items()}
            for name in self._scheduler.kinds()
        }
        return {
            "phases": phases,
            "time_left": self._scheduler.time_left(now),
            "elapsed": now - self._began,
            "nodes": [self._node_status(member, now) for member in self._members.values()],
            "ended": self._is_over(),
        }

    def _node_status(self, member: Member, now: float) -> dict[str, Any]:
        name, state, jobs = member.node.name, _STAGES[member.stage], list[str]()
        if member.stage == "open":
            state, jobs = self._scheduler.node_state(name), self._scheduler.jobs_on(name)
        running = [
            {"job": job, **{key: self._progress.get(job, {}).get(key) for key in ("epoch", "of")}}
            for job in jobs
        ]
        return {
            "name": name,
            "state": state,
            "slots": len(member.node.plan.slots),
            "running": running,
            "done": member.done,
            "failed": member.failed,
            "bytes": member.bytes,
            "bytes_per_second": member.bytes / max(1.0, now - self._began),
        }


_STAGES = {
    "joining": "connecting",
    "joined": "starting",
    "open": "open",
    "lost": "lost, tried again",
    "dead": "left out",
}


def _raise(now: float, event: Broken) -> None:
    raise event.error


def _kill(workers: set[WorkerLink]) -> None:
    """End workers that do not end by themselves; one behind a cut link does when it hears
    nothing.
    """
    threads = [threading.Thread(target=worker.kill, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + END_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _identity(path: Path) -> tuple[int, int, int] | None:
    """None while an editor has the file replaced."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _exit(code: int) -> str:
    if code <= 128:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(code - 128).name
    return f"signal {code - 128}"
