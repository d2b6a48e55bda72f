"""The tiny project that trials harm: data, job files, heads as subprocesses, and who still runs."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from common.cli import run_script
from tests import forked
from tests.conftest import ROOT, script_environment, wait_until
from tests.trust.checker import Checker, Planned, contents

PEOPLE = ("ann", "bob", "cem")
TWO_PHASE = "run_two_phase_distributed.py"
ONE_PHASE = "run_distributed_training.py"
FIXED: dict[str, Any] = {
    "data_path": "data/tiny",
    "window_size": 16,
    "participants": list(PEOPLE),
    "n_base_participants": 1,
    "batch_size": 8,
    "lr": 0.01,
    "base_channels": 2,
    "num_blocks": 2,
    "early_stopping_patience": 50,
    "early_stopping_patience_target": 50,
    "max_epochs": 3,
}
# 3 base models of which 2 are distinct trainings, and 12 fine-tunes.
GRID: dict[str, list[Any]] = {
    "mode": ["full_fine_tuning", "target_only_fine_tuning"],
    "target_data_pct": [0.5, 1.0],
}
BASE = {
    name: value for name, value in FIXED.items() if name != "early_stopping_patience_target"
} | {"fold": 0}


def write_split(path: Path, seed: int, windows: int = 12) -> None:
    """X float32 [windows, 2, 16], y in {0, 1}, learnable but not trivial; equal seeds are equal
    bytes.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(windows) % 2
    x = torch.randn(windows, 2, 16, generator=generator) + y[:, None, None] * 0.7
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # a file's own name would be in its bytes
    torch.save((x, y), buffer)
    path.write_bytes(buffer.getvalue())


def write_data(folder: Path, people: Sequence[str] = PEOPLE) -> None:
    """A data set without a dataset.json, as existing users have it."""
    for number, name in enumerate(people):
        for place, split in enumerate(("train", "val", "test")):
            write_split(folder / f"{name}_{split}.pt", 10 * number + place)


class World:
    """One project folder and all that a trial starts in it."""

    def __init__(
        self,
        parent: Path,
        name: str = "project",
        *,
        data: bool = True,
        cores: int = 2,
        code: Path = ROOT,
    ) -> None:
        self.code, self.folder, self.temporary = code, parent / name, parent / f"{name} tmp"
        self.folder.mkdir(parents=True)
        self.temporary.mkdir()
        self.environment = script_environment(self.temporary)
        self.outputs = 0
        if data:
            write_data(self.folder / "data/tiny")
        self.config([{"host": "localhost", "cpu_slots": cores}])

    def config(self, servers: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """cluster_config.json."""
        (self.folder / "cluster_config.json").write_text(
            json.dumps({"servers": list(servers), **more})
        )

    def jobs(self, grid: Mapping[str, Sequence[Any]] = GRID, **fixed: Any) -> Planned:
        """Write the job files of a grid; what they plan."""
        (self.folder / "grid.json").write_text(
            json.dumps({"grid": dict(grid), "fixed": {**FIXED, **fixed}})
        )
        command = [str(self.code / "generate_jobs.py"), "--grid", "grid.json"]
        done = forked.run(command, self.folder, self.environment)
        assert done.returncode == 0, done
        return Planned.read(self.folder)

    def start(self, *argv: str, **environment: str) -> subprocess.Popen[bytes]:
        """A script of the product, in this project. What it says goes to `said`."""
        self.outputs += 1
        own = self.folder / argv[0]
        with self._output(self.outputs).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, str(own if own.exists() else self.code / argv[0]), *argv[1:]],
                cwd=self.folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _output(self, number: int) -> Path:
        return self.temporary.parent / f"{self.folder.name} said {number}"

    @property
    def said(self) -> str:
        """What the last script said."""
        return self._output(self.outputs).read_text(errors="replace")

    def run(self, *argv: str, seconds: float = 180, **environment: str) -> tuple[int, str]:
        """A script to its end: exit code and what it said."""
        process = self.start(*argv, **environment)
        try:
            return process.wait(seconds), self.said
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{argv} still runs after {seconds} s: {self.said[-2000:]}\n{self.events()[-20:]}"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def finish(self, *argv: str) -> str:
        """A script to its good end."""
        code, said = self.run(*(argv or (TWO_PHASE,)))
        assert code == 0, f"exit code {code}: {said[-3000:]}\n{self.events()[-20:]}"
        assert "Traceback" not in said, said
        return said

    def events(self) -> list[dict[str, Any]]:
        """Of all runs, oldest first; a last line cut short by a kill is not one."""
        found = []
        for path in sorted(self.folder.glob("runs/*/events.jsonl")):
            found += [
                json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")
            ]
        return found

    def failures(self) -> set[str]:
        """Jobs whose last word is that they failed or are blocked."""
        last = {
            event["job"]: event["event"]
            for event in self.events()
            if event["event"] in ("failed", "blocked", "done", "reused")
        }
        return {job for job, event in last.items() if event in ("failed", "blocked")}

    # -- processes

    def processes(self, word: str = "") -> dict[int, str]:
        """Living processes with this project's TMPDIR in their environment whose command line holds
        `word`.
        """
        mark = f"TMPDIR={self.temporary}".encode()
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                with contextlib.suppress(OSError, IndexError):
                    if (
                        Path(f"/proc/{entry}/stat")
                        .read_text(errors="replace")
                        .rpartition(")")[2]
                        .split()[0]
                        in "ZX"
                    ):
                        continue
                    command = (
                        Path(f"/proc/{entry}/cmdline")
                        .read_bytes()
                        .replace(b"\0", b" ")
                        .decode(errors="replace")
                    )
                    if word in command and mark in Path(
                        f"/proc/{entry}/environ"
                    ).read_bytes().split(b"\0"):
                        found[int(entry)] = command
        return found

    def workers(self) -> list[int]:
        """The long-lived workers."""
        return list(self.processes("common.cluster.on_node.worker"))

    def nothing_runs(self, seconds: float = 30) -> None:
        """Nothing that was started here goes on."""
        wait_until(lambda: not self.processes(), seconds, f"the end of {self.processes()}")

    def close(self) -> None:
        """Kill what is left."""
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # -- judgement

    def must_be_whole(
        self,
        planned: Planned,
        reference: Mapping[str, bytes] | None = None,
        *,
        complete: bool = True,
    ) -> None:
        """The checker has nothing to say, and all is as in an undisturbed run."""
        problems = Checker(self.folder).check(planned, complete=complete)
        assert not problems, "\n".join(problems)
        if reference is not None:
            same_bytes(contents(self.folder), reference, complete=complete)


def same_bytes(
    there: Mapping[str, bytes], reference: Mapping[str, bytes], *, complete: bool
) -> None:
    """File for file."""
    different = [name for name in there if there[name] != reference.get(name)]
    assert not different, f"not as in an undisturbed run: {different}"
    assert not complete or there.keys() == reference.keys(), (
        f"only here or there: {there.keys() ^ reference.keys()}"
    )


@contextmanager
def opened(parent: Path, name: str = "project", **more: Any) -> Iterator[World]:
    """A world that ends with the block."""
    world = World(parent, name, **more)
    try:
        yield world
    finally:
        world.close()


def call(folder: Path, script: str, *argv: str) -> tuple[int, str, str]:
    """A script in this process: exit code, standard output, standard error."""
    out, err, before, code = io.StringIO(), io.StringIO(), Path.cwd(), 0
    os.chdir(folder)
    try:
        with (
            mock.patch.object(sys, "argv", [script, *argv]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            run_script(importlib.import_module(script.removesuffix(".py")).main)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os.chdir(before)
    return code, out.getvalue(), err.getvalue()


def undisturbed(parent: Path) -> dict[str, bytes]:
    """The results of the standard grid, made once by a run that nothing disturbed."""
    return _reference(parent)[0]


def run_seconds(parent: Path) -> float:
    """How long that run took."""
    return _reference(parent)[1]


@cache
def _reference(parent: Path) -> tuple[dict[str, bytes], float]:
    with opened(parent, "undisturbed") as world:
        planned = world.jobs()
        began = time.monotonic()
        world.finish()
        seconds = time.monotonic() - began
        world.must_be_whole(planned)
        return contents(world.folder), seconds


def random_moment(rng: random.Random, seconds: float) -> float:
    """A moment from now on, on the monotonic clock."""
    return time.monotonic() + rng.uniform(0, seconds)
