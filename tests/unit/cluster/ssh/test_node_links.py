"""The links of a node's workers: one thread for all, and none that holds up another."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.cluster.config import Slot
from common.cluster.ssh.events import Broken, Ended, Event, Said
from common.cluster.ssh.node_links import NodeLinks
from common.cluster.ssh.work_threads import WorkThreads
from common.cluster.ssh.worker_link import UNHANDLED, WorkerLink
from common.cluster.transport.process import LocalProcess
from common.errors import NodeError
from tests.conftest import wait_until

# A worker that reads nothing, one that says what it is given, one that floods the head.
DEAF = "print('mark', flush=True); import time; time.sleep(1000)"
ECHO = """
import json, sys
print("mark", flush=True)
for line in sys.stdin:
    print(json.dumps({"progress": json.loads(line)["job"], "epoch": 1, "of": 2}), flush=True)
"""
FLOOD = """
print("mark", flush=True)
for number in range(1000):
    print('{"beat": 1}', flush=True)
"""


class Links:
    """Links to real processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.links = NodeLinks("n", self.events.put)
        self.processes: list[LocalProcess] = []

    def add(self, program: str) -> WorkerLink:
        process = LocalProcess("n", [sys.executable, "-ISc", program], self.folder)
        self.processes.append(process)
        node: Any = SimpleNamespace(name="n", links=self.links, tail=lambda path: "")
        slot = Slot("n", len(self.processes), None)
        link = WorkerLink(node, slot, process, "mark", self.events.put)
        link.begin()
        return link

    def next(self, kind: type[Any]) -> Any:
        while not isinstance(event := self.events.get(timeout=60), kind):
            if isinstance(event, Said):
                event.worker.handled()
        return event

    @property
    def threads(self) -> int:
        return sum(thread.name == "link n" for thread in threading.enumerate())


@pytest.fixture
def links(tmp_path: Path) -> Iterator[Links]:
    made = Links(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
    wait_until(lambda: not made.threads, what="the end of the thread")


def test_all_workers_of_a_node_share_one_thread_and_it_ends_with_the_last(links: Links) -> None:
    workers = [links.add(ECHO) for _ in range(8)]
    for number, worker in enumerate(workers):
        worker.send({"job": f"j{number}"})
    said = {links.next(Said).message["progress"] for _ in workers}
    assert said == {f"j{number}" for number in range(8)}
    assert links.threads == 1
    for worker in workers:
        worker.end()
    assert {links.next(Ended).code for _ in workers} == {0}
    wait_until(lambda: not links.threads, what="the end of the thread")
    again = links.add(ECHO)
    again.send({"job": "once more"})
    assert links.next(Said).message["progress"] == "once more"


def test_a_worker_that_takes_no_input_holds_up_no_other(links: Links) -> None:
    deaf, other = links.add(DEAF), links.add(ECHO)
    for _ in range(100):
        deaf.send({"job": "long", "values": "x" * 10_000})  # more than a pipe takes
    other.send({"job": "short"})
    assert links.next(Said).message["progress"] == "short"
    assert deaf.has_unsent


@pytest.mark.parametrize("at_once", [True, False])
def test_messages_are_whole_and_in_order_whatever_the_pipe_takes(at_once: bool) -> None:
    taken, room = bytearray(), iter((7, 1000, 0, 5, 1000, 1000, 1000))

    def write_some(data: bytes) -> int:
        size = min(len(data), next(room))
        taken.extend(data[:size])
        return size

    process: Any = SimpleNamespace(never_blocks=at_once, write_some=write_some)
    node: Any = SimpleNamespace(name="n", links=SimpleNamespace(wake=lambda: None))
    link = WorkerLink(node, Slot("n", 0, None), process, "mark", lambda event: None)
    messages = [{"beat": number} for number in range(3)]
    for message in messages:
        link.send(message)
    while link.has_unsent:
        link.write()
    assert [json.loads(line) for line in taken.splitlines()] == messages


def test_a_flood_is_read_as_it_is_handled_and_a_quiet_worker_beside_it_is_heard(
    links: Links,
) -> None:
    links.add(FLOOD)
    wait_until(lambda: links.events.qsize() == UNHANDLED, what="as many as may wait")
    links.add(ECHO).send({"job": "quiet"})
    wait_until(lambda: links.events.qsize() == UNHANDLED + 1, what="the quiet one")
    said = 0
    while isinstance(event := links.events.get(timeout=60), Said):
        event.worker.handled()
        said += 1
    assert isinstance(event, Ended)
    assert said == 1001


def test_an_error_that_nobody_foresaw_reaches_the_run(links: Links) -> None:
    def broken(wake: object) -> None:
        raise ZeroDivisionError

    process: Any = SimpleNamespace(notify=broken)
    node: Any = SimpleNamespace(name="n", links=links.links)
    WorkerLink(node, Slot("n", 0, None), process, "mark", links.events.put).begin()
    assert isinstance(links.next(Broken).error, ZeroDivisionError)


def test_input_is_closed_once_all_is_written(links: Links) -> None:
    worker = links.add(ECHO)
    worker.send({"job": "last"})
    worker.end()
    assert links.next(Said).message["progress"] == "last"
    assert links.next(Ended).code == 0


def test_work_threads_are_as_many_as_there_is_work_for_and_no_more_than_allowed() -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    work, go = WorkThreads("some work", 2, events.put), threading.Event()
    began: queue.SimpleQueue[int] = queue.SimpleQueue()

    def alive() -> int:
        return sum(thread.name == "some work" for thread in threading.enumerate())

    def do(number: int) -> None:
        began.put(number)
        go.wait(60)
        if number == 4:
            raise NodeError("not foreseen")

    assert not alive()
    for number in range(5):
        work.put(lambda number=number: do(number))
    assert {began.get(timeout=30), began.get(timeout=30)} == {0, 1}
    assert alive() == 2
    go.set()
    assert isinstance(events.get(timeout=30), Broken)
    wait_until(lambda: not alive(), what="the end of the threads")
    assert [began.get(timeout=30) for _ in range(3)] == [2, 3, 4]
    work.stop()
    work.put(lambda: began.put(5))
    wait_until(lambda: not alive(), what="the end of the threads")
    assert began.empty()
