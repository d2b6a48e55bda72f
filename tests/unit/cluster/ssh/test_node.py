"""A node's threads: what they tell the runner, and when."""

from __future__ import annotations

import errno
import queue
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.cluster.config import ClusterConfig, Server, Slot, SlotPlan
from common.cluster.ssh import node as node_module
from common.cluster.ssh.events import Arrived, Broken, Ended, Event, Fetched, Said, Started
from common.cluster.ssh.node import NodeThreads
from common.cluster.ssh.payload import Needs
from common.cluster.ssh.worker_link import UNHANDLED, WorkerLink
from common.errors import NodeError
from common.paths import Paths, published_file
from tests.conftest import wait_until


class Played:
    """A process whose lines are given; then it ends with 127."""

    stderr_tail = b"no such file"

    def __init__(self, lines: list[bytes]) -> None:
        self.lines, self.read = lines, 0

    def notify(self, wake: Any) -> None:
        wake()

    def next_line(self, timeout: float = 0.0) -> bytes:
        self.read += 1
        return self.lines.pop(0) if self.lines else b""

    def wait(self, timeout: float | None = None) -> int:
        return 127

    def close(self) -> None: ...

    close_input = close


def node(folder: Path, tell: Any) -> NodeThreads:
    server = Server(host="n")
    return NodeThreads(
        server,
        Paths(folder),
        ClusterConfig(servers=[server]),
        Needs((), {}, (), (), "us"),
        tell,
    )


def test_a_worker_that_ends_at_once_is_reported_as_started_first(tmp_path: Path) -> None:
    events: list[Event] = []
    one = node(tmp_path, events.append)
    one._connection = SimpleNamespace(
        start=lambda argv: Played([]),
        shared=False,
        path="/there",
        python="python3",
        close=lambda: None,
    )
    one._plan = SlotPlan((Slot("n", 0, None),))
    for number in range(1, 101):
        one._start_worker(Slot("n", 0, None))
        wait_until(lambda number=number: len(events) == 2 * number, what="its end")
    one.stop()
    for started, ended in zip(events[::2], events[1::2], strict=True):
        assert isinstance(started, Started)
        assert isinstance(ended, Ended)
        assert started.worker is ended.worker


def test_what_a_worker_that_died_has_left_is_ended(tmp_path: Path) -> None:
    """Own code may have forked; a worker that was told to end has seen to that itself."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    asked: list[list[str]] = []
    one = node(tmp_path, events.put)
    run = lambda argv, timeout: asked.append(argv)  # noqa: E731
    one._connection = SimpleNamespace(run=run, close=lambda: None)
    for told in (False, True):
        process = Played([b"mark\n", b'{"hello": {"pid": 4242}}\n'])
        link = WorkerLink(one, Slot("n", 0, None), process, "mark", events.put)
        if told:
            link.end()
        link.begin()
        while not isinstance(events.get(timeout=30), Ended):
            pass
    one.stop()
    assert asked == [["sh", "-c", "kill -s KILL -- -4242"]]


def test_a_worker_that_floods_the_head_is_not_read_faster_than_it_is_looked_at(
    tmp_path: Path,
) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    one = node(tmp_path, events.put)
    process = Played([b"mark\n", *[b"{}\n"] * (3 * UNHANDLED)])
    link = WorkerLink(one, Slot("n", 0, None), process, "mark", events.put)
    link.begin()
    wait_until(lambda: events.qsize() == UNHANDLED, what="as many as may wait")
    assert process.read <= UNHANDLED + 2
    while isinstance(event := events.get(timeout=30), Said):
        event.worker.handled()
    one.stop()
    assert isinstance(event, Ended)


@pytest.mark.parametrize("free", [0, 1 << 40])
def test_a_copy_that_fails_because_the_heads_disk_is_full_is_no_fault_of_the_node(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull(names: list[str], root: Path) -> None:
        raise NodeError("n: rsync: exit code 11")

    usage = namedtuple("usage", ("total", "used", "free"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, free))
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    one = node(tmp_path, events.put)
    one._connection = SimpleNamespace(pull=pull, close=lambda: None)
    one.fetch("b" * 16, urgent=True)
    event = events.get(timeout=30)
    one.stop()
    if free:
        assert isinstance(event, Fetched)
        assert event.error == "n: rsync: exit code 11"
    else:
        assert isinstance(event, Broken)
        assert isinstance(event.error, OSError)
        assert event.error.errno == errno.ENOSPC
        assert str(tmp_path) in str(event.error.filename)


@pytest.mark.parametrize("there", ["sent", "other"])
def test_data_count_as_arrived_only_with_the_bytes_that_were_sent(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ("data/x", "ann_train.pt")
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    one = node(tmp_path, events.put)
    one.needs = Needs((), {file: "sent"}, (), (), "us")
    moved = SimpleNamespace(bytes=3)
    one._connection = SimpleNamespace(push=lambda names: moved, close=lambda: None)
    found = SimpleNamespace(data={file: there})
    monkeypatch.setattr(node_module, "inventory", lambda *asked: found)
    one.send_data([file])
    event = events.get(timeout=30)
    one.stop()
    assert isinstance(event, Arrived)
    assert event.error == (
        ""
        if there == "sent"
        else "n: data/x/ann_train.pt: checksum mismatch after the copy; was it modified here?"
    )


def test_a_result_that_was_not_copied_is_not_taken(tmp_path: Path) -> None:
    """rsync leaves out what lies behind a link."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    one = node(tmp_path, events.put)
    jobs = ["a" * 16, "b" * 16]
    pulled = SimpleNamespace(missing={published_file(jobs[0])}, root=tmp_path, bytes=9)
    one._connection = SimpleNamespace(pull=lambda names, root: pulled, close=lambda: None)
    one._fetch(jobs)
    lacking, rest = events.get(timeout=30), events.get(timeout=30)
    one.stop()
    assert isinstance(lacking, Fetched)
    assert isinstance(rest, Fetched)
    assert (lacking.jobs, rest.jobs, rest.error) == ((jobs[0],), (jobs[1],), "")
    assert "results behind links are not taken" in lacking.error


@pytest.mark.parametrize(("nodes", "seconds"), [(1, 0.5), (5, 0.5), (100, 10.0)])
def test_of_many_nodes_each_gathers_results_for_longer(
    nodes: int, seconds: float, tmp_path: Path
) -> None:
    settings = ClusterConfig(servers=[Server(host=f"n{number}") for number in range(nodes)])
    needs = Needs((), {}, (), (), "us")
    one = NodeThreads(settings.servers[0], Paths(tmp_path), settings, needs, print)
    assert one.gather_seconds == seconds


def test_results_that_come_together_are_fetched_together_an_urgent_one_at_once(
    tmp_path: Path,
) -> None:
    pulled: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def pull(names: list[str], root: Path) -> None:
        pulled.put(sorted({name.split("/")[1].removesuffix(".pt") for name in names}))
        raise NodeError("enough")

    one = node(tmp_path, lambda event: None)
    one._connection = SimpleNamespace(pull=pull, close=lambda: None)
    one.gather_seconds = 600
    one.fetch("a/fold0_ann", urgent=False)
    one.fetch("b/fold0_ann", urgent=False)
    assert pulled.empty()
    one.fetch("c" * 16, urgent=True)
    assert pulled.get(timeout=30)[:2] == ["a", "b"]
    wait_until(lambda: not one._fetcher._running, what="the end of the thread")
    one.stop()


def test_a_result_that_was_found_counts_as_made_in_this_run_once_it_was_trained_too(
    tmp_path: Path,
) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def pull(names: list[str], root: Path) -> SimpleNamespace:
        return SimpleNamespace(missing=set(), root=root, bytes=1)

    one = node(tmp_path, events.put)
    one._connection = SimpleNamespace(pull=pull, close=lambda: None)
    one.gather_seconds = 600
    for job in ("a/fold0_ann", "b/fold0_ann"):
        one.fetch(job, urgent=False, found=True)
    one.fetch("b/fold0_ann", urgent=True)
    event = events.get(timeout=30)
    one.stop()
    assert isinstance(event, Fetched)
    assert (event.jobs, event.found) == (("a/fold0_ann", "b/fold0_ann"), {"a/fold0_ann"})
