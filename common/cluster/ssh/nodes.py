"""The nodes of a run. `Node` is the one record of a node; `RunNodes` says which there are."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from common.cluster.config import ClusterConfig, Server, SlotPlan, load_config
from common.cluster.scheduler.states import JobState
from common.cluster.ssh.context import RunContext
from common.cluster.ssh.events import Joined, Left, Listed, Tell
from common.cluster.ssh.node import NodeThreads
from common.cluster.ssh.worker_link import WorkerLink, WorkerState
from common.cluster.transport.rsync import manual_rsync_command
from common.data.manifest import file_identity
from common.errors import ProjectError
from common.jobs.inputs import File
from common.paths import BASE_MODELS

CONFIG_SECONDS = 2.0  # between two looks at cluster_config.json
REJOIN_SECONDS = (5.0, 60.0)  # first and longest pause before a lost node is tried again
SILENCE = ("heartbeat_seconds", "suspect_seconds", "close_seconds")
Item = str | File  # a base model's hash, or a data file


class Stage(Enum):
    """How a node stands, in the words of --status."""

    CONNECTING = "connecting"
    STARTING = "starting"  # its workers are being started
    OPEN = "open"  # a worker has said hello: the scheduler knows the node
    LOST = "lost, tried again"
    LEFT_OUT = "left out"


@dataclass(eq=False)
class WaitingJob:
    """A job that has its slot, and starts when `left` is on the node."""

    job: str
    slot: int
    left: set[Item]


class Node:
    """All that a run knows of one node. Only the event loop's thread uses it."""

    def __init__(self, threads: NodeThreads) -> None:
        self.threads, self.server, self.name = threads, threads.server, threads.name
        self.stage = Stage.CONNECTING
        self.draining = False  # removed from the configuration
        self.tried = False  # the first attempt to join has ended
        self.seen = False  # it has listed what it had published, or cannot
        self.shared = False  # results are on the head as soon as they are published there
        self.plan = SlotPlan(())
        self.workers: dict[int, WorkerLink] = {}  # by slot
        self.gone: set[int] = set()  # slots that get no new worker
        self.lacking: set[Item] = set()  # data files
        self.holds: set[str] = set()  # base models that were sent to it
        self.expected: set[str] = set()  # results found there that are being fetched
        self.coming: dict[Item, list[WaitingJob]] = {}
        self.waiting: dict[int, WaitingJob] = {}  # by slot
        self.again_at = math.inf
        self.bytes = self.done = self.failed = 0
        self.measured: float | None = None  # bytes of windows per second, of its first slot
        self._pause = REJOIN_SECONDS[0]

    # -- stages

    def connect(self) -> None:
        """Join, or try again."""
        self.stage = Stage.CONNECTING
        self.threads.join()

    def joined(self, event: Joined) -> None:
        """It answers and has the code; its workers are being started."""
        self.tried, self.stage = True, Stage.STARTING
        self.plan, self.shared, self.lacking = event.plan, event.shared, set(event.lacking)
        self.gone.clear()

    def open(self) -> None:
        """Its first worker has said hello."""
        self.stage, self._pause = Stage.OPEN, REJOIN_SECONDS[0]

    @property
    def shown_state(self) -> str:
        """Its stage for --status, with the holders of slots that are waited for."""
        holders = {w.holder for w in self.workers.values() if w.state is WorkerState.WAITING}
        return f"waits for {', '.join(sorted(holders))}" if holders else self.stage.value

    @property
    def is_open(self) -> bool:
        """Whether the scheduler knows it."""
        return self.stage is Stage.OPEN

    def lose(self, now: float, *, transient: bool = True) -> None:
        """End what runs there. A transient fault is tried again after a pause that doubles."""
        for worker in self.workers.values():
            worker.end()
        self.workers.clear()
        self.threads.close()
        self.stage = Stage.LOST if transient else Stage.LEFT_OUT
        self.again_at, self._pause = now + self._pause, min(2 * self._pause, REJOIN_SECONDS[1])
        self.seen, self.tried = True, True
        self.expected.clear()
        self.coming.clear()
        self.waiting.clear()

    def stop(self) -> None:
        """End what runs there, for good."""
        for worker in self.workers.values():
            worker.end()
        self.workers.clear()
        self.threads.stop()

    # -- what its jobs wait for

    def wait(self, job: str, slot: int, items: Iterable[Item]) -> list[Item]:
        """`job` starts when `items` are there. Returns those that have to be sent."""
        waiting = self.waiting[slot] = WaitingJob(job, slot, set(items))
        new = [item for item in waiting.left if item not in self.coming]
        for item in waiting.left:
            self.coming.setdefault(item, []).append(waiting)
        return new

    def arrived(self, items: Iterable[Item], *, failed: bool) -> list[WaitingJob]:
        """Items have come, or will not come. Returns the jobs that can start, or that cannot; they
        no longer wait.
        """
        ended: list[WaitingJob] = []
        for item in items:
            for waiting in self.coming.pop(item, ()):
                waiting.left.discard(item)
                if (failed or not waiting.left) and self.waiting.get(waiting.slot) is waiting:
                    del self.waiting[waiting.slot]
                    ended.append(waiting)
        return ended


class RunNodes:
    """The nodes of a run: they join, are lost, tried again, and follow cluster_config.json."""

    def __init__(self, run: RunContext, tell: Tell) -> None:
        self._run, self._tell = run, tell
        self._nodes: dict[str, Node] = {}
        self.worked = False  # a worker of any node has said hello
        self._config_at = -math.inf
        self._config_identity = _identity(run.config_path)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def get(self, name: str) -> Node | None:
        """The node of that name that is in the run."""
        return self._nodes.get(name)

    def of(self, threads: NodeThreads) -> Node | None:
        """The record that belongs to these threads; None once the node was removed."""
        node = self._nodes.get(threads.name)
        return node if node is not None and node.threads is threads else None

    def add(self, server: Server) -> None:
        """A node joins the run."""
        run = self._run
        threads = NodeThreads(server, run.paths, run.config, run.needs, self._tell)
        node = self._nodes[server.name] = Node(threads)
        node.connect()

    @property
    def hopeless(self) -> bool:
        """Whether no node can ever work. A lost node is waited for only if some worker has
        started.
        """
        return bool(self._nodes) and not any(map(self._may_work, self._nodes.values()))

    def _may_work(self, node: Node) -> bool:
        working = node.stage in (Stage.STARTING, Stage.OPEN)
        again = node.stage in (Stage.CONNECTING, Stage.LOST) and self.worked
        return not node.tried or working or again

    def tick(self, now: float) -> None:
        """Follow the configuration file, and try lost nodes again."""
        if now - self._config_at >= CONFIG_SECONDS:
            self._config_at = now
            self.reread_config(now)
        for node in self:
            if node.stage is Stage.LOST and now >= node.again_at and not node.draining:
                node.connect()

    # -- events

    def on_listed(self, now: float, event: Listed) -> None:
        """Fetch what the node has already published of this run's jobs."""
        run = self._run
        for note in event.notes:
            run.say(f"{event.node.name}: {note}")
        if (node := self.of(event.node)) is None:
            return
        for job in event.found if not run.work.retrain else ():
            if job in run.jobs and run.scheduler.state(job) is not JobState.DONE:
                node.expected.add(job)
                node.threads.fetch(job, urgent=False, found=True)
        node.seen = True

    def on_joined(self, now: float, event: Joined) -> None:
        """Its workers are being started."""
        run, node = self._run, self.of(event.node)
        if node is None:
            return
        node.joined(event)
        run.journal.event("node", node=node.name, state="joined", slots=len(node.plan.slots))
        send_all = run.push_all and not (node.shared or run.needs.trusted)
        if send_all and (bases := run.published_bases()):
            for base in bases:
                node.coming.setdefault(base, [])
            node.threads.send_bases(bases)

    def on_left(self, now: float, event: Left) -> None:
        """The node cannot work now."""
        if (node := self.of(event.node)) is not None:
            self.lose(now, node, event.reason, transient=event.transient)

    def lose(self, now: float, node: Node, reason: str, *, transient: bool) -> None:
        """Leave the node out, or for a transient fault try it again later."""
        run, was = self._run, node.stage
        run.journal.event("node", node=node.name, state="left", cause=reason)
        if not node.tried:
            run.say(f"left out: {reason}")
            by_hand = manual_rsync_command(node.server, BASE_MODELS)
            run.say(f"  its base models by hand: {by_hand}")
        elif was in (Stage.STARTING, Stage.OPEN):
            run.say(f"lost: {reason}")
        node.lose(now, transient=transient)
        if was is Stage.OPEN:
            run.scheduler.close_node(now, node.name, reason)

    def opened(self, now: float, node: Node, speed: float | None) -> None:
        """The node's first worker has said hello: start the silence timer now, not before.

        speed: bytes of windows per second, as the worker measured them, or None.
        """
        run = self._run
        if speed is not None:
            node.measured = node.measured or speed
            run.journal.event("measured", node=node.name, bytes_per_second=speed)
        holds: Iterable[str] = node.holds
        if node.shared or run.needs.trusted:
            holds = run.published_bases()
        run.scheduler.add_node(now, node.name, run.estimates.speed(node.name, speed), holds=holds)
        node.open()
        self.worked = True
        if node.draining:
            run.scheduler.drain_node(now, node.name)

    def note_arrival(self, node: Node, items: Sequence[Item]) -> None:
        """Base models or data files are on the node."""
        node.lacking.difference_update(items)
        for base in items:
            if isinstance(base, str):
                node.holds.add(base)
                if node.is_open:
                    self._run.scheduler.base_arrived(node.name, base)

    # -- the configuration

    def reread_config(self, now: float) -> None:
        """New nodes join, removed or changed ones drain."""
        run, identity = self._run, _identity(self._run.config_path)
        if identity is not None and identity != self._config_identity:
            self._config_identity = identity
            try:
                run.config = _with_our_times(run.config, load_config(run.config_path), run.say)
            except ProjectError as error:
                run.say(f"the changed configuration is not used: {error}")
                return
            wanted = {server.name: server for server in run.config.servers}
            for node in self:
                if wanted.get(node.name) != node.server and not node.draining:
                    self._drain(now, node)
        self._finish_drains(now)

    def _drain(self, now: float, node: Node) -> None:
        run = self._run
        run.say(
            f"{node.name}: removed or changed in {run.config_path.name}: its running jobs finish,"
            " nothing new starts there"
        )
        node.draining = True
        cause = "removed or changed in the configuration"
        run.journal.event("node", node=node.name, state="draining", cause=cause)
        with contextlib.suppress(KeyError):  # no worker there has said hello yet
            run.scheduler.drain_node(now, node.name)

    def _finish_drains(self, now: float) -> None:
        run = self._run
        for node in self:
            if node.draining and not self._has_jobs(node.name):
                with contextlib.suppress(KeyError):
                    run.scheduler.close_node(now, node.name, "removed from the configuration")
                node.stop()
                del self._nodes[node.name]
        for server in run.config.servers:
            if server.name not in self._nodes:
                run.say(f"{server.name}: joins")
                self.add(server)

    def _has_jobs(self, name: str) -> bool:
        with contextlib.suppress(KeyError):
            return bool(self._run.scheduler.jobs_on(name))
        return False


def _with_our_times(
    ours: ClusterConfig, config: ClusterConfig, say: Callable[[str], None]
) -> ClusterConfig:
    """Running workers keep the times of silence that they were started with."""
    times = {name: getattr(ours, name) for name in SILENCE}
    if any(getattr(config, name) != value for name, value in times.items()):
        say(f"{', '.join(SILENCE)}: a change counts from the next run on")
    return config.model_copy(update=times)


def _identity(path: Path) -> list[int] | None:
    """None while an editor is replacing the file."""
    try:
        return file_identity(path)
    except OSError:
        return None
