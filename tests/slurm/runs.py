"""The orchestrators over Slurm under test, and the events that they and their tasks wrote."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.cluster.journal import past_events
from common.paths import Paths
from tests.scripts.projects import Project

TWO_PHASES = "run_two_phase_distributed.py"
ONE_PHASE = "run_distributed_training.py"


def events(project: Project, event: str) -> list[dict[str, Any]]:
    """Of all runs, those that tasks wrote included."""
    return [found for found in past_events(Paths(project.folder)) if found["event"] == event]


def started(project: Project, job: str) -> int:
    """How often a job was started."""
    return sum(event["job"] == job for event in events(project, "started"))


def count_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch in front of the real one that writes down each call. Returns the list's file."""
    real, calls = shutil.which("sbatch"), folder / "sbatch.calls"
    assert real
    wrapper = folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(calls))}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    calls.touch()
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    return calls


@contextmanager
def command(project: Project, *argv: object) -> Iterator[subprocess.Popen[str]]:
    """The orchestrator, left alone while the test acts; its tasks are Slurm's and outlive it."""
    with (project.folder.parent / f"{project.folder.name}-output.txt").open("w+") as output:
        process = subprocess.Popen(
            project.command(*argv),
            cwd=project.folder,
            env=project.environment,
            stdout=output,
            stderr=output,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
