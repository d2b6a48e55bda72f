"""Everything that a process started is found and ended, wherever it hid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.cluster.on_node import processes, slot
from common.cluster.transport.process import LocalProcess
from tests.conftest import ROOT, wait_until

# A child, a child's child, and one that left for a session of its own; then waits for its input to
# end.
FAMILY = """
import subprocess, sys
nap = [sys.executable, "-S", "-c", "import time; time.sleep(1000)"]
between = [sys.executable, "-S", "-c", f"import subprocess; subprocess.Popen({nap!r})"]
from common.cluster.on_node import processes
processes.adopt_orphans()
subprocess.Popen(nap)
subprocess.Popen(nap, start_new_session=True)
subprocess.run(between)
print("ready", flush=True)
sys.stdin.read()
processes.end_descendants(__import__("os").getpid())
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        processes.end([*processes.descendants(process.pid), process.pid])


def test_descendants_are_all_of_them_also_those_whose_parent_ended(
    family: subprocess.Popen[str],
) -> None:
    assert len(processes.descendants(family.pid)) == 3
    assert family.pid not in processes.descendants(family.pid)
    assert family.pid in processes.descendants(os.getpid())


def test_end_descendants_leaves_none(family: subprocess.Popen[str]) -> None:
    below = processes.descendants(family.pid)
    assert family.stdin is not None
    family.stdin.close()
    assert family.wait(30) == 0
    wait_until(
        lambda: all(processes.start_time(pid) is None for pid in below),
        what="the end of the descendants",
    )


def test_a_child_dies_with_its_parent_even_by_sigkill() -> None:
    nap = [sys.executable, "-S", "-c", "import time; print(1, flush=True); time.sleep(1000)"]
    start = (
        f"p = subprocess.Popen(processes.dying_with_us({nap!r})); print(p.pid, flush=True);"
        " p.wait()"
    )
    code = f"import subprocess; from common.cluster.on_node import processes; {start}"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        (child,) = (int(line) for line in lines if line != "1")
        assert processes.start_time(child) is not None
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        wait_until(lambda: processes.start_time(child) is None, what="the end of the child")


def test_a_process_is_itself_only_with_its_start_time() -> None:
    assert processes.start_time(os.getpid()) == processes.start_time(os.getpid())
    assert processes.start_time(os.getpid()) != processes.start_time(1)
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as ended:
        # a zombie until it is waited for
        wait_until(lambda: processes.start_time(ended.pid) is None, what="the end of a child")
    assert processes.stat_fields(ended.pid) is None


def test_ending_what_has_ended_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as ended:
        pass
    processes.end([ended.pid])


# A process that ends while a fork of it, which says nothing, holds its output and its lock file
# open.
LEAVES_A_FORK = """
import fcntl, os, sys, time
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
if os.fork() == 0:
    time.sleep(1000)
print("hello", flush=True)
os._exit(7)
"""


def test_the_end_of_a_process_is_seen_though_a_fork_of_it_holds_its_output(tmp_path: Path) -> None:
    process = LocalProcess(
        "here", [sys.executable, "-S", "-c", LEAVES_A_FORK, str(tmp_path / "lock")], tmp_path
    )
    try:
        assert process.read_line(30) == b"hello\n"
        assert process.read_line(30) == b""
        assert process.wait(30) == 7
        (fork,) = processes.in_session(process.pid)
        assert processes.start_time(fork)
    finally:
        process.kill()
        process.close()
    wait_until(lambda: not processes.in_session(process.pid), what="the end of the fork")


def test_a_slot_whose_worker_was_killed_is_taken_from_what_it_had_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = slot.slot_folder() / "slot-cpu0.lock"
    dead = LocalProcess("here", [sys.executable, "-S", "-c", LEAVES_A_FORK, str(path)], tmp_path)
    try:
        assert dead.read_line(30) == b"hello\n"
        path.write_text(json.dumps({"owner": "us", "pid": dead.pid, "started": "1"}))
        dead.wait(30)
        with pytest.raises(slot.SlotHeld):
            slot.take_slot("cpu0", "somebody else")
        slot.take_slot("cpu0", "us").close()
        assert not processes.in_session(dead.pid)
    finally:
        dead.kill()
        dead.close()
