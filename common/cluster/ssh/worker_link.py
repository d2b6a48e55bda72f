"""The head's end of one worker."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
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
        self._pid: object = None  # there
        self.heard = time.monotonic()
        self._given: set[str] = set()  # jobs that it may report
        self._marker: bytes | None = marker.encode()  # until it has come
        self._marker_until = self.heard + START_SECONDS
        self._outbox: deque[bytes | None] = deque()  # None: the end of its input
        self._said = self._handled = 0  # messages; each number is counted by one thread
        self._is_wanted = True
        self._why, self._must_kill = "", False  # of its end

    @property
    def is_leaving(self) -> bool:
        """Whether it gets no more jobs."""
        return self.state in (WorkerState.ENDING, WorkerState.YIELDING)

    # -- in the event loop

    def begin(self) -> None:
        """Start listening and sending. Report Started first: the worker may end at once."""
        self.node.links.add(self)

    def handled(self) -> None:
        """One message was handled: another may be read. A worker that floods the head only fills
        its own pipe.
        """
        self._handled += 1

    def send(self, message: dict[str, Any]) -> None:
        if "job" in message:
            self._given.add(message["job"])
        self._put(json.dumps(message).encode() + b"\n")

    def end(self) -> None:
        """Close its input: the worker ends itself and all that it started."""
        self._is_wanted = False
        self._put(None)

    def _put(self, data: bytes | None) -> None:
        if data and not self._outbox and self._process.never_blocks:
            data = self._sent_at_once(data)
        if data != b"":
            self._outbox.append(data)
            self.node.links.wake()

    def _sent_at_once(self, data: bytes) -> bytes:
        """What its pipe did not take of `data`."""
        try:
            return data[self._process.write_some(data) :]
        except NodeError:  # as in `write`
            return b""

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    # -- in the thread of its node's links

    def notify(self, wake: Callable[[], None]) -> int | None:
        """How to hear that it has said something; see Process."""
        return self._process.notify(wake)

    @property
    def is_full(self) -> bool:
        """Whether so many of its messages are not handled that no more are read."""
        return self._said - self._handled >= UNHANDLED

    @property
    def has_unsent(self) -> bool:
        """Whether anything waits to be written."""
        return bool(self._outbox)

    def write(self) -> None:
        """Send what its pipe takes now."""
        try:
            while self._outbox:
                if (data := self._outbox[0]) is None:
                    self._outbox.clear()
                    self._process.close_input()
                elif rest := data[self._process.write_some(data) :]:
                    self._outbox[0] = rest
                    return
                else:
                    self._outbox.popleft()
        except NodeError:  # reading reports its end, the heartbeat its silence
            self._outbox.clear()

    def read(self) -> bool:
        """Report what it has said. False once nothing more will come: `finish` it then."""
        try:
            while not self.is_full and (line := self._process.next_line()) is not None:
                if not line:
                    return False
                self._hear(line)
        except (ValueError, RecursionError) as error:
            self._why, self._must_kill = f"invalid worker message ({one_line(error)})", True
            return False
        except NodeError as error:
            self._why = str(error)
            return False
        if self._marker is not None and time.monotonic() > self._marker_until:
            self._why, self._must_kill = f"no hello within {START_SECONDS:.0f} s", True
        return not self._must_kill

    def _hear(self, line: bytes) -> None:
        if self._marker is not None:  # what is printed before it is dropped
            self._marker = None if line.strip() == self._marker else self._marker
            return
        message = protocol.message(json.loads(line), self._given)
        self._given -= {message.get("done"), message.get("failed")}
        self._pid = message.get("hello", {}).get("pid", self._pid)
        self.heard = time.monotonic()
        self._said += 1
        self._tell(Said(self, message))

    # -- in a thread of its own

    def finish(self) -> None:
        """Wait for its end and report it."""
        if self._must_kill:
            self._process.kill()
        code: int | None = None
        with contextlib.suppress(TimeoutError):
            code = self._process.wait(10)
        words = self._why or last_words(self._process.stderr_tail)
        self._process.close()
        if code is not None and self._is_wanted and isinstance(self._pid, int):
            self.node.end_left(self._pid)
        is_read = code is not None and self.log and self._is_wanted
        self._tell(Ended(self, code, words, self.node.tail(str(self.log)) if is_read else ""))
