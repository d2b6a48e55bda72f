"""The worker's protocol, driven as the head drives it: jobs in, answers out, and an end whenever
the head is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.cluster.on_node import processes
from common.cluster.on_node import worker as worker_module
from common.cluster.on_node.slot import SlotHeld, slot_folder, take_slot
from common.cluster.on_node.worker import cause_of
from common.errors import (
    BaseModelNotFound,
    CorruptArtifact,
    InputError,
    NodeError,
    ProjectError,
    TrainingError,
)
from tests.conftest import ROOT, script_environment, wait_until

MARKER = "f00d" * 8
SCRIPT = """
import os, sys, time
def run(options, progress):
    print("hello")
    what = options["what"]
    if what == "wait":
        while True:
            progress({"epoch": 1, "of": 2})
            time.sleep(0.01)
    if what == "last":
        from common.training.stopping import stopping
        progress({"epoch": 1, "of": 1})
        while not stopping.wanted:
            time.sleep(0.01)
    if what == "children":
        import subprocess
        argv = [sys.executable, "-S", "-c", "import time; time.sleep(1000)"]
        subprocess.Popen(argv, start_new_session=True)
    if what == "odd":
        os.chdir("/")
        sys.stdout.close()
        sys.stderr.close()
    if what == "fork":
        if (pid := os.fork()) == 0:
            progress({"epoch": 1, "of": 1})
            open("went on", "w").close()
            os._exit(0)
        os.waitpid(pid, 0)
    if what == "memory":
        raise MemoryError()
    if what == "deaf":
        import fcntl, stat
        for fd in map(int, os.listdir("/dev/fd")):
            try:
                piped = stat.S_ISFIFO(os.fstat(fd).st_mode)
                if piped and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                    os.close(fd)
            except OSError:
                pass
    return {"pid": os.getpid(), "device": options["device"], "folder": os.getcwd()}
"""


class Worker:
    """A worker and its two pipes."""

    def __init__(self, folder: Path, owner: str = "me", *more: str) -> None:
        environment = script_environment(folder.parent) | {"PYTHONPATH": str(ROOT)}
        flags = {
            "project": folder,
            "slot": "cpu0",
            "owner": owner,
            "marker": MARKER,
            "device": "cpu",
            "beat": 0.2,
        }
        argv = [
            sys.executable,
            "-m",
            "common.cluster.on_node.worker",
            *(f"--{name}={value}" for name, value in flags.items()),
            *more,
        ]
        self.process = subprocess.Popen(
            argv,
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        while (line := self.stdout.readline()) and line.strip() != MARKER.encode():
            continue
        first = self.read() if line else {}
        while "beat" in first:
            first = self.read()
        self.hello, self.waiting = first.get("hello", {}), first.get("waiting", {})

    def read(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.stdout.readline())
        return message

    def send(self, **message: object) -> None:
        self.stdin.write(json.dumps(message).encode() + b"\n")
        self.stdin.flush()

    def answer(self, kind: str) -> dict[str, Any]:
        """The next message with that key; others are passed over."""
        while kind not in (message := self.read()):
            continue
        return message

    def close(self) -> None:
        """End its input, and wait for its end."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.stdin.close()
        self.process.wait(30)
        self.stdout.close()

    def job(self, what: str, number: int = 0) -> None:
        self.send(job=f"j{number}", script="own.py", values={"what": what, "device": "7"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/own.py").write_text(SCRIPT)
    return tmp_path / "project"


@pytest.fixture
def worker(folder: Path) -> Iterator[Worker]:
    made = Worker(folder)
    yield made
    processes.end([*processes.descendants(made.process.pid), made.process.pid])
    made.process.wait()
    made.stdin.close()
    made.stdout.close()


def test_a_worker_is_ready_before_its_hello_and_measures_its_slot_where_it_is_asked_to(
    folder: Path,
) -> None:
    """The first job must not look longer than it is."""
    for flags, is_ready in (((), False), (("--measure=0",), True), (("--measure=0.05",), True)):
        made = Worker(folder, "me", *flags)
        maps = Path(f"/proc/{made.process.pid}/maps").read_text()
        loaded = "libtorch" in maps and "sklearn" in maps
        made.stdin.close()
        made.process.wait(30)
        made.stdout.close()
        assert loaded == is_ready
        assert ("speed" in made.hello) == (flags == ("--measure=0.05",))
        assert made.hello.get("speed", 1) > 0


def test_jobs_are_answered_in_one_process_and_prints_go_to_the_log(
    worker: Worker, folder: Path
) -> None:
    worker.job("plain", 0)
    worker.job("memory", 1)
    worker.job("plain", 2)
    first, second, third = worker.answer("done"), worker.answer("failed"), worker.answer("done")
    result = {"pid": worker.process.pid, "device": "cpu", "folder": str(folder)}
    assert first["result"] == result
    assert first["log"] == "hello\n"
    assert (second["failed"], second["cause"]) == ("j1", "out_of_memory")
    assert third["result"]["pid"] == first["result"]["pid"]


def test_a_job_that_leaves_its_folder_and_closes_its_output_spoils_no_other(
    worker: Worker, folder: Path
) -> None:
    worker.job("odd")
    assert worker.answer("done")["done"] == "j0"
    worker.job("memory", 1)
    assert worker.answer("failed")["cause"] == "out_of_memory"
    worker.job("x", 2)
    done = worker.answer("done")
    assert (done["log"], done["result"]["folder"]) == ("hello\n", str(folder))


def test_a_fork_of_the_worker_says_nothing_to_the_head(worker: Worker, folder: Path) -> None:
    worker.job("fork")
    assert worker.answer("done")["result"]["pid"] == worker.hello["pid"]
    worker.job("x", 1)
    assert worker.answer("done")["done"] == "j1"
    assert not (folder / "went on").exists()


def test_a_job_that_closes_the_pipe_from_the_head_ends_its_worker(worker: Worker) -> None:
    worker.job("deaf")
    assert worker.process.wait(30) == 1


def test_it_beats_while_a_job_runs_and_a_job_can_be_cancelled(worker: Worker) -> None:
    worker.job("wait")
    worker.answer("progress")
    worker.answer("beat")
    worker.send(cancel="another")
    worker.send(cancel="j0")
    assert worker.answer("failed")["cause"] == "cancelled"
    worker.job("plain", 1)
    assert worker.answer("done")["done"] == "j1"


def test_the_end_of_its_input_ends_it_and_all_that_it_started(worker: Worker) -> None:
    worker.job("children")
    worker.answer("done")
    below = processes.descendants(worker.process.pid)
    assert len(below) == 1
    worker.job("wait", 1)
    worker.answer("progress")
    worker.stdin.close()
    worker.process.wait(30)
    wait_until(
        lambda: all(processes.start_time(pid) is None for pid in below), what="the end of the child"
    )


NAP = '[sys.executable, "-S", "-c", "import time; time.sleep(1000)"]'
PARENT = f"""
import os, subprocess, sys, time
found = [subprocess.Popen({NAP}, start_new_session=apart).pid for apart in (False, True)]
open("pids.new", "w").write(" ".join(map(str, found)))
os.rename("pids.new", "pids")
while "--waits" in sys.argv:
    time.sleep(0.02)
"""


@pytest.mark.parametrize("waits", [False, True], ids=["that ends", "that is cancelled"])
def test_children_of_a_script_in_its_own_process_end_with_its_job(
    folder: Path, worker: Worker, waits: bool
) -> None:
    (folder / "plain.py").write_text(PARENT)
    worker.send(job="j0", script="plain.py", values={"waits": waits})
    if waits:
        wait_until((folder / "pids").exists, 30, "the start of the children")
        worker.send(cancel="j0")
        assert worker.answer("failed")["cause"] == "cancelled"
    else:
        assert worker.answer("done")["result"] == {}
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    wait_until(
        lambda: all(processes.start_time(pid) is None for pid in pids),
        10,
        "the end of the children",
    )
    assert worker.process.poll() is None


def test_a_script_in_its_own_process_is_given_the_slots_device_where_its_job_names_one(
    folder: Path, worker: Worker
) -> None:
    (folder / "plain.py").write_text("import sys\nprint(*sys.argv[1:])\n")
    for device, said in (("7", "--device=cpu\n"), (None, "\n")):
        worker.send(job="j0", script="plain.py", values={"device": device})
        assert worker.answer("done")["log"] == said


def test_silence_of_the_head_ends_it(folder: Path) -> None:
    worker = Worker(folder, "me", "--silence=0.5")
    assert worker.process.wait(30) == 1
    worker.stdin.close()
    worker.stdout.close()


def test_a_worker_that_was_frozen_for_too_long_ends_itself_though_the_head_still_speaks(
    folder: Path,
) -> None:
    worker = Worker(folder, "me", "--silence=2")
    worker.send(beat=1)
    os.kill(worker.process.pid, signal.SIGSTOP)
    frozen = time.monotonic()
    wait_until(lambda: time.monotonic() > frozen + 2.2, what="the end of its time")
    worker.send(beat=2)
    os.kill(worker.process.pid, signal.SIGCONT)
    waited = time.monotonic()

    def ends() -> bool:
        with contextlib.suppress(BrokenPipeError):
            worker.send(beat=3)
        return worker.process.poll() is not None or time.monotonic() > waited + 10

    wait_until(ends)
    assert worker.process.poll() == 1
    worker.close()


def test_a_newer_worker_of_the_same_project_ends_the_older_and_another_project_is_refused(
    folder: Path, worker: Worker
) -> None:
    other = Worker(folder, "somebody else", "--no-wait")
    assert "slot cpu0 held by me" in other.hello["refused"]
    assert other.process.wait(30) == 3
    assert worker.process.poll() is None
    newer = Worker(folder, "me")
    assert newer.hello["pid"] == newer.process.pid
    assert worker.process.wait(30) == -signal.SIGKILL
    newer.stdin.close()
    newer.process.wait(30)
    for pipe in (other.stdin, other.stdout, newer.stdout):
        pipe.close()


def test_a_project_waits_for_the_slot_of_another_and_gets_it(folder: Path, worker: Worker) -> None:
    other = Worker(folder, "somebody else")
    assert other.waiting["holder"] == "me"
    assert abs(other.waiting["since"] - time.time()) < 100
    assert other.answer("beat")
    worker.stdin.close()
    assert other.answer("hello")["hello"]["pid"] == other.process.pid
    other.close()


def test_a_worker_that_waits_for_a_slot_ends_with_its_input(folder: Path, worker: Worker) -> None:
    other = Worker(folder, "somebody else")
    assert other.waiting
    other.close()
    assert other.process.returncode == 1


@pytest.mark.parametrize(("turn", "yields"), [(0, True), (1000, False)])
def test_a_slot_is_given_up_after_a_job_once_its_turn_is_over(
    folder: Path, turn: int, yields: bool
) -> None:
    first = Worker(folder, "me", f"--turn={turn}")
    first.job("plain", 0)
    assert "yields" not in first.answer("done")  # nobody waits
    second = Worker(folder, "somebody else")
    wait_until(lambda: slot_is_queued_for(folder), what="the queue")
    first.job("plain", 1)
    assert first.answer("done").get("yields", False) is yields
    if yields:
        assert first.process.wait(30) == 1
        assert second.answer("hello")
    else:
        assert first.process.poll() is None
    first.close()
    second.close()


def slot_is_queued_for(folder: Path) -> bool:
    """Whether a worker holds the queue of slot cpu0."""
    queue = folder.parent / f"ml-customization-{os.getuid()}/slot-cpu0.queue"
    if not queue.exists():
        return False
    with queue.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_an_idle_slot_is_given_up_to_who_waits_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with take_slot("cpu0", "me", turn=1000) as lock:
        lock._worked -= 100
        assert not lock.must_yield(idle=True)
        with (slot_folder() / "slot-cpu0.queue").open("a") as queue:
            fcntl.flock(queue, fcntl.LOCK_EX)
            assert lock.must_yield(idle=True)
            assert not lock.must_yield()
            lock.worked()
            assert not lock.must_yield(idle=True)


def test_a_worker_that_is_told_to_stop_ends_at_once_where_it_runs_nothing(worker: Worker) -> None:
    worker.send(stop=1)
    assert worker.process.wait(30) == 1


def test_a_job_that_is_done_while_its_worker_stops_is_still_reported(worker: Worker) -> None:
    worker.job("last")
    worker.answer("progress")
    worker.send(stop=1)
    assert worker.answer("done")["done"] == "j0"
    assert worker.process.wait(30) == 1


def test_a_slot_is_free_again_when_its_holder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with take_slot("cpu0", "me"), pytest.raises(SlotHeld, match="held by me"):
        take_slot("cpu0", "another")
    take_slot("cpu0", "another").close()


class Full(io.StringIO):
    """Where prints go on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_too_full_for_the_log_is_still_told_as_the_nodes_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "full_disk.py").write_text(
        "def run(options, progress):\n    raise OSError(28, 'No space left on device')\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Full())
    with (folder / "log").open("ab", buffering=0) as log:
        outcome = worker_module.Worker(None, folder, "cpu", log).outcome(
            {"job": "j0", "script": "full_disk.py", "values": {}}
        )
    assert (outcome["failed"], outcome["cause"], outcome["log"]) == ("j0", "disk", "")


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (InputError("x"), "error"),
        (TrainingError("x"), "error"),
        (ValueError("x"), "error"),
        (FileNotFoundError("x"), "error"),
        (BaseModelNotFound("x"), "base_missing"),
        (CorruptArtifact("x"), "base_missing"),
        (NodeError("x"), "gpu_gone"),
        (OSError(errno.ENOSPC, "x"), "disk"),
        (OSError(errno.EDQUOT, "x"), "disk"),
        (OSError(errno.ESTALE, "x"), "disk"),
        (OSError(errno.EMFILE, "x"), "disk"),
        (OSError(errno.ENOMEM, "x"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("x"), "out_of_gpu_memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (RuntimeError("CUDA error: unspecified launch failure"), "gpu_gone"),
    ],
)
def test_whose_fault_an_error_is(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


def test_the_slot_folder_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / f"ml-customization-{os.getuid()}")
    with pytest.raises(ProjectError, match="belongs to another user"):
        slot_folder()
