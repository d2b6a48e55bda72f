"""Curves of trainings as TensorBoard event files, one folder a job: --tensorboard.

While a job runs, its points are those that its worker tells, at most one a second; when it is
published they are replaced by all of its epochs. No torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from common.artifacts import read_base_metadata
from common.cli import Parser, Spinner
from common.cluster.journal import new_run_id
from common.errors import InputError, ProjectError
from common.jobs.job_files import Job
from common.paths import Paths

TAGS = {"train_loss": "loss/train", "val_loss": "loss/val", "val_macro_f1": "macro_f1/val"}
LISTED = {"train_loss": "train", "val_loss": "val", "val_macro_f1": "val_macro_f1"}


def check_package() -> None:
    """Raises InputError where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard: its package is not installed: python3 -m pip install -r"
            " requirements-tensorboard.txt -c constraints.txt"
        )


def add_flag(flags: Parser) -> None:
    """--tensorboard, for a script that trains."""
    flags.switch(
        "--tensorboard", "write curves to runs/{id}/tensorboard/ (requirements-tensorboard.txt)"
    )


@contextlib.contextmanager
def told(title: str, *, tensorboard: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Progress of one training by hand: a bar on a terminal, and curves where they are asked for.
    Raises InputError.
    """
    if tensorboard:
        check_package()
    curves = Curves(Paths.here()) if tensorboard else None
    if curves:
        curves.open(new_run_id())
    with Spinner(title) as spinner:

        def progress(state: Mapping[str, Any]) -> None:
            if "epoch" not in state:  # it waits for its lock
                return
            spinner(state)
            if curves:
                curves.tell(title.replace(" ", "_"), state)

        yield progress
        if curves:
            curves.finish(())


class Curves:
    """The event files of one run. A full disk costs points, never the run."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._folder: Path | None = None
        self._files: dict[str, _EventFile] = {}
        self._told: dict[str, int] = {}

    def show(self, status: Mapping[str, Any]) -> None:
        """Take the points of all running jobs from the status of a run. The files of other jobs
        are closed; one that runs again gets a further file.
        """
        self.open(str(status["run"]))
        running = [job for node in status["nodes"] for job in node["running"]]
        for job in running:
            self.tell(job["job"], job)
        for ended in self._files.keys() - {job["job"] for job in running}:
            with contextlib.suppress(OSError):
                self._files.pop(ended).close()

    def open(self, run_id: str) -> None:
        """Points go to this run's folder from now on."""
        self._folder = self._paths.run(run_id) / "tensorboard"

    def tell(self, job: str, state: Mapping[str, Any]) -> None:
        """One epoch of a job, as workers tell it; an epoch that was told already adds nothing."""
        epoch, points = state.get("epoch"), _points(state)
        if not isinstance(epoch, int) or not points or self._told.get(job) == epoch:
            return
        self._told[job] = epoch
        with contextlib.suppress(OSError):
            if job not in self._files:
                self._files[job] = _EventFile(self._place(job))
            self._files[job].add(epoch, points)
            self._files[job].flush()

    def finish(self, jobs: Iterable[Job]) -> None:
        """Replace the points of the jobs that are published by all of their epochs."""
        for job in jobs:
            losses = self._losses(job)
            if losses is None or self._folder is None:
                continue
            with contextlib.suppress(OSError):
                if job.id in self._files:
                    self._files.pop(job.id).close()
                shutil.rmtree(self._place(job.id), ignore_errors=True)
                self._write_whole(job.id, losses)
        for file in self._files.values():
            file.close()

    def _place(self, job: str) -> Path:
        assert self._folder is not None
        return self._folder / job

    def _losses(self, job: Job) -> Mapping[str, list[float | None]] | None:
        with contextlib.suppress(OSError, ValueError, KeyError, ProjectError):
            if job.kind == "base":
                losses = read_base_metadata(self._paths, job.id)["losses"]
            else:
                path = self._paths.experiments / job.id / "losses.json"
                losses = json.loads(path.read_bytes())
            return losses if isinstance(losses, dict) else None
        return None

    def _write_whole(self, job: str, losses: Mapping[str, list[float | None]]) -> None:
        file = _EventFile(self._place(job))
        before = 1 if losses["train"] and losses["train"][0] is not None else 0
        for number in range(len(losses["train"])):
            state = {name: losses[listed][number] for name, listed in LISTED.items()}
            file.add(number + before, _points(state))
        file.close()


def _points(state: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one epoch, by tag."""
    return {
        tag: float(state[name])
        for name, tag in TAGS.items()
        if isinstance(state.get(name), (int, float)) and math.isfinite(state[name])
    }


class _EventFile:
    """One event file, written as it is told."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.ml-customization"
        self._file: BinaryIO = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        first = self._event(wall_time=time.time(), file_version="brain.Event:2")
        self._records.write(first.SerializeToString())

    def add(self, epoch: int, points: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
        event = self._event(wall_time=time.time(), step=epoch, summary=self._summary(value=values))
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Let readers see what was added."""
        self._file.flush()

    def close(self) -> None:
        """No more points."""
        self._file.close()
