"""Trials: many tiny jobs, after which nothing has grown; and planted secrets, which are found
nowhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import wait_until
from tests.trust.world import ONE_PHASE, TWO_PHASE, World, opened

SETTLED = 500  # jobs after which nothing may grow
GROWTH = 1.05
EVENT_BYTES = 1_000  # of the event log, for each job
TINY_SCRIPT = """
def run(options, progress):
    progress({"epoch": 1, "of": 1})
    print("job", options["number"])
    return {"number": options["number"]}
"""


@dataclass(frozen=True)
class Size:
    """What a process holds."""

    kilobytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Size:
        """Now: memory that is its own (anonymous), open descriptors, threads."""
        status = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":" in line
        )
        return cls(
            int(status["RssAnon"].split()[0]),
            len(os.listdir(f"/proc/{pid}/fd")),
            int(status["Threads"]),
        )


def tiny_jobs(parent: Path, jobs: int = 2_000, seed: int = 0, script: str = TINY_SCRIPT) -> int:
    """So many jobs of milliseconds through two local workers: memory of head and workers,
    descriptors, threads and event log stay flat.
    """
    with opened(parent, f"tiny {seed}", data=False) as world:
        (world.folder / "tiny.py").write_text(script)
        (world.folder / "jobs.json").write_text(
            json.dumps([{"number": number} for number in range(jobs)])
        )
        head = world.start(ONE_PHASE, "--jobs-config", "jobs.json", "--script-path", "tiny.py")
        log = _Log(world)
        wait_until(lambda: log.done() >= SETTLED or head.poll() is not None, 600, f"{SETTLED} jobs")
        pids = [head.pid, *world.workers()]
        assert len(pids) == 3, world.said
        early = {pid: Size.of(pid) for pid in pids}
        late = dict(early)
        while head.poll() is None:  # until just before the end
            before = log.done()
            wait_until(
                lambda before=before: log.done() > before or head.poll() is not None,
                600,
                "the next job",
            )
            with contextlib.suppress(OSError, KeyError):  # they may end at any moment
                late = {pid: Size.of(pid) for pid in pids}
        assert head.wait(60) == 0, world.said
        assert log.done() == jobs, f"{log.done()} of {jobs} jobs are told as done"
        for pid in pids:
            who = "head" if pid == head.pid else "worker"
            was, now = early[pid], late[pid]
            assert now.kilobytes <= was.kilobytes * GROWTH, (
                f"{who}: {was.kilobytes} kB after {SETTLED} jobs, {now.kilobytes} kB at the end"
            )
            assert now.descriptors <= was.descriptors + 2, f"{who}: {was} -> {now}"
            assert now.threads <= was.threads, f"{who}: {was} -> {now}"
        assert log.size() < EVENT_BYTES * jobs, f"{log.size()} bytes of events for {jobs} jobs"
        world.nothing_runs()
    return jobs


class _Log:
    """The event log, read as it grows."""

    def __init__(self, world: World) -> None:
        self._world, self._at, self._done = world, 0, 0

    def _path(self) -> Path | None:
        return next(self._world.folder.glob("runs/*/events.jsonl"), None)

    def done(self) -> int:
        """Jobs told as done so far."""
        path = self._path()
        if path is not None:
            with path.open("rb") as file:
                file.seek(self._at)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._at += len(whole)
            self._done += whole.count(b'"event": "done"')
        return self._done

    def size(self) -> int:
        """Bytes."""
        path = self._path()
        return path.stat().st_size if path else 0


# -- secrets


class Watch(threading.Thread):
    """Reads the command lines of all processes of the machine, over and over, and keeps those that
    hold a secret.
    """

    def __init__(self, planted: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._planted, self._over = planted, threading.Event()
        self.found: set[str] = set()
        self.looks = 0

    def run(self) -> None:
        """Until the end of the block."""
        while not self._over.wait(0.01):
            self.looks += 1
            for entry in os.listdir("/proc"):
                if entry.isdecimal():
                    with contextlib.suppress(OSError):
                        command = Path(f"/proc/{entry}/cmdline").read_bytes()
                        if any(secret in command for secret in self._planted):
                            self.found.add(command.replace(b"\0", b" ").decode(errors="replace"))

    def stop(self) -> None:
        """The block is over."""
        self._over.set()
        self.join()


@contextmanager
def watched(*planted: str) -> Iterator[Watch]:
    """No process of the machine has one of these in its command line meanwhile."""
    watch = Watch([secret.encode() for secret in planted])
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
    assert not watch.found, f"a secret in {watch.found}"
    assert watch.looks > 3


def files_with(folder: Path, *planted: str) -> list[str]:
    """Files that hold one of these, as text or in hexadecimal."""
    wanted = [
        form for secret in planted for form in (secret.encode(), secret.encode().hex().encode())
    ]
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and any(form in path.read_bytes() for form in wanted)
    ]


def planted_secrets(seed: int, parent: Path) -> int:
    """Secrets in the head's environment: in no log, command line, artifact, report or output, of a
    run with a failing job too.
    """
    secret, other = secrets.token_hex(16), f"pass phrase {secrets.token_hex(8)}"
    environment = {
        "API_TOKEN": secret,
        "AWS_SECRET_ACCESS_KEY": other,
        "SSH_ASKPASS_PASSWORD": other,
    }
    (parent / f"secrets {seed}").mkdir()
    with opened(parent / f"secrets {seed}") as world, watched(secret, other):
        world.jobs()
        (world.folder / "failing.py").write_text(
            "def run(options, progress):\n    raise RuntimeError('no')\n"
        )
        (world.folder / "jobs.json").write_text(json.dumps([{"number": 1}]))
        code, said = world.run(TWO_PHASE, **environment)
        assert code == 0, said
        code, said = world.run(
            ONE_PHASE, "--jobs-config", "jobs.json", "--script-path", "failing.py", **environment
        )
        assert code == 1, said
        code, said = world.run("report.py", **environment)
        assert code == 0, said
        found = files_with(world.folder.parent, secret, other)
        assert not found, f"a secret in {found}"
    return 2
