"""The long-lived process that fills a slot and runs job after job. It runs on the node; the head
speaks to it in JSON, one object a line.

In:   {"job": id, "script": name, "values": {...}}   {"cancel": id}   {"beat": n}
      {"stop": 1}: save a checkpoint at the next end of an epoch, then end
Out:  {"waiting": {"holder": owner, "since": time}}: another project fills the slot
      {"hello": {...}}   {"beat": n}   {"progress": id, ...}
      {"done": id, "result": {...}, "seconds": s, "log": tail}
      {"failed": id, "cause": c, "error": one line, "seconds": s, "log": tail}
      {"yields": true}, also as a part of done and failed: the slot is given up to a project that
      waits for it, and this worker ends

With --measure SECONDS the worker gets ready to train before it says hello: what only its first job
would pay for is no part of that job. Above 0 the hello says how fast the slot is: "speed", bytes of
windows per second, measured for so long.

The protocol has a duplicate of standard output to itself, after a marker line; the real standard
output and standard error point to the slot's log: prints do not disturb it. A worker that hears
nothing for `--silence` seconds, or whose input ends, ends itself and all that it started.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import errno
import faulthandler
import importlib
import importlib.util
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

from common.cli import one_line
from common.cluster.on_node import processes
from common.cluster.on_node.slot import SlotHeld, SlotLock, slot_folder, take_slot
from common.errors import BaseModelNotFound, CorruptArtifact, NodeError, ProjectError
from common.options import to_flags
from common.training.stopping import Stopped, stopping

LOG_TAIL = 16_384
PROGRESS_SECONDS = 1.0
# What a training imports on its way; the scores at its end need the second.
IMPORTED = ("common.training.finetune", "sklearn.metrics")
READY_SECONDS = 60.0  # at most, for importing torch, building the kernel and measuring
Message = dict[str, Any]


class Cancelled(BaseException):
    """The head cancelled the running job. Not an Exception: no job may swallow it."""


# -- the connection to the head


class Head:
    """The worker's side of the protocol: a reader that is the watchdog as well, a heartbeat, and
    messages out.
    """

    def __init__(self, marker: str, beat_seconds: float, silence_seconds: float) -> None:
        self._out, self._in, self._process = os.dup(1), os.dup(0), os.getpid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        self._marker, self._beat, self._silence = marker, beat_seconds, silence_seconds
        self._writing = threading.Lock()
        self._cancelled: str | None = None
        self.idle = True  # no job runs
        self.jobs: queue.Queue[Message] = queue.Queue()

    def start(self) -> None:
        """Send the marker, then listen and beat."""
        self._write(f"\n{self._marker}\n".encode())
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        threading.Thread(target=self._beating, name="beat", daemon=True).start()

    def send(self, message: Message) -> None:
        """Send one message, whole. Ends the worker when the head has ended."""
        self._write(json.dumps(message).encode() + b"\n")

    def check_cancelled(self, job: str) -> None:
        """Raises Cancelled when the head has cancelled `job`."""
        if self._cancelled == job:
            raise Cancelled

    def _write(self, data: bytes) -> None:
        if os.getpid() != self._process:  # own code forked and went on twice
            os._exit(1)
        try:
            with self._writing:
                while data:
                    data = data[os.write(self._out, data) :]
        except OSError:
            end_everything()

    def _beating(self) -> None:
        number = 0
        while True:
            time.sleep(self._beat)
            number += 1
            self.send({"beat": number})

    def _listen(self) -> None:
        try:
            self._hear()
        finally:  # a job has closed the input: the head cannot reach this worker any more
            end_everything()

    def _hear(self) -> NoReturn:
        buffer, heard = b"", _clock()
        while True:
            ready, _, _ = select.select([self._in], [], [], min(1.0, self._silence / 4))
            # also after having been frozen, wherever that was: what arrived meanwhile is too late
            if (now := _clock()) - heard > self._silence:
                end_everything()
            if not ready:
                continue
            chunk = os.read(self._in, 1 << 16)
            if not chunk:
                end_everything()
            heard = now
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: Message) -> None:
        if "job" in message:
            if message["job"] == self._cancelled:  # it is wanted again
                self._cancelled = None
            self.jobs.put(message)
        elif "cancel" in message:
            self._cancelled = message["cancel"]
        elif "stop" in message:
            self._stop()

    def _stop(self) -> None:
        """A training that runs saves its checkpoint and ends the process; else it ends now."""
        stopping.wanted = True
        if self.idle:
            end_everything()


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the machine sleeps


def end_everything() -> NoReturn:
    """End all that this worker started, then itself, at once. What was not published is resumed or
    redone elsewhere.
    """
    processes.end_descendants(os.getpid())
    os._exit(1)


# -- jobs


def cause_of(error: BaseException) -> str:
    """The cause of an error: the job's ('error'), the node's ('disk', 'gpu_gone'), memory's, or a
    base model that has to be sent (again).
    """
    name, text = type(error).__name__, str(error)
    if isinstance(error, (BaseModelNotFound, CorruptArtifact)):
        return "base_missing"
    if name == "OutOfMemoryError":
        return "out_of_gpu_memory"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return "out_of_memory"
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EROFS,
        errno.ESTALE,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    ):
        return "disk" if error.errno != errno.ENOMEM else "out_of_memory"
    if (
        isinstance(error, NodeError)
        or name == "AcceleratorError"
        or "CUDA error" in text
        or "CUDA driver" in text
    ):
        return "gpu_gone"
    return "error"


class Listener(Protocol):
    """Receives the messages of a worker."""

    def send(self, message: Message) -> None: ...

    def check_cancelled(self, job: str) -> None: ...


class Worker:
    """Runs jobs, one at a time, in this process where their script allows it."""

    def __init__(
        self,
        head: Listener,
        code: Path,
        device: str,
        log: IO[bytes],
        progress_seconds: float = PROGRESS_SECONDS,
    ) -> None:
        self._head, self._code, self._device, self._log = head, code, device, log
        self._project = Path.cwd()
        self._progress_seconds = progress_seconds  # between two reports of a training
        self._runs: dict[str, Callable[..., Mapping[str, Any]] | None] = {}

    def serve(self, head: Head, slot: SlotLock) -> NoReturn:
        """Run jobs until the head has ended or another project's turn has come."""
        while True:
            self._log.truncate(0)
            try:
                message = head.jobs.get(timeout=1.0)
            except queue.Empty:
                if slot.must_yield(idle=True):
                    head.send({"yields": True})
                    end_everything()
                continue
            head.idle = False
            try:
                outcome = self.outcome(message)
            except Stopped:  # its checkpoint is saved
                end_everything()
            slot.worked()
            yields = slot.must_yield()
            head.send({**outcome, **({"yields": True} if yields else {})})
            head.idle = True
            if yields or stopping.wanted:
                end_everything()

    def outcome(self, message: Message) -> Message:
        """Run one job; the outcome holds whatever happened."""
        job, began = message["job"], time.monotonic()
        try:
            self._load(message["script"])
            began = time.monotonic()  # without the import of torch, once a worker
            result = self._run(job, message["script"], message["values"])
            # a result that JSON cannot hold is the job's error
            outcome: Message = {"done": job, "result": json.loads(json.dumps(dict(result or {})))}
        except Cancelled:
            outcome = {"failed": job, "cause": "cancelled", "error": "cancelled"}
        except (Exception, SystemExit) as error:  # noqa: BLE001
            # the log's disk may be full, or the output closed: report the error all the same
            with contextlib.suppress(OSError, ValueError):
                traceback.print_exc()
            said = (
                str(error)
                if isinstance(error, (ProjectError, OSError))
                else f"{type(error).__name__}: {error}"
            )
            outcome = {"failed": job, "cause": cause_of(error), "error": one_line(said)[:2000]}
        self._undo()
        return {**outcome, "seconds": time.monotonic() - began, "log": self._tail()}

    def _undo(self) -> None:
        """What own code may have done to this process: it left its folder, or closed its outputs
        (the file that is opened next would take their numbers, and what is printed).
        """
        os.chdir(self._project)
        for number, name in ((1, "stdout"), (2, "stderr")):
            try:
                os.fstat(number)
            except OSError:
                os.dup2(self._log.fileno(), number)
            if getattr(sys, name).closed:
                setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115

    def _run(self, job: str, script: str, values: Message) -> Mapping[str, Any]:
        run = self._load(script)
        if run is None:
            return self._run_process(job, script, values)
        last = 0.0

        def progress(state: Mapping[str, Any]) -> None:
            nonlocal last
            self._head.check_cancelled(job)
            if time.monotonic() - last >= self._progress_seconds:
                last = time.monotonic()
                self._head.send({**state, "progress": job})

        return run({**values, "device": self._device}, progress)

    def _load(self, script: str) -> Callable[..., Mapping[str, Any]] | None:
        """The script's run(options, progress), or None where it defines none."""
        if script not in self._runs:
            path = self._place(script)
            self._runs[script] = _import(path).run if _defines_run(path) else None
        return self._runs[script]

    def _place(self, script: str) -> Path:
        """A user's own script lies in the project folder, ours lie with the code."""
        own = Path(script).absolute()
        return own if own.is_file() else self._code / script

    def _run_process(self, job: str, script: str, values: Message) -> Mapping[str, Any]:
        if values.get("device") is not None:
            values = {**values, "device": self._device}
        argv = [
            sys.executable,
            str(self._place(script)),
            *to_flags({name: v for name, v in values.items() if v is not False}),
        ]
        process = subprocess.Popen(
            processes.dying_with_us(argv),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            code = self._wait(process, job)
        finally:
            processes.end_descendants(os.getpid())
            process.wait()
            processes.reap()
        if code < 0:
            raise ProjectError(f"{script} was ended by signal {signal.Signals(-code).name}")
        if code:
            raise ProjectError(
                f"{script} exited with {code}:"
                f" {one_line(self._tail()[-500:]) or 'it printed nothing'}"
            )
        return {}

    def _wait(self, process: subprocess.Popen[bytes], job: str) -> int:
        """Its exit code. Raises Cancelled."""
        while True:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                self._head.check_cancelled(job)

    def _tail(self) -> str:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        size = os.fstat(self._log.fileno()).st_size
        with open(f"/proc/self/fd/{self._log.fileno()}", "rb") as file:
            file.seek(max(0, size - LOG_TAIL))
            return file.read().decode(errors="replace")


def _defines_run(path: Path) -> bool:
    """Whether the script has a function `run`, found without running the script."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):  # as a process of its own it will say so itself
        return False
    return any(isinstance(part, ast.FunctionDef) and part.name == "run" for part in body)


def _import(path: Path) -> Any:
    """A script as a module, with its own folder to import from, as if it had been started by
    itself.
    """
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _ready(device: str, seconds: float) -> dict[str, float]:
    """Get ready to train. Returns the speed of the slot, for the hello; empty where it is not asked
    for, cannot be measured or takes too long: a busy node must not miss its hello, and a job will
    report what does not work here.
    """
    found: dict[str, float] = {}

    def measure() -> None:
        try:
            for name in IMPORTED:
                importlib.import_module(name)
            from common.training.setup import measured_speed

            speed = measured_speed(device, seconds)
            found.update({"speed": speed} if seconds else {})
        except Exception:  # noqa: BLE001
            traceback.print_exc()

    thread = threading.Thread(target=measure, name="measure", daemon=True)
    thread.start()
    thread.join(READY_SECONDS)
    return dict(found)


def main() -> None:
    """Take the slot, point prints to its log, say hello, serve."""
    flags = argparse.ArgumentParser(description="started by the orchestrators, not by hand")
    for name in ("project", "slot", "owner", "marker", "device"):
        flags.add_argument(f"--{name}", required=True)
    flags.add_argument("--no-wait", action="store_true")
    flags.add_argument("--turn", type=float, default=60.0)
    flags.add_argument("--beat", type=float, default=5.0)
    flags.add_argument("--silence", type=float, default=60.0)
    flags.add_argument("--measure", type=float, metavar="SECONDS")
    flags.add_argument("--progress", type=float, default=PROGRESS_SECONDS)
    args = flags.parse_args()
    code = Path(__file__).resolve().parents[3]
    head = Head(args.marker, args.beat, args.silence)
    os.chdir(args.project)
    sys.path.insert(0, str(code))
    processes.adopt_orphans()
    with contextlib.suppress(OSError):  # already the leader of its group
        os.setsid()
    head.start()

    def waiting(held: SlotHeld) -> None:
        head.send({"waiting": {"holder": held.holder, "since": held.since}})

    try:
        slot = take_slot(args.slot, args.owner, None if args.no_wait else waiting, args.turn)
    except ProjectError as error:
        head.send({"hello": {"refused": one_line(error)}})
        sys.exit(3)
    log_path = slot_folder() / f"slot-{args.slot}.log"
    with log_path.open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        faulthandler.enable(log)
        ready = {} if args.measure is None else _ready(args.device, args.measure)
        head.send({"hello": {"pid": os.getpid(), "log": str(log_path), **ready}})
        Worker(head, code, args.device, log, args.progress).serve(head, slot)


if __name__ == "__main__":
    main()
