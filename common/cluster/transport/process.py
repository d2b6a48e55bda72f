"""A running command on a node, here or over SSH: lines out, bytes in, and an end that is distinct
from a lost link.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko

from common.cli import one_line
from common.cluster.transport.openssh import CONNECT_SECONDS
from common.errors import NodeError

MAX_LINE = 16 << 20
TAIL = 16 << 10  # of standard error
START_SECONDS = 2 * CONNECT_SECONDS  # for login files to run
CHUNK = 64 << 10
TICK = 0.25  # how long a paramiko call may block before deadlines are checked
# for output still under way after the exit status; a grandchild may hold the pipe for ever
GRACE = 2.0


@dataclass(frozen=True)
class Result:
    """The end of a command. `exit_code` is the command's own, or 128 + N when signal N ended it.

    It is None when the link was lost or time ran out: then nothing is known about the command,
    which may still be running.
    """

    exit_code: int | None
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    @property
    def text(self) -> str:
        """Standard output as text, without the last line break."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    @property
    def last_words(self) -> str:
        """The end of standard error in one line, for messages."""
        return last_words(self.stderr)


def last_words(stderr: bytes) -> str:
    """The last three lines that are not empty, printable, joined by semicolons."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return one_line("\n".join(lines[-3:]))


class Process(ABC):
    """A long-lived command. One thread reads, any thread may write or end it."""

    pid: int  # on the node; also its process group
    never_blocks = False  # whether `write_some` without a timeout surely does not wait

    def __init__(self, name: str, keep_all: bool = False) -> None:
        self.name = name
        self._out, self._err = bytearray(), bytearray()
        self._keep_all = keep_all
        self._ended_output = False
        self._searched = 0  # bytes of output that hold no line break
        self._patience = float("inf")  # until when output may still come after the exit
        self._sending = threading.Lock()
        self._input_closed = False

    def read_line(self, timeout: float | None = None) -> bytes:
        """The next line of standard output with its line break, b"" at its end (call `wait` then).
        TimeoutError when none came in `timeout` seconds.

        Its end is also that of the process, soon after: a grandchild may hold the pipe open.
        """
        deadline = _deadline(timeout)
        while (line := self.next_line(_left(deadline, TICK))) is None:
            if time.monotonic() >= deadline:
                raise TimeoutError
        return line

    def next_line(self, timeout: float = 0.0) -> bytes | None:
        """As `read_line`, but None after one look at what comes within `timeout` seconds."""
        if (line := self._take_line()) is not None:
            return line
        if not self._receive(timeout) and not self._ended_output and self._has_exited():
            self._patience = min(self._patience, _deadline(GRACE))
            self._ended_output = time.monotonic() >= self._patience
        return self._take_line()

    def _take_line(self) -> bytes | None:
        end = self._out.find(b"\n", self._searched)
        if end < 0 and not self._ended_output:
            self._searched = len(self._out)
            if self._searched > MAX_LINE:
                raise NodeError(
                    f"a line of more than {MAX_LINE} bytes came from the node; it is"
                    " not listened to",
                    node=self.name,
                )
            return None
        size = end + 1 if end >= 0 else len(self._out)
        line = bytes(self._out[:size])
        del self._out[:size]
        self._searched = 0
        return line

    def write(self, data: bytes, timeout: float = 30) -> None:
        """Send all of `data` to its standard input; NodeError when the link or the process is gone
        or takes nothing for `timeout` seconds.
        """
        view, deadline = memoryview(data), _deadline(timeout)
        while view:
            if sent := self.write_some(bytes(view[:CHUNK]), _left(deadline, TICK)):
                view, deadline = view[sent:], _deadline(timeout)
            elif time.monotonic() >= deadline:
                raise NodeError(f"process {self.pid} takes no input", node=self.name)

    def write_some(self, data: bytes, timeout: float = 0.0) -> int:
        """Send what of `data` its standard input takes within `timeout` seconds; how many bytes.
        NodeError as `write`.
        """
        with self._sending:
            if self._input_closed:
                raise NodeError(f"the input of process {self.pid} is closed", node=self.name)
            return self._send(data, timeout)

    def wait(self, timeout: float | None = None) -> int | None:
        """Read on to the end; its exit code as in Result (None: link lost, or closed by us).
        TimeoutError while it still runs.
        """
        deadline = _deadline(timeout)
        grace = None
        while True:
            # The exit status may come before the last output.
            if self._has_exited():
                grace = grace or _deadline(GRACE)
                if self._all_read() or time.monotonic() >= grace:
                    return self._exit_code()
            elif time.monotonic() >= deadline:
                raise TimeoutError
            self._receive(min(_left(deadline, TICK), 0.05 if grace or self._ended_output else TICK))

    def communicate(self, data: bytes, timeout: float | None, limit: int) -> Result:
        """Send `data`, close the input, read to the end. Kills the command when time or `limit`
        (bytes of output) runs out.
        """
        deadline = _deadline(timeout)
        view = memoryview(data)
        try:
            while view and not self._has_exited():
                sent = self._send(bytes(view[:CHUNK]), 0)
                view = view[sent:]
                self._receive(0 if sent else 0.02)
                if time.monotonic() >= deadline:
                    raise TimeoutError
        except NodeError:
            pass  # it ended without reading everything, as `head` does: its exit code says the rest
        self.close_input()
        return self._collect(deadline, limit)

    def _collect(self, deadline: float, limit: int) -> Result:
        try:
            while len(self._out) + len(self._err) <= limit:
                with contextlib.suppress(TimeoutError):
                    code = self.wait(_left(deadline, 1.0))
                    return Result(code, bytes(self._out), bytes(self._err))
                if time.monotonic() >= deadline:
                    self.kill()
                    return Result(
                        None,
                        bytes(self._out),
                        bytes(self._err) + b"\nno end within the time allowed",
                    )
            self.kill()
            raise NodeError(
                f"a command printed more than {limit} bytes; it was ended", node=self.name
            )
        finally:
            self.close()

    @property
    def stderr_tail(self) -> bytes:
        """The last of its standard error so far."""
        return bytes(self._err[-TAIL:])

    def _keep(self, out: bytes = b"", err: bytes = b"") -> None:
        self._out += out
        self._err += err
        if not self._keep_all and len(self._err) > 2 * TAIL:
            del self._err[:-TAIL]

    @abstractmethod
    def notify(self, wake: Callable[[], None]) -> int | None:
        """How to hear that there is something to read: a descriptor that is readable then, or None
        where `wake` is called, from any thread.
        """

    @abstractmethod
    def _receive(self, timeout: float) -> bool:
        """Take in what comes within `timeout` seconds; whether anything came."""

    @abstractmethod
    def _send(self, data: bytes, timeout: float) -> int:
        """Bytes taken; 0 when none can be in `timeout` seconds. NodeError when the other end is
        gone.
        """

    @abstractmethod
    def _all_read(self) -> bool:
        """Whether both outputs were read to their ends."""

    @abstractmethod
    def _has_exited(self) -> bool:
        """Ended or lost."""

    @abstractmethod
    def _exit_code(self) -> int | None:
        """Once `_has_exited`: the code."""

    @abstractmethod
    def close_input(self) -> None:
        """End its standard input: a worker stops itself then."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL to its process group; over a lost link nothing can be done, and nothing is
        raised.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop listening and free this end. It does not kill; a local process that is still running
        must be killed or waited for first.
        """


def _deadline(timeout: float | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + timeout


def _left(deadline: float, most: float) -> float:
    return max(0.0, min(deadline - time.monotonic(), most))


class LocalProcess(Process):
    """A child of this process, in a session of its own."""

    never_blocks = True

    def __init__(
        self, name: str, argv: Sequence[str], folder: Path | str, keep_all: bool = False
    ) -> None:
        super().__init__(name, keep_all)
        self._popen = subprocess.Popen(
            argv,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._stdin, self._stdout, self._stderr = (
            self._popen.stdin,
            self._popen.stdout,
            self._popen.stderr,
        )
        self._selector = selectors.EpollSelector()
        for pipe in (self._stdout, self._stderr):
            self._selector.register(pipe, selectors.EVENT_READ)
        os.set_blocking(self._stdin.fileno(), False)

    def notify(self, wake: Callable[[], None]) -> int | None:
        return self._selector.fileno()

    def _receive(self, timeout: float) -> bool:
        if not self._selector.get_map():
            if not self._has_exited():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._popen.wait(timeout)
            return False
        got = False
        for key, _ in self._selector.select(timeout):
            data = os.read(key.fd, CHUNK)
            if not data:
                self._selector.unregister(key.fileobj)
                self._ended_output |= key.fileobj is self._stdout
            elif key.fileobj is self._stdout:
                self._keep(out=data)
            else:
                self._keep(err=data)
            got |= bool(data)
        return got

    def _send(self, data: bytes, timeout: float) -> int:
        try:
            if timeout > 0:  # not select(): a head of many nodes has descriptors beyond its range
                ready = select.poll()
                ready.register(self._stdin, select.POLLOUT)
                ready.poll(1000 * timeout)
            return os.write(self._stdin.fileno(), data)
        except BlockingIOError:
            return 0
        except (OSError, ValueError) as error:
            raise NodeError(
                f"process {self.pid} ended and takes no input ({error})", node=self.name
            ) from None

    def _all_read(self) -> bool:
        return not self._selector.get_map()

    def _has_exited(self) -> bool:
        return self._popen.poll() is not None

    def _exit_code(self) -> int | None:
        code = self._popen.returncode
        return 128 - code if code < 0 else code

    def close_input(self) -> None:
        self._input_closed = True
        # a write that is under way sees the flag; its descriptor must not change hands
        with self._sending, contextlib.suppress(OSError):
            self._stdin.close()

    def kill(self) -> None:
        # Also after the leader has ended: its children may still be in the group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def close(self) -> None:
        self.close_input()
        self._selector.close()
        self._stdout.close()
        self._stderr.close()
        self._ended_output = True


class RemoteProcess(Process):
    """A command behind an SSH channel. Made by connection.py, which has read the start marker with
    its process id.
    """

    def __init__(
        self,
        name: str,
        channel: paramiko.Channel,
        transport: paramiko.Transport,
        release: Callable[[], None],
        kill: Callable[[int], None],
        keep_all: bool,
    ) -> None:
        super().__init__(name, keep_all)
        self._channel, self._transport, self._release, self._kill = (
            channel,
            transport,
            release,
            kill,
        )
        self.pid = 0
        self._closed_by_us = False
        self._start_of_stderr: bytes | None = None
        self._before_start = b""
        channel.settimeout(TICK)

    def await_shell(self, marker: str) -> None:
        """Drop what login files print, up to the line `marker`. NodeError when it does not come."""
        self._await_line(marker.encode())

    def read_start(self, marker: str) -> None:
        """The start of the command: `marker PID` on standard output, `marker` on standard error.
        NodeError when it does not come.
        """
        sign = marker.encode()
        self._start_of_stderr = sign
        rest = b""
        while not rest.strip().isdigit():
            rest = self._await_line(sign + b" ")
        self.pid = int(rest)

    def _await_line(self, sign: bytes) -> bytes:
        """The rest of the first line that holds `sign`."""
        deadline = _deadline(START_SECONDS)
        while True:
            try:
                line = self.read_line(_left(deadline, START_SECONDS))
            except TimeoutError:
                raise NodeError(
                    f"the node did not start a command in {START_SECONDS} s; does a login file"
                    f" wait there?{self._said()}",
                    node=self.name,
                ) from None
            _, found, rest = line.partition(sign)
            if found:
                return rest
            if not line:
                with contextlib.suppress(TimeoutError):
                    self.wait(GRACE)  # for the rest of standard error
                raise NodeError(
                    "the node could not start a command"
                    + (self._said() or ": the connection ended"),
                    node=self.name,
                )
            self._before_start = (self._before_start + line)[-TAIL:]

    def _said(self) -> str:
        """The node's last words, from both outputs."""
        words = [last_words(self._before_start + bytes(self._out)), last_words(self.stderr_tail)]
        said = "; ".join(filter(None, words))
        return f": {said}" if said else ""

    def notify(self, wake: Callable[[], None]) -> int | None:
        for buffer in (self._channel.in_buffer, self._channel.in_stderr_buffer):
            buffer.set_event(_Bell(wake))
        return None

    def _receive(self, timeout: float) -> bool:
        got = False
        while self._channel.recv_stderr_ready():
            self._take_stderr(self._channel.recv_stderr(CHUNK))
            got = True
        ended = self._channel.eof_received or self._channel.closed
        if self._ended_output or not (timeout > 0 or ended or self._channel.recv_ready()):
            if timeout > 0 and not got:
                self._channel.status_event.wait(timeout)
            return got
        try:
            data = self._channel.recv(CHUNK)
        except TimeoutError:
            return got
        self._ended_output = not data
        self._keep(out=data)
        return got or bool(data)

    def _take_stderr(self, data: bytes) -> None:
        self._keep(err=data)
        if self._start_of_stderr and (sign := self._start_of_stderr + b"\n") in self._err:
            del self._err[: self._err.index(sign) + len(sign)]
            self._start_of_stderr = None

    def _send(self, data: bytes, timeout: float) -> int:
        if timeout <= 0 and not self._channel.send_ready():
            return 0
        try:
            if sent := self._channel.send(data):
                return sent
        except TimeoutError:
            return 0
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise NodeError(
                f"process {self.pid} cannot be written to: {error or 'the link is lost'}",
                node=self.name,
            ) from None
        raise NodeError(
            f"process {self.pid} cannot be written to, its channel is closed", node=self.name
        )

    def _all_read(self) -> bool:
        # sshd ends the output after standard error too has ended, so all of that is here by then.
        return self._ended_output and not self._channel.recv_stderr_ready()

    def _has_exited(self) -> bool:
        return self._channel.exit_status_ready()

    def _exit_code(self) -> int | None:
        code = self._channel.recv_exit_status()
        if code >= 0:
            return code
        if self._closed_by_us:
            return None
        # No status: the link was lost, or a signal ended the shell that reports it. The channel
        # closes a moment before its transport.
        self._transport.join(1.0)
        return 128 + signal.SIGKILL if self._transport.is_active() else None

    def close_input(self) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()

    def kill(self) -> None:
        if not self._channel.exit_status_ready():
            self._kill(self.pid)

    def close(self) -> None:
        if not self._closed_by_us:
            self._closed_by_us = not self._channel.exit_status_ready()
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                self._channel.close()
            self._ended_output = True
            release, self._release = self._release, _nothing
            release()


class _Bell(threading.Event):
    """Rings where paramiko would set an event."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def set(self) -> None:
        self._ring()


def _nothing() -> None:
    """Released already."""
