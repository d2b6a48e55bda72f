"""A tiny project for the cluster's tests: data, jobs, the real scripts as subprocesses, and what a
run wrote.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from tests import forked
from tests.conftest import ROOT, script_environment, wait_until

PEOPLE = ("ann", "bob", "cem")
# Where silence is what is tested, and elsewhere: a busy machine is silent for seconds, too.
SHORT = {"heartbeat_seconds": 0.5, "suspect_seconds": 3, "close_seconds": 6}
CALM = {"heartbeat_seconds": 0.5, "suspect_seconds": 60, "close_seconds": 120}
TWO_PHASE = "run_two_phase_distributed.py"
ONE_PHASE = "run_distributed_training.py"
FIXED: dict[str, Any] = {
    "data_path": "data/tiny",
    "window_size": 16,
    "participants": list(PEOPLE),
    "batch_size": 8,
    "lr": 0.01,
    "base_channels": 2,
    "num_blocks": 2,
    "early_stopping_patience": 100_000,
    "early_stopping_patience_target": 100_000,
    "max_epochs": 3,
}
GRID: dict[str, Any] = {
    "mode": ["full_fine_tuning", "target_only_fine_tuning"],
    "target_data_pct": [0.5, 1.0],
    "n_base_participants": [1, 2],
}
Event = dict[str, Any]


def write_data(
    folder: Path, people: Sequence[str] = PEOPLE, windows: int = 12, seed: int = 0
) -> None:
    """`folder`/{participant}_{split}.pt: X float32 [windows, 2, 16], y in {0, 1}, learnable but not
    trivial.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for name in people:
        for split in ("train", "val", "test"):
            y = torch.arange(windows) % 2
            x = torch.randn(windows, 2, 16, generator=generator) + y[:, None, None] * 0.7
            torch.save((x, y), folder / f"{name}_{split}.pt")


def write_companions(folder: Path, people: Sequence[str] = PEOPLE, windows: int = 12) -> None:
    """The lists of windows that prepare_data.py puts beside the data."""
    for name in people:
        for split in ("train", "val", "test"):
            lines = [f"{number},morning,{number * 2.0}" for number in range(windows)]
            (folder / f"{name}_{split}_windows.csv").write_text(
                "\n".join(["index,session,start_s", *lines]) + "\n"
            )


def contents(folder: Path) -> dict[str, Any]:
    """Every published file below base_models/ and experiments/, as far as two runs must agree on
    it.
    """
    found: dict[str, Any] = {}
    for top in ("base_models", "experiments"):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file() and path.name != "train.log":
                raw: Any = path.read_bytes()
                if path.name == "metrics.json" or path.name.endswith("_metadata.json"):
                    raw = {
                        key: value for key, value in json.loads(raw).items() if key != "provenance"
                    }
                found[str(path.relative_to(folder))] = raw
    return found


class Script:
    """A script under way."""

    def __init__(
        self, project: Project, argv: Sequence[str], stderr: int = subprocess.STDOUT
    ) -> None:
        self.project = project
        self._out = (project.folder.parent / f"out-{os.urandom(4).hex()}.txt").open("w+b")
        command = [sys.executable, str(project.code / argv[0]), *argv[1:]]
        self.process = subprocess.Popen(
            command,
            cwd=project.folder,
            env=project.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=stderr,
            start_new_session=True,
        )

    @property
    def said(self) -> str:
        """All that it printed so far, on both outputs."""
        return Path(self._out.name).read_text(errors="replace")

    def wait(self, seconds: float = 120) -> int:
        """Its exit code."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        raise AssertionError(
            f"still running after {seconds} s: {self.said[-3000:]}\n{self.project.tail()}"
        )

    def ends_with(self, code: int, seconds: float = 120) -> str:
        """Wait; the exit code must be this. Returns what it said."""
        assert self.wait(seconds) == code, (
            f"{self.process.returncode}, not {code}: {self.said[-3000:]}\n{self.project.tail()}"
        )
        assert "Traceback" not in self.said
        return self.said

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> None:
        """Kill it and what it started, if it still runs."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._out.close()


class Project:
    """A project folder with data, and the scripts that run in it."""

    def __init__(self, folder: Path, *, data: bool = True, code: Path = ROOT) -> None:
        self.folder, self.code = folder, code
        self.environment = script_environment(folder.parent / f"{folder.name} tmp")
        Path(self.environment["TMPDIR"]).mkdir(parents=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._scripts: list[Script] = []
        if data:
            write_data(folder / "data/tiny")

    def grid(
        self, grid: dict[str, Any] | None = None, folds: Sequence[int] = (0, 1, 2), **fixed: Any
    ) -> None:
        """Write the job files of a grid."""
        (self.folder / "grid.json").write_text(
            json.dumps(
                {
                    "grid": {**(GRID if grid is None else grid), "fold": list(folds)},
                    "fixed": {**FIXED, **fixed},
                }
            )
        )
        command = [str(self.code / "generate_jobs.py"), "--grid", "grid.json"]
        done = forked.run(command, self.folder, self.environment)
        assert "fine-tunes" in done.stdout, done

    def config(self, servers: Sequence[dict[str, Any]], **more: Any) -> None:
        """Write cluster_config.json, with short heartbeats and long times of silence."""
        path = self.folder / "cluster_config.json"
        (path.with_suffix(".new")).write_text(
            json.dumps({"servers": list(servers), **CALM, **more})
        )
        os.replace(path.with_suffix(".new"), path)

    def start(self, *argv: str, stderr: int = subprocess.STDOUT) -> Script:
        """Start a script; it is killed with the fixture at the latest."""
        script = Script(self, argv, stderr)
        self._scripts.append(script)
        return script

    def run(self, *argv: str, code: int = 0, seconds: float = 120) -> Script:
        """Run a script to its end."""
        script = self.start(*argv)
        script.ends_with(code, seconds)
        return script

    def close(self) -> None:
        """No script goes on."""
        for script in self._scripts:
            script.end()

    # what a run wrote

    def run_folders(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.folder / "runs").glob("*"))

    def events(self, run: int = -1) -> list[Event]:
        """The event log of the run with this number; empty before there is one."""
        folders = self.run_folders()
        if not folders:
            return []
        path = folders[run] / "events.jsonl"
        return (
            [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            if path.exists()
            else []
        )

    def found(self, **fields: Any) -> list[Event]:
        """The latest run's events that have these fields."""
        return [
            event
            for event in self.events()
            if all(event.get(name) == value for name, value in fields.items())
        ]

    def status(self) -> dict[str, Any]:
        """The latest run's status; empty before there is one."""
        with suppress(OSError, IndexError):
            read: dict[str, Any] = json.loads((self.run_folders()[-1] / "status.json").read_text())
            return read
        return {}

    def epoch(self, node: str, job: str = "") -> int:
        """The latest epoch that the status tells of a job on the node; 0 before there is one."""
        for entry in self.status().get("nodes", []):
            if entry["name"] == node:
                return max(
                    [
                        running["epoch"] or 0
                        for running in entry["running"]
                        if job in running["job"]
                    ],
                    default=0,
                )
        return 0

    def wait_for(self, seconds: float = 60, count: int = 1, **fields: Any) -> list[Event]:
        """Wait for events with these fields."""
        wait_until(
            lambda: len(self.found(**fields)) >= count or self._ended(),
            seconds,
            f"{fields} in {self.tail()}",
        )
        assert len(self.found(**fields)) >= count, f"no {fields}: {self.tail()}"
        return self.found(**fields)

    def wait_epoch(self, node: str, epoch: int = 1, seconds: float = 60) -> None:
        """Wait until a job on the node has got so far."""
        wait_until(
            lambda: self.epoch(node) >= epoch or self._ended(),
            seconds,
            f"epoch {epoch} on {node}; {self.tail()}",
        )
        assert self.epoch(node) >= epoch, self.tail()

    def _ended(self) -> bool:
        return bool(self._scripts) and self._scripts[-1].process.poll() is not None

    def tail(self) -> str:
        """For messages: what was printed and logged last."""
        said = self._scripts[-1].said[-2000:] if self._scripts else ""
        return said + "\n" + "\n".join(json.dumps(event) for event in self.events()[-25:])

    def results(self) -> dict[str, Any]:
        """What must be equal to another run's."""
        return contents(self.folder)

    def jobs(self, name: str = "finetune_jobs.json") -> list[dict[str, Any]]:
        """The jobs of a job file."""
        read: list[dict[str, Any]] = json.loads((self.folder / name).read_text())
        return read

    def edit_jobs(
        self,
        edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
        name: str = "finetune_jobs.json",
    ) -> None:
        """Write a job file anew."""
        (self.folder / name).write_text(json.dumps(edit(self.jobs(name))))


@contextmanager
def opened(folder: Path, **more: Any) -> Iterator[Project]:
    """A project whose scripts end with the block."""
    project = Project(folder, **more)
    try:
        yield project
    finally:
        project.close()


# A user's own script: its jobs may wait for a file `go`, or `go-` and their number, in the folder
# they run in, and leave a trace there.
OWN_SCRIPT = """
import json, os, time
from pathlib import Path

def run(options, progress):
    print("chatter on standard output")
    os.write(1, b"more of it")
    try:
        signs = Path("go"), Path("go-" + str(options["number"]))
        while options.get("waits") and not any(sign.exists() for sign in signs):
            progress({"epoch": 1, "of": 2})
            time.sleep(0.02)
    except BaseException as reason:
        written = Path("stopping-" + str(options["number"]))
        written.write_text(type(reason).__name__)
        written.rename("stopped-" + str(options["number"]))
        raise
    seen = {
        "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "device": options["device"],
        "per_gpu": os.environ.get("JOBS_PER_GPU"),
        "pid": os.getpid(),
    }
    Path("trace-" + str(options["number"])).write_text(json.dumps(seen))
    return {}
"""
OWN = (ONE_PHASE, "--jobs-config", "jobs.json", "--script-path", "own.py")


def own_jobs(project: Project, number: int, waits: bool = False) -> None:
    """A user's own script with this many jobs."""
    (project.folder / "own.py").write_text(OWN_SCRIPT)
    (project.folder / "jobs.json").write_text(
        json.dumps([{"number": n, "waits": waits} for n in range(number)])
    )


def traces(folder: Path) -> dict[int, dict[str, Any]]:
    """What the jobs left in a host's project folder."""
    return {
        int(path.name.removeprefix("trace-")): json.loads(path.read_text())
        for path in folder.glob("trace-*")
    }
