"""The head's end of one worker: a reader and a writer thread."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from enum import Enum
from typing import TYPE_CHECKING, Any

from common.cli import one_line
from common.cluster import protocol
from common.cluster.config import Slot
from common.cluster.scheduler.states import SlotId
from common.cluster.ssh.events import Ended, Said, Tell
from common.cluster.transport.process import Process, last_words
from common.errors import NodeError

if TYPE_CHECKING:
    from common.cluster.ssh.node import NodeThreads

START_SECONDS = 120.0  # for a worker to say hello
UNHANDLED = 100  # messages of a worker that wait to be handled; no more are read


class WorkerState(Enum):
    """How a worker stands, as the run's event loop sees it."""

    STARTING = "starting"  # it has not said hello
    WAITING = "waiting"  # another project fills the slot
    READY = "ready"  # it takes jobs
    YIELDING = "yielding"  # it gives the slot up to another project, and a new worker waits for it
    ENDING = "ending"  # it gets no more jobs, and its end is expected


class WorkerLink:
    """The head's end of one worker: reports its lines as events; sending never blocks."""

    def __init__(
        self, node: NodeThreads, slot: Slot, process: Process, marker: str, tell: Tell
    ) -> None:
        self.node, self.slot, self._process, self._tell = node, slot, process, tell
        self.place = SlotId(node.name, slot.index)  # its slot, as the scheduler calls it
        self.state = WorkerState.STARTING  # changed by the event loop only
        self.holder = ""  # of the slot, while it waits
        self.job = ""  # that it was given last
        self.epoch: object = None  # of that job
        self.epoch_at = 0.0  # when that epoch was reported first
        self.log: str | None = None  # on the node
        self.heard = time.monotonic()
        self._given: set[str] = set()  # jobs that it may report
        self._marker = marker.encode()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._unhandled = threading.Semaphore(UNHANDLED)

    @property
    def is_leaving(self) -> bool:
        """Whether it gets no more jobs."""
        return self.state in (WorkerState.ENDING, WorkerState.YIELDING)

    def begin(self) -> None:
        """Start listening and sending. Report Started first: the worker may end at once."""
        threading.Thread(
            target=self._read, name=f"read {self.node.name} {self.slot.index}", daemon=True
        ).start()
        threading.Thread(
            target=self._write, name=f"write {self.node.name} {self.slot.index}", daemon=True
        ).start()

    def handled(self) -> None:
        """One message was handled: another may be read. A worker that floods the head only fills
        its own pipe.
        """
        self._unhandled.release()

    def send(self, message: dict[str, Any]) -> None:
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
            except NodeError:  # the reader reports its end, the heartbeat its silence
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
            self._ended(f"invalid worker message ({one_line(error)})")
        except TimeoutError:
            self._process.kill()
            self._ended(f"no hello within {START_SECONDS:.0f} s")
        except NodeError as error:
            self._ended(str(error))

    def _await_marker(self) -> None:
        """Drop everything printed before the start marker."""
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
