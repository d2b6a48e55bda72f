"""A project folder under test: the scripts run in it as a user runs them, and what they left
there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import forked
from tests.conftest import ROOT, script_environment, wait_until
from tests.scripts.made import PEOPLE, write_data

# Ends after ten epochs whatever the data; three people and a target.
QUICK = {
    "data_path": "data/made",
    "window_size": 40,
    "participants": list(PEOPLE),
    "lr": 0.01,
    "batch_size": 16,
    "max_epochs": 6,
}
# Goes on until it is stopped; an epoch takes a few milliseconds.
ENDLESS = {**QUICK, "lr": 1e-9, "max_epochs": 1_000_000, "early_stopping_patience": 1_000_000}
# However fast a machine trains, such a training lasts as long as a test wants: its augmentation, in
# paced.py, waits while there is a file "slowly" where it runs.
PACED = {
    "max_epochs": 40,
    "early_stopping_patience": 1_000_000,
    "use_augmentation": True,
    "augmentation": "paced.py:paced",
}
PACE = """import pathlib, time

def paced(x, generator):
    if pathlib.Path("slowly").exists():
        time.sleep(0.2)
    return x
"""
Argv = Sequence[object]


@dataclass(frozen=True)
class Project:
    """One project folder. `temporary` keeps the slot locks of its workers apart from everybody
    else's.
    """

    folder: Path

    @classmethod
    def create(cls, parent: Path, name: str = "project") -> Project:
        """An empty one."""
        folder = parent / name
        folder.mkdir(parents=True)
        (parent / f"{name}-tmp").mkdir()
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        """Of every script started here."""
        return script_environment(self.folder.with_name(f"{self.folder.name}-tmp"))

    def command(self, script: str, *argv: object) -> list[str]:
        """The script of the code folder, or of this folder, as an argv."""
        own = self.folder / script
        return [sys.executable, str(own if own.exists() else ROOT / script), *map(str, argv)]

    def run(
        self, script: str, *argv: object, timeout: float = 120, exit_code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a script to its end, and insist on its exit code."""
        _python, *command = self.command(script, *argv)
        done = forked.run(command, self.folder, self.environment, timeout)
        assert exit_code is None or done.returncode == exit_code, (
            done.returncode,
            done.stdout,
            done.stderr,
        )
        return done

    @contextmanager
    def started(self, script: str, *argv: object) -> Iterator[subprocess.Popen[str]]:
        """A script that goes on while the test acts; killed with everything that it started when
        the test is over.
        """
        with (self.folder.parent / f"{self.folder.name}-output.txt").open("w+") as output:
            process = subprocess.Popen(
                self.command(script, *argv),
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait()
                wait_until(
                    lambda: not self.processes(), what="the end of everything that was started here"
                )

    @property
    def output(self) -> str:
        """What the script of the last `started` has printed so far."""
        return (self.folder.parent / f"{self.folder.name}-output.txt").read_text()

    def processes(self) -> dict[int, str]:
        """Everything that runs with this project's TMPDIR in its environment: the scripts, their
        workers and what those started.
        """
        mark = f"TMPDIR={self.environment['TMPDIR']}".encode()
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                try:
                    if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        found[int(entry)] = (
                            Path(f"/proc/{entry}/cmdline")
                            .read_bytes()
                            .replace(b"\0", b" ")
                            .decode(errors="replace")
                        )
                except OSError:  # not ours, or it has just ended
                    continue
        return found

    # -- what stands there

    def write(self, name: str, value: object) -> Path:
        """A JSON file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    def write_cluster(self, slots: int = 1) -> None:
        """cluster_config.json: this machine, `slots` workers, quick heartbeats."""
        self.write("cluster_config.json", {"servers": [{"host": "localhost", "cpu_slots": slots}]})

    def generate(
        self,
        axes: Mapping[str, Sequence[object]],
        fixed: Mapping[str, object] | None = None,
        *flags: object,
    ) -> str:
        """generate_jobs.py on a grid; what it said."""
        self.write(
            "grid.json", {"grid": dict(axes), "fixed": QUICK if fixed is None else dict(fixed)}
        )
        return self.run("generate_jobs.py", "--grid", "grid.json", *flags).stdout

    def jobs(self, name: str) -> list[dict[str, Any]]:
        """A job file."""
        jobs: list[dict[str, Any]] = json.loads((self.folder / name).read_text())
        return jobs

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """The event logs of all runs, oldest first."""
        lines = [
            line
            for path in sorted(self.folder.glob("runs/*/events.jsonl"))
            for line in path.read_text().splitlines()
        ]
        return [
            record for record in map(json.loads, lines) if event is None or record["event"] == event
        ]

    def ran(self) -> Counter[str]:
        """How often each job was started on a worker, over all runs."""
        return Counter(event["job"] for event in self.events("started"))

    def trainings(self) -> int:
        """How many base trainings were started, over all runs."""
        return sum(number for job, number in self.ran().items() if "/" not in job)

    def tree(self, *but: str) -> dict[str, bytes]:
        """Every file with its content, but for those below the named folders."""
        files = (
            path
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.relative_to(self.folder).parts[0] not in but
        )
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def published(self) -> dict[str, object]:
        """What must be byte-identical: *.pt, losses.json, predictions.csv and config.json whole,
        the two others outside their provenance.
        """
        found: dict[str, object] = {}
        for name, content in self.tree().items():
            parts = Path(name).parts
            if parts[0] not in ("base_models", "experiments") or parts[-1] == "train.log":
                continue
            if parts[-1] == "metrics.json" or parts[-1].endswith("_metadata.json"):
                found[name] = {
                    key: value for key, value in json.loads(content).items() if key != "provenance"
                }
            else:
                found[name] = content
        return found


def made(parent: Path, name: str = "project", **form: object) -> Project:
    """A project with the little data set of made.py and a local slot."""
    project = Project.create(parent, name)
    write_data(project.folder / "data/made", **form)
    project.write_cluster()
    return project


def flags(options: Mapping[str, object]) -> list[str]:
    """Options as a person types them."""
    argv: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        else:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv
