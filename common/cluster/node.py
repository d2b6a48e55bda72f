"""One node of a run: its connection, workers and copies. Blocking work happens in its threads; what happened is told as events.

The runner owns all decisions. A node only does what it is asked and says how it went, so nothing here is shared between threads but the event queue.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from common.cluster import config as cluster_config
from common.cluster.config import ClusterConfig, Gpu, Probe, Server
from common.cluster.connection import Connection, Process, connect
from common.cluster.process import last_words
from common.errors import NodeError, ProjectError
from common.paths import BASE_MODELS, CODE_ROOT, EXPERIMENT_FILES, EXPERIMENT_LOG, EXPERIMENT_METRICS, EXPERIMENTS, Paths

MIN_FREE_BYTES = 500 << 20
GATHER_SECONDS = 0.5  # experiments that end within this time come home in one copy
START_SECONDS = 120.0  # for a worker to say hello
PROBE_TEXT = (Path(__file__).with_name("probe.py")).read_bytes()


# -- what a node tells ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """The node answers; what it had published for this run before: base model hashes and experiments."""

    node: Node
    notes: tuple[str, ...]
    found: tuple[str, ...]


@dataclass(frozen=True)
class Joined:
    """Code and data are there; the workers are being started."""

    node: Node


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
    """A worker's end: its exit code (None: the link was lost), its last words."""

    worker: WorkerLink
    code: int | None
    words: str


@dataclass(frozen=True)
class BaseArrived:
    """A base model is on the node, or could not be brought there (`error`)."""

    node: Node
    base: str
    bytes: int
    error: str = ""


@dataclass(frozen=True)
class Fetched:
    """Results lie under `root`, a project folder of its own, to be verified; or could not be fetched (`error`)."""

    node: Node
    jobs: tuple[str, ...]
    root: Path
    bytes: int
    error: str = ""


Event = Seen | Joined | Left | Said | Ended | BaseArrived | Fetched
Tell = Callable[[Event], None]


@dataclass(frozen=True)
class Needs:
    """What a run's jobs need on every node."""

    code: tuple[str, ...]  # files relative to the code's root
    extra: tuple[str, ...]  # files relative to the project folder (a user's own script)
    data: dict[tuple[str, str], str | None]  # (data_path, file) -> SHA-256 on the head; None: the head has none
    bases: tuple[str, ...]
    experiments: tuple[str, ...]
    owner: str
    trusted: bool = False  # --skip-sync: nothing is sent before it is missed


def code_files() -> tuple[str, ...]:
    """What a node needs of the project's own code, relative to CODE_ROOT."""
    files = [*CODE_ROOT.glob("*.py"), *(CODE_ROOT / "common").rglob("*.py"), *CODE_ROOT.glob("requirements*.txt"), CODE_ROOT / "constraints.txt"]
    return tuple(sorted(str(path.relative_to(CODE_ROOT)) for path in files if path.is_file()))


# -- a worker -------------------------------------------------------------------------------------------------------------------------


class WorkerLink:
    """The head's end of one worker: lines in are told, messages out never block the runner."""

    def __init__(self, node: Node, slot: cluster_config.Slot, process: Process, marker: str, tell: Tell) -> None:
        self.node, self.slot, self._process, self._tell = node, slot, process, tell
        self.log: str | None = None  # on the node
        self._marker = marker.encode()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name=f"read {node.name} {slot.index}", daemon=True).start()
        threading.Thread(target=self._write, name=f"write {node.name} {slot.index}", daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message."""
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

    def _read(self) -> None:
        try:
            while (line := self._process.read_line()) and line.strip() != self._marker:
                continue
            while line := self._process.read_line():
                message = json.loads(line)
                if not isinstance(message, dict):
                    raise ValueError("not an object")
                self._tell(Said(self, message))
            self._ended("")
        except (ValueError, RecursionError) as error:
            self._process.kill()
            self._ended(f"it spoke nonsense ({error})")
        except NodeError as error:
            self._ended(str(error))

    def _ended(self, why: str) -> None:
        code: int | None = None
        with contextlib.suppress(TimeoutError):
            code = self._process.wait(10)
        words = why or last_words(self._process.stderr_tail)
        self._process.close()
        self._outbox.put(None)
        self._tell(Ended(self, code, words))


# -- a node ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A node and its threads: one that joins, sends and starts; one that fetches."""

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
        self._sender = ThreadPoolExecutor(1, thread_name_prefix=f"send {self.name}")
        self._to_fetch: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        threading.Thread(target=self._fetching, name=f"fetch {self.name}", daemon=True).start()

    @property
    def name(self) -> str:
        """As in messages and slots."""
        return self.server.name

    @property
    def shared(self) -> bool:
        """Whether results are home as soon as they are published there."""
        return self.connection is not None and self.connection.shared

    def join(self) -> None:
        """Connect, bring code and data up to date, start the workers. Tells Joined or Left."""
        self._sender.submit(self._join)

    def start_worker(self, slot: cluster_config.Slot) -> None:
        """Start (again) the worker of a slot. Tells Said (hello) or Ended."""
        self._sender.submit(self._start_worker, slot)

    def send_base(self, base: str) -> None:
        """Copy a base model there. Tells BaseArrived."""
        self._sender.submit(self._send_base, base)

    def fetch(self, job: str, *, urgent: bool) -> None:
        """Bring the results of a job home. Tells Fetched."""
        self._to_fetch.put((job, urgent))

    def tail(self, path: str) -> str:
        """The end of a file there, for a dead worker's log; empty when it cannot be had."""
        if self.connection is None:
            return ""
        try:
            return self.connection.run(["tail", "-c", "4000", path], timeout=10).text
        except ProjectError:
            return ""

    def close(self) -> None:
        """End workers and copies; the node may join again later."""
        for worker in self.workers.values():
            worker.end()
        self.workers.clear()
        if self.connection is not None:
            threading.Thread(target=self.connection.close, daemon=True).start()
            self.connection = None

    def stop(self) -> None:
        """Close for good."""
        self.close()
        self._to_fetch.put(None)
        self._sender.shutdown(wait=False, cancel_futures=True)

    # -- in the sending thread

    def _join(self) -> None:
        try:
            self.connection = connect(self.server, self.paths.root)
            self.facts = probe(self.connection, self.needs.owner)
            self.plan = slot_plan(self.server, self.facts)
            notes = [*self.plan.left_out, *check_facts(self.name, self.facts)]
            if not self.needs.trusted:
                self._send_code()
            self._send_data(tuple(notes))
        except ProjectError as error:
            self.close()
            self.tell(Left(self, str(error), getattr(error, "transient", True) if isinstance(error, NodeError) else False))
            return
        self.tell(Joined(self))
        for slot in self.plan.slots:
            self._start_worker(slot)

    def _send_code(self) -> None:
        assert self.connection is not None
        if self.connection.shared:
            return
        here, there = code_digests(), self.facts["code"]
        changed = [name for name in self.needs.code if not name.endswith(".py") or there.get(name) != here.get(name)]
        self.connection.push(changed, base=CODE_ROOT)
        self.connection.push(self.needs.extra)

    def _send_data(self, notes: tuple[str, ...]) -> None:
        assert self.connection is not None
        if self.connection.shared:
            self.tell(Seen(self, notes, ()))
            return
        there = inventory(self.connection, self.needs)
        self.tell(Seen(self, notes, (*there["bases"], *there["experiments"])))
        missing = differing(self.name, self.needs, there)
        if missing and not self.needs.trusted:
            self.connection.push(missing)
            missing = differing(self.name, self.needs, inventory(self.connection, self.needs))
        if missing:
            raise NodeError(f"{self.name}: {missing[0]} there is not the head's ({len(missing)} files differ)")

    def _start_worker(self, slot: cluster_config.Slot) -> None:
        connection = self.connection
        if connection is None:
            return
        marker = secrets.token_hex(16)
        try:
            process = connection.start(worker_argv(connection, slot, self.plan, self.settings, self.needs.owner, marker))
        except ProjectError as error:
            self.tell(Left(self, str(error), True))
            return
        self.workers[slot.index] = WorkerLink(self, slot, process, marker, self.tell)

    def _send_base(self, base: str) -> None:
        names = [f"{BASE_MODELS}/{base}.pt", f"{BASE_MODELS}/{base}_metadata.json"]
        try:
            if self.connection is None:
                raise NodeError(f"{self.name}: the connection is closed")
            self.tell(BaseArrived(self, base, self.connection.push(names).bytes))
        except ProjectError as error:
            self.tell(BaseArrived(self, base, 0, str(error)))

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
        try:
            if self.connection is None:
                raise NodeError(f"{self.name}: the connection is closed")
            moved = self.connection.pull([name for job in jobs for name in result_files(job)], root)
            self.tell(Fetched(self, tuple(jobs), moved.root, moved.bytes))
        except ProjectError as error:
            self.tell(Fetched(self, tuple(jobs), root, 0, str(error)))


# -- pure helpers ---------------------------------------------------------------------------------------------------------------------


def result_files(job: str) -> list[str]:
    """Where a job's results lie below a project folder: `job` is a base model hash or an experiment's folder below experiments/."""
    if "/" not in job:
        return [f"{BASE_MODELS}/{job}.pt", f"{BASE_MODELS}/{job}_metadata.json"]
    return [f"{EXPERIMENTS}/{job}/{name}" for name in (*EXPERIMENT_FILES, EXPERIMENT_LOG, EXPERIMENT_METRICS)]


def code_digests() -> dict[str, str]:
    """SHA-256 of the head's code, by name."""
    from common.manifest import file_sha256

    return {name: file_sha256(CODE_ROOT / name) for name in code_files() if name.endswith(".py")}


def probe(connection: Connection, owner: str) -> dict[str, Any]:
    """What the node has. Raises NodeError when its Python does not answer."""
    result = connection.run([connection.python, "-", owner], input=PROBE_TEXT, timeout=60)
    try:
        facts = json.loads(result.stdout.splitlines()[-1])
        if result.ok and isinstance(facts, dict):
            return facts
    except (ValueError, IndexError, RecursionError):
        pass
    raise NodeError(f"{connection.name}: {connection.python} does not work there ({result.last_words or 'no answer'}): run with --setup-nodes")


def slot_plan(server: Server, facts: dict[str, Any]) -> cluster_config.SlotPlan:
    """The node's slots. Raises NodeError when there is none."""
    gpus = tuple(Gpu(str(gpu["id"]), str(gpu["name"]), str(gpu["used_by"])) for gpu in facts["gpus"])
    return cluster_config.slots(server, Probe(int(facts["cores"]), gpus))


def check_facts(name: str, facts: dict[str, Any]) -> list[str]:
    """Remarks on a node that can work. Raises NodeError when it cannot."""
    missing = [package for package in ("torch", "numpy", "pydantic", "scikit-learn") if not facts["versions"].get(package)]
    if missing:
        raise NodeError(f"{name}: {', '.join(missing)} not installed there: run with --setup-nodes")
    if facts["free_bytes"] < MIN_FREE_BYTES:
        raise NodeError(f"{name}: only {facts['free_bytes'] >> 20} MB free on its disk")
    notes = []
    here, there = metadata.version("torch"), str(facts["versions"]["torch"])
    if here != there:
        notes.append(f"{name}: torch {there} there, {here} here: results may differ in their last digits")
    if abs(facts["clock"] - time.time()) > 60:
        notes.append(f"{name}: its clock differs by {facts['clock'] - time.time():+.0f} s")
    return notes


def inventory(connection: Connection, needs: Needs) -> dict[str, Any]:
    """What the node has of a run's data and results. Raises NodeError."""
    request = {"data": list(needs.data), "bases": needs.bases, "experiments": needs.experiments}
    argv = [connection.python, "-m", "common.cluster.inventory"]
    result = connection.run(argv, input=json.dumps(request).encode(), timeout=3600)
    try:
        found = json.loads(result.stdout.splitlines()[-1])
        if result.ok and isinstance(found, dict) and len(found["data"]) == len(needs.data):
            return {"data": found["data"], "bases": set(found["bases"]) & set(needs.bases), "experiments": set(found["experiments"]) & set(needs.experiments)}
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        pass
    raise NodeError(f"{connection.name}: its files cannot be listed: {result.last_words or 'no answer'}")


def differing(name: str, needs: Needs, found: dict[str, Any]) -> list[str]:
    """Data files of the node that are not the head's. Raises NodeError for one that cannot be sent."""
    wrong = []
    for ((data_path, file_name), here), there in zip(needs.data.items(), found["data"], strict=True):
        if here == there and here is not None:
            continue
        if here is None and there is not None:
            continue  # only the nodes have data; the runner has seen that they agree
        path = f"{data_path}/{file_name}"
        if here is None or path.startswith("/"):
            raise NodeError(f"{name}: {path} is {'missing' if there is None else 'another'} there and cannot be sent")
        wrong.append(path)
    return wrong


def slot_name(slot: cluster_config.Slot, plan: cluster_config.SlotPlan) -> str:
    """Names the physical place: the n-th share of a GPU, or the n-th core. Locks of two projects meet there."""
    same = [other.index for other in plan.slots if other.gpu == slot.gpu]
    return f"cpu{same.index(slot.index)}" if slot.gpu is None else f"gpu{slot.gpu}-{same.index(slot.index)}"


def worker_argv(
    connection: Connection, slot: cluster_config.Slot, plan: cluster_config.SlotPlan, settings: ClusterConfig, owner: str, marker: str
) -> list[str]:
    """The command of a worker. It sees its own GPU only."""
    code = str(CODE_ROOT) if connection.shared and connection.path != str(CODE_ROOT) else connection.path
    environment = [f"CUDA_VISIBLE_DEVICES={slot.gpu or ''}", "CUBLAS_WORKSPACE_CONFIG=:4096:8", f"PYTHONPATH={code}", "PYTHONUNBUFFERED=1"]
    flags = {"project": connection.path, "slot": slot_name(slot, plan), "owner": owner, "marker": marker, "device": "cpu" if slot.gpu is None else "0"}
    flags |= {"beat": str(settings.heartbeat_seconds), "silence": str(settings.close_seconds)}
    return ["env", *environment, connection.python, "-m", "common.cluster.worker", *(f"--{name}={value}" for name, value in flags.items())]
