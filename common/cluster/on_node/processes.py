"""Processes on this machine: their descendants, and how to end all of them. Linux
(/proc) only; stdlib only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that `end_descendants` finds
    them all.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def dying_with_us(argv: list[str]) -> list[str]:
    """`argv`, to be started as a child that the kernel kills when we die, even by SIGKILL."""
    code = (
        f"import ctypes, os, sys; ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, 9); "
        "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
    )
    return [sys.executable, "-S", "-E", "-c", code, str(os.getpid()), *argv]


def stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat after the command's name (state, parent, ...), or None when there is
    no such process.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def start_time(pid: int) -> str | None:
    """Clock ticks since boot at which a living process began: with its id, its identity. None for a
    zombie.
    """
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in "ZX" else fields[19]


def descendants(root: int) -> list[int]:
    """Ids of all living processes below `root`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (fields := stat_fields(int(entry))) and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def in_session(leader: int) -> list[int]:
    """Ids of all living processes of the session that `leader` made; it may have ended itself."""
    found = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]
    return [
        pid
        for pid in found
        if (fields := stat_fields(pid)) and fields[3] == str(leader) and fields[0] not in "ZX"
    ]


def end(pids: Iterable[int], with_signal: int = signal.SIGKILL) -> None:
    """Signal each of `pids` that still runs and belongs to this user."""
    for pid in pids:
        try:
            os.kill(pid, with_signal)
        except (ProcessLookupError, PermissionError):
            continue


def end_descendants(root: int) -> None:
    """Kill everything below `root`, also what is being forked meanwhile."""
    for _ in range(20):
        below = descendants(root)
        if not below:
            return
        end(below)


def reap() -> None:
    """Collect ended children that were adopted. Only where no other thread waits for a child of its
    own.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
