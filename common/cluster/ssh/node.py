"""One node of a run: its connection, workers and copies. Blocking work happens in its threads; what
happened is told as events.

The runner owns all decisions. A node only does what it is asked and says how it went, so nothing
here is shared between threads but the event queue.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from common.cli import one_line
from common.cluster import config as cluster_config
from common.cluster import protocol
from common.cluster.config import ClusterConfig, Gpu, Probe, Server
from common.cluster.ssh.payload import Needs, code_files, differing
from common.cluster.transport.connection import Connection, Process, connect
from common.cluster.transport.process import last_words
from common.data.manifest import file_sha256
from common.errors import NodeError, ProjectError
from common.jobs.inputs import File, path_of
from common.paths import BASE_MODELS, CODE_ROOT, SUPERSEDED, Paths, published_file, result_files

MIN_FREE_BYTES = 500 << 20
FULL_BYTES = 1 << 20  # the head's disk counts as full
GATHER_SECONDS = 0.5  # experiments that end within this time come home in one copy
START_SECONDS = 120.0  # for a worker to say hello
COPYING = 2  # threads of a node that send
# messages of a worker that the runner has not looked at; before it has, no more are read
UNHANDLED = 100
PROBE_TEXT = (CODE_ROOT / "common/cluster/on_node/probe.py").read_text()


# -- what a node tells


@dataclass(frozen=True)
class Seen:
    """The node answers; what it had published for this run before: base model hashes and
    experiments.
    """

    node: Node
    notes: tuple[str, ...]
    found: tuple[str, ...]


@dataclass(frozen=True)
class Joined:
    """The head's code is there and the workers are being started. `lacking`: data files that have
    to be sent before a job can read them.
    """

    node: Node
    lacking: tuple[File, ...]


@dataclass(frozen=True)
class Left:
    """The node cannot work (now): why, and whether trying again makes sense."""

    node: Node
    reason: str
    transient: bool


@dataclass(frozen=True)
class Said:
    """A line from a worker."""

    worker: WorkerLink
    message: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A worker's end: its exit code (None: the link was lost), its last words, and the end of its
    log.
    """

    worker: WorkerLink
    code: int | None
    words: str
    log: str = ""


@dataclass(frozen=True)
class Arrived:
    """Base models or data files are on the node, or could not be brought there (`error`)."""

    node: Node
    items: tuple[str | File, ...]  # base model hashes, data files
    bytes: int
    error: str = ""


@dataclass(frozen=True)
class Fetched:
    """Results lie under `root`, a project folder of its own, to be verified; or could not be
    fetched (`error`).
    """

    node: Node
    jobs: tuple[str, ...]
    root: Path
    bytes: int
    error: str = ""


@dataclass(frozen=True)
class Broken:
    """Something that no node is to blame for (the head's disk is full): the run cannot go on."""

    error: Exception


Event = Seen | Joined | Left | Said | Ended | Arrived | Fetched | Broken
Tell = Callable[[Event], None]


# -- a worker


class WorkerLink:
    """The head's end of one worker: lines in are told, messages out never block the runner."""

    def __init__(
        self, node: Node, slot: cluster_config.Slot, process: Process, marker: str, tell: Tell
    ) -> None:
        self.node, self.slot, self._process, self._tell = node, slot, process, tell
        self.log: str | None = None  # on the node
        self.heard = time.monotonic()
        self._given: set[str] = set()  # jobs that it may speak of
        self._marker = marker.encode()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._unhandled = threading.Semaphore(UNHANDLED)

    def begin(self) -> None:
        """Listen and speak. Not before the node knows this worker: it may end at once."""
        threading.Thread(
            target=self._read, name=f"read {self.node.name} {self.slot.index}", daemon=True
        ).start()
        threading.Thread(
            target=self._write, name=f"write {self.node.name} {self.slot.index}", daemon=True
        ).start()

    def handled(self) -> None:
        """The runner has looked at one message: another may be read. A worker that floods the head
        only fills its own pipe.
        """
        self._unhandled.release()

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message."""
        if "job" in message:
            self._given.add(message["job"])
        self._outbox.put(json.dumps(message).encode() + b"\n")

    def end(self) -> None:
        """Close its input: the worker ends itself and all that it started."""
        self._outbox.put(None)

    def _write(self) -> None:
        while (data := self._outbox.get()) is not None:
            try:
                self._process.write(data, timeout=3600)
            except NodeError:  # its end is told by the reader, silence by the heartbeat
                return
        self._process.close_input()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def _read(self) -> None:
        try:
            self._await_marker()
            while line := self._process.read_line():
                message = protocol.message(json.loads(line), self._given)
                self._given -= {message.get("done"), message.get("failed")}
                self.heard = time.monotonic()
                self._unhandled.acquire()
                self._tell(Said(self, message))
            self._ended("")
        except (ValueError, RecursionError) as error:
            self._process.kill()
            self._ended(f"it spoke nonsense ({one_line(error)})")
        except TimeoutError:
            self._process.kill()
            self._ended(f"it did not begin within {START_SECONDS:.0f} s")
        except NodeError as error:
            self._ended(str(error))

    def _await_marker(self) -> None:
        """Drop what is printed before the worker speaks."""
        deadline = time.monotonic() + START_SECONDS
        while (
            line := self._process.read_line(max(0.0, deadline - time.monotonic()))
        ) and line.strip() != self._marker:
            continue

    def _ended(self, why: str) -> None:
        code: int | None = None
        with contextlib.suppress(TimeoutError):
            code = self._process.wait(10)
        words = why or last_words(self._process.stderr_tail)
        self._process.close()
        self._outbox.put(None)
        log = self.node.tail(self.log) if code is not None and self.log else ""
        self._tell(Ended(self, code, words, log))


# -- a node


class _Threads:
    """What is put in is done in its order, by threads that never keep the program from ending. What
    nobody foresaw is told as Broken.
    """

    def __init__(self, name: str, number: int, tell: Tell) -> None:
        self._todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._tell, self._stopped = tell, False
        for _ in range(number):
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def put(self, do: Callable[[], object]) -> None:
        """Do this next."""
        self._todo.put(do)

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True
        self._todo.put(_nothing)

    def _work(self) -> None:
        while not self._stopped:
            try:
                self._todo.get()()
            except Exception as error:  # noqa: BLE001 - raised again in the runner's thread
                self._tell(Broken(error))
        self._todo.put(_nothing)  # for the next thread to see that it is over


def _nothing() -> None:
    """Wakes a thread."""


@dataclass
class Node:
    """A node and its threads: one that joins and starts workers, some that send, one that
    fetches.
    """

    server: Server
    paths: Paths
    settings: ClusterConfig
    needs: Needs
    tell: Tell
    connection: Connection | None = None
    plan: cluster_config.SlotPlan = field(default_factory=lambda: cluster_config.SlotPlan(()))
    facts: dict[str, Any] = field(default_factory=dict)
    workers: dict[int, WorkerLink] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._closings = 0
        self._control = _Threads(f"control {self.name}", 1, self.tell)
        self._senders = _Threads(f"send {self.name}", COPYING, self.tell)
        self._fetcher = _Threads(f"fetch {self.name}", 1, self.tell)
        self._to_fetch: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._fetcher.put(self._fetching)

    @property
    def name(self) -> str:
        """As in messages and slots."""
        return self.server.name

    @property
    def shared(self) -> bool:
        """Whether results are home as soon as they are published there."""
        return self.connection is not None and self.connection.shared

    def join(self) -> None:
        """Connect, look, bring the code up to date, start the workers. Tells Seen and Joined, or
        Left.
        """
        self._control.put(self._join)

    def start_worker(self, slot: cluster_config.Slot) -> None:
        """Start (again) the worker of a slot. Tells Said (hello) or Ended."""
        self._control.put(lambda: self._start_worker(slot))

    def send_bases(self, bases: Sequence[str], *, damaged: bool = False) -> None:
        """Copy base models there; where the copy there is damaged, it is set aside first. Tells
        Arrived.
        """
        self._senders.put(lambda: self._send_bases(tuple(bases), damaged))

    def send_data(self, files: Sequence[File]) -> None:
        """Copy data files there and check them there. Tells Arrived."""
        self._senders.put(lambda: self._send_data(tuple(files)))

    def fetch(self, job: str, *, urgent: bool) -> None:
        """Bring the results of a job home. Tells Fetched."""
        self._to_fetch.put((job, urgent))

    def tail(self, path: str) -> str:
        """The end of a file there, for a dead worker's log; empty when it cannot be had."""
        connection = self.connection
        if connection is None:
            return ""
        try:
            return connection.run(["tail", "-c", "16384", path], timeout=10).text
        except ProjectError:
            return ""

    def close(self) -> None:
        """End workers and copies; the node may join again later."""
        self._closings += 1
        for worker in list(self.workers.values()):
            worker.end()
        self.workers.clear()
        connection, self.connection = self.connection, None
        if connection is not None:
            threading.Thread(target=connection.close, daemon=True).start()

    def stop(self) -> None:
        """Close for good."""
        self._to_fetch.put(None)
        for threads in (self._control, self._senders, self._fetcher):
            threads.stop()
        self.close()

    # -- in the control thread

    def _join(self) -> None:
        closings, connection = self._closings, None
        try:
            connection = connect(self.server, self.paths.root)
            facts = probe(connection, self.needs.owner)
            plan = slot_plan(self.server, facts)
            notes = [*plan.left_out, *check_facts(self.name, facts)]
            send_code(connection, self.needs, facts)
            self.connection, self.facts, self.plan = connection, facts, plan
            lacking = self._look(connection, tuple(notes))
        except (ProjectError, OSError, EOFError) as error:
            if connection is not None:
                connection.close()
            self.connection = None
            self.tell(
                Left(self, str(error), getattr(error, "transient", isinstance(error, NodeError)))
            )
            return
        if closings != self._closings:  # the run ended, or the node was removed meanwhile
            self.close()
            return
        self.tell(Joined(self, lacking))
        for slot in plan.slots:
            self._start_worker(slot)

    def _look(self, connection: Connection, notes: tuple[str, ...]) -> tuple[File, ...]:
        """Tell what is published there; return the data files that it lacks."""
        if connection.shared:
            self.tell(Seen(self, notes, ()))
            return ()
        there = inventory(
            connection, list(self.needs.files), self.needs.bases, self.needs.experiments
        )
        self.tell(Seen(self, notes, (*there.bases, *there.experiments)))
        return tuple(differing(self.name, self.needs, there.data))

    def _start_worker(self, slot: cluster_config.Slot) -> None:
        connection = self.connection
        if connection is None:
            return
        marker = secrets.token_hex(16)
        argv = worker_argv(
            connection,
            slot,
            self.plan,
            self.settings,
            self.server.jobs_per_gpu,
            self.needs.owner,
            marker,
        )
        try:
            process = connection.start(argv)
        except (ProjectError, OSError, EOFError) as error:
            if connection is self.connection:
                self.tell(Left(self, str(error), True))
            return
        if connection is self.connection:
            worker = self.workers[slot.index] = WorkerLink(self, slot, process, marker, self.tell)
            worker.begin()
        else:
            process.close()

    # -- in the sending threads

    def _send_bases(self, bases: tuple[str, ...], damaged: bool) -> None:
        names = [name for base in bases for name in result_files(base)]
        try:
            connection = self._connected()
            if damaged:
                set_aside(connection, names)
            moved = connection.push(names).bytes
        except (ProjectError, OSError, EOFError) as error:
            self.tell(Arrived(self, bases, 0, str(error)))
            return
        self.tell(Arrived(self, bases, moved))

    def _send_data(self, files: tuple[File, ...]) -> None:
        try:
            connection = self._connected()
            moved = connection.push(path_of(file) for file in files).bytes
            there = inventory(connection, list(files), (), ())
            if wrong := [file for file in files if there.data[file] != self.needs.files[file]]:
                raise NodeError(
                    f"{self.name}: {path_of(wrong[0])} there is not the head's after it was sent:"
                    " did it change here?"
                )
        except (ProjectError, OSError, EOFError) as error:
            self.tell(Arrived(self, files, 0, str(error)))
            return
        self.tell(Arrived(self, files, moved))

    def _connected(self) -> Connection:
        if self.connection is None:
            raise NodeError(f"{self.name}: the connection is closed")
        return self.connection

    # -- in the fetching thread

    def _fetching(self) -> None:
        while (first := self._to_fetch.get()) is not None:
            jobs, until = [first[0]], time.monotonic() + (0 if first[1] else GATHER_SECONDS)
            while (wait := until - time.monotonic()) > 0:
                try:
                    more = self._to_fetch.get(timeout=wait)
                except queue.Empty:
                    break
                if more is None:
                    return
                jobs.append(more[0])
                until = 0 if more[1] else until
            self._fetch(jobs)

    def _fetch(self, jobs: Sequence[str]) -> None:
        root = self.paths.incoming / self.name / f"{next(self._numbers)}-{secrets.token_hex(4)}"
        root.parent.mkdir(parents=True, exist_ok=True)
        try:
            moved = self._connected().pull(
                [name for job in jobs for name in result_files(job)], root
            )
        except (NodeError, EOFError) as error:
            if shutil.disk_usage(self.paths.root).free < FULL_BYTES:  # no node is to blame
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root)) from error
            self.tell(Fetched(self, tuple(jobs), root, 0, str(error)))
            return
        lacking = [job for job in jobs if published_file(job) in moved.missing]
        for job in lacking:
            error_text = (
                f"{self.name}: {published_file(job)} is not there as a plain file in a plain"
                " folder: results behind links are not taken"
            )
            self.tell(Fetched(self, (job,), root / "nothing", 0, error_text))
        self.tell(
            Fetched(self, tuple(job for job in jobs if job not in lacking), moved.root, moved.bytes)
        )


# -- pure helpers


def code_digests() -> dict[str, str]:
    """SHA-256 of the head's code, by name."""
    return {name: file_sha256(CODE_ROOT / name) for name in code_files()}


def send_code(connection: Connection, needs: Needs, facts: dict[str, Any]) -> None:
    """Bring the head's code, and a user's own script, to a node whose `facts` say what it has."""
    if not connection.shared:
        there = facts["code"]
        connection.push(
            [name for name, digest in code_digests().items() if there.get(name) != digest],
            base=CODE_ROOT,
        )
        connection.push(needs.extra)


_SET_ASIDE = (
    'mkdir -p "$1" && shift && for name; do if test -e "$name"; then mv -f -- "$name"'
    ' "$0/${name##*/}.$$" || exit 1; fi; done'
)


def set_aside(connection: Connection, names: Iterable[str]) -> None:
    """Move files of the node to its superseded/. Raises NodeError."""
    folder = f"{SUPERSEDED}/{BASE_MODELS}"
    done = connection.run(["sh", "-c", _SET_ASIDE, folder, folder, *names])
    if not done.ok:
        raise NodeError(
            f"{connection.name}: a damaged base model cannot be set aside:"
            f" {done.last_words or 'no answer'}"
        )


def probe(connection: Connection, owner: str, files: Sequence[File] = ()) -> dict[str, Any]:
    """What the node has, SHA-256 of `files` included. Raises NodeError when its Python does not
    answer.
    """
    argv = [connection.python, "-c", PROBE_TEXT, owner]
    result = connection.run(argv, input=json.dumps(files).encode(), timeout=3600 if files else 60)
    try:
        facts = json.loads(result.stdout.splitlines()[-1])
        if result.ok:
            return protocol.facts(facts)
    except (ValueError, IndexError, RecursionError):
        pass
    raise NodeError(
        f"{connection.name}: {connection.python} does not work there"
        f" ({result.last_words or 'no answer'}): run with --setup-nodes"
    )


def slot_plan(server: Server, facts: dict[str, Any]) -> cluster_config.SlotPlan:
    """The node's slots. Raises NodeError when there is none."""
    gpus = tuple(
        Gpu(str(gpu["id"]), str(gpu["name"]), str(gpu["used_by"])) for gpu in facts["gpus"]
    )
    return cluster_config.slots(server, Probe(int(facts["cores"]), gpus))


def check_facts(name: str, facts: dict[str, Any]) -> list[str]:
    """Remarks on a node that can work. Raises NodeError when it cannot."""
    missing = [
        package
        for package in ("torch", "numpy", "pydantic", "scikit-learn")
        if not facts["versions"].get(package)
    ]
    if missing:
        raise NodeError(f"{name}: {', '.join(missing)} not installed there: run with --setup-nodes")
    if facts["free_bytes"] < MIN_FREE_BYTES:
        raise NodeError(f"{name}: only {facts['free_bytes'] >> 20} MB free on its disk")
    notes = []
    here, there = metadata.version("torch"), str(facts["versions"]["torch"])
    if here != there:
        notes.append(
            f"{name}: torch {there} there, {here} here: results may differ in their last digits"
        )
    if abs(facts["clock"] - time.time()) > 60:
        notes.append(f"{name}: its clock differs by {facts['clock'] - time.time():+.0f} s")
    return notes


@dataclass(frozen=True)
class Inventory:
    """What a node has: SHA-256 of data files (None: absent), published base models and
    experiments.
    """

    data: dict[File, str | None]
    bases: tuple[str, ...]
    experiments: tuple[str, ...]


def inventory(
    connection: Connection, files: Sequence[File], bases: Sequence[str], experiments: Sequence[str]
) -> Inventory:
    """What the node has of these. Raises NodeError."""
    argv = [connection.python, "-m", "common.cluster.on_node.inventory"]
    request = json.dumps({"data": files, "bases": bases, "experiments": experiments}).encode()
    result = connection.run(argv, input=request, timeout=3600)
    try:
        found = json.loads(result.stdout.splitlines()[-1])
        digests = [None if digest is None else str(digest) for digest in found["data"]]
        there = set(map(str, (*found["bases"], *found["experiments"])))
        if result.ok and len(digests) == len(files):
            return Inventory(
                dict(zip(files, digests, strict=True)),
                tuple(b for b in bases if b in there),
                tuple(e for e in experiments if e in there),
            )
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        pass
    raise NodeError(
        f"{connection.name}: its files cannot be listed: {result.last_words or 'no answer'}"
    )


def slot_name(slot: cluster_config.Slot, plan: cluster_config.SlotPlan) -> str:
    """Names the physical place: the n-th share of a GPU, or the n-th core. Locks of two projects
    meet there.
    """
    same = [other.index for other in plan.slots if other.gpu == slot.gpu]
    # as in MIG-GPU-.../1/0; the name becomes a file's
    gpu = None if slot.gpu is None else slot.gpu.replace("/", "_")
    return f"cpu{same.index(slot.index)}" if gpu is None else f"gpu{gpu}-{same.index(slot.index)}"


def worker_argv(
    connection: Connection,
    slot: cluster_config.Slot,
    plan: cluster_config.SlotPlan,
    settings: ClusterConfig,
    jobs_per_gpu: int,
    owner: str,
    marker: str,
) -> list[str]:
    """The command of a worker. It sees its own GPU only."""
    code = (
        str(CODE_ROOT)
        if connection.shared and connection.path != str(CODE_ROOT)
        else connection.path
    )
    environment = [
        f"CUDA_VISIBLE_DEVICES={slot.gpu or ''}",
        "CUBLAS_WORKSPACE_CONFIG=:4096:8",
        f"JOBS_PER_GPU={jobs_per_gpu}",
    ]
    environment += [f"PYTHONPATH={code}", "PYTHONUNBUFFERED=1"]
    flags = {
        "project": connection.path,
        "slot": slot_name(slot, plan),
        "owner": owner,
        "marker": marker,
        "device": "cpu" if slot.gpu is None else "0",
    }
    flags |= {"beat": str(settings.heartbeat_seconds), "silence": str(settings.close_seconds)}
    return [
        "env",
        *environment,
        connection.python,
        "-m",
        "common.cluster.on_node.worker",
        *(f"--{name}={value}" for name, value in flags.items()),
    ]
