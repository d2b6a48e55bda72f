"""The lock of a slot. It lies on the node's own disk and names the head and project that hold it;
the kernel releases it with its worker's end.

Two projects of one user take turns: the worker that waits for a slot holds the lock of its queue;
the worker that fills the slot gives it up after a job, once its turn is over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from common.cluster.on_node import processes
from common.errors import ProjectError

WAIT_SECONDS = 0.2  # between two tries to take a slot
PATIENCE_SECONDS = 10.0  # for an older worker of the same project to be gone
IDLE_SECONDS = 5.0  # without a job, after which a slot is given up to a waiting worker


class SlotHeld(ProjectError):
    """Another project's worker fills the slot: `holder`, its owner, since when (`since`)."""

    def __init__(self, name: str, record: Mapping[str, Any], since: float) -> None:
        owner = str(record.get("owner", "another worker"))
        message = f"slot {name} held by {owner} (process {record.get('pid', '?')})"
        super().__init__(message, holder=owner)
        self.since = since


def slot_folder() -> Path:
    """Where the slots' locks and logs lie: on the node's own disk."""
    folder = Path(tempfile.gettempdir()) / f"ml-customization-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise ProjectError(f"{folder}: belongs to another user: have it removed, or set TMPDIR")
    return folder


class SlotLock:
    """A slot that this process fills. `turn`: seconds that it keeps it while others wait."""

    def __init__(self, name: str, file: IO[str], turn: float = 0.0) -> None:
        self._file, self._turn = file, turn
        self._queue = slot_folder() / f"slot-{name}.queue"
        self._taken = self._worked = time.monotonic()

    def __enter__(self) -> SlotLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the slot up."""
        self._file.close()

    def worked(self) -> None:
        """A job has just ended."""
        self._worked = time.monotonic()

    def must_yield(self, *, idle: bool = False) -> bool:
        """Whether another project waits and it is its turn."""
        now = time.monotonic()
        due = now - self._worked >= IDLE_SECONDS if idle else now - self._taken >= self._turn
        return due and self._is_wanted()

    def _is_wanted(self) -> bool:
        with contextlib.suppress(OSError), self._queue.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def take_slot(
    name: str, owner: str, waiting: Callable[[SlotHeld], object] | None = None, turn: float = 0.0
) -> SlotLock:
    """Lock the slot. A worker of the same owner (head and project) is ended first; another's is
    waited for, after `waiting` was called with it, or SlotHeld is raised where `waiting` is None.
    """
    file = (slot_folder() / f"slot-{name}.lock").open("a+")
    with contextlib.ExitStack() as queue:
        reported, patient_until = "", time.monotonic() + PATIENCE_SECONDS
        while not _lock(file):
            try:
                _make_way(file, name, owner, patient=time.monotonic() < patient_until)
            except SlotHeld as held:
                if waiting is None:
                    file.close()
                    raise
                if held.message != reported:
                    waiting(held)
                if not reported:
                    _join_queue(name, queue)
                reported, patient_until = held.message, time.monotonic() + PATIENCE_SECONDS
            time.sleep(WAIT_SECONDS)
        _sign(file, owner)
        return SlotLock(name, file, turn)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _join_queue(name: str, queue: contextlib.ExitStack) -> None:
    """Hold the lock of the slot's queue, which one project after the other gets."""
    file = queue.enter_context((slot_folder() / f"slot-{name}.queue").open("a+"))
    fcntl.flock(file, fcntl.LOCK_EX)


def _sign(file: IO[str], owner: str) -> None:
    pid = os.getpid()
    record = {"owner": owner, "pid": pid, "started": processes.start_time(pid)}
    file.seek(0)
    file.truncate()
    json.dump({**record, "since": time.time()}, file)
    file.flush()


def _make_way(file: IO[str], name: str, owner: str, *, patient: bool) -> None:
    file.seek(0)
    try:
        holder = json.loads(file.read() or "{}")
    except ValueError:  # it is being written
        holder = {}
    if (holder and holder.get("owner") != owner) or not patient:
        since = holder.get("since")
        plain = isinstance(since, (int, float)) and not isinstance(since, bool)
        raise SlotHeld(name, holder, since if plain else os.fstat(file.fileno()).st_mtime)
    pid = holder.get("pid")
    if isinstance(pid, int) and processes.start_time(pid) == holder.get("started"):
        processes.end([*processes.descendants(pid), pid])
    # it was killed, and what it had forked holds its lock
    elif isinstance(pid, int) and processes.start_time(pid) is None:
        processes.end(processes.in_session(pid))
