"""Estimates for the scheduler: seconds of a job, from the bytes that it reads and earlier runs, and
the speed of a node, from earlier runs or from a measurement.
"""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from common.data.manifest import read_manifest
from common.errors import InputError
from common.jobs import identity
from common.jobs.job_files import Job
from common.options import WITHOUT_NETWORK, Options
from common.paths import Paths, split_file

# Before the first run: an epoch over 100 MB takes about 1 s on one core, and early stopping ends
# most trainings after some 40 epochs.
SECONDS_PER_BYTE = 1e-8
EPOCHS = 40
OVERHEAD_SECONDS = 0.1  # of a job in a worker that is ready
JOBS_SEEN = 200  # the latest jobs of a kind and of a node that count


def kind(job: Job) -> str:
    """Jobs of one kind take equally long per byte."""
    return str(job.values["mode"]) if job.kind == "finetune" else job.kind


class Estimates:
    """Seconds of jobs at speed 1 and speeds of nodes.

    Speed 1 is the median of the nodes of earlier runs; before the first run, SECONDS_PER_BYTE.
    past: events of earlier runs, oldest first.
    """

    def __init__(self, paths: Paths, past: Iterable[dict[str, Any]]) -> None:
        self._paths = paths
        self._sizes: dict[tuple[str, str], int] = {}
        self._windows: dict[str, int] = {}  # bytes of a window, by data_path
        rates: dict[str, list[float]] = defaultdict(list)
        done: list[tuple[str, str, float, float]] = []
        measured: dict[str, float] = {}
        for event in past:
            node, name, what = (str(event.get(key)) for key in ("node", "kind", "event"))
            seconds, work = _positive(event.get("seconds")), _positive(event.get("work"))
            if what == "done" and seconds and work:
                rates[name].append(max(0.0, seconds - OVERHEAD_SECONDS) / work)
                done.append((node, name, work, seconds))
            elif what == "measured" and (rate := _positive(event.get("bytes_per_second"))):
                measured[node] = rate
        self._rates = {name: statistics.median(found[-JOBS_SEEN:]) for name, found in rates.items()}
        self._speeds = self._compared(done)
        self._unit = self._bytes_per_second_at_speed_1(measured)

    def _compared(self, done: list[tuple[str, str, float, float]]) -> dict[str, float]:
        """Each node's expected over observed seconds, relative to the median of all jobs."""
        ratios: dict[str, list[float]] = defaultdict(list)
        for node, name, work, seconds in done:
            ratios[node].append((OVERHEAD_SECONDS + work * self._rates[name]) / seconds)
        typical = statistics.median(
            [value for found in ratios.values() for value in found[-JOBS_SEEN:]] or [1.0]
        )
        return {
            node: statistics.median(found[-JOBS_SEEN:]) / typical for node, found in ratios.items()
        }

    def _bytes_per_second_at_speed_1(self, measured: dict[str, float]) -> float | None:
        """From nodes of earlier runs that were measured too; None if there is no such node."""
        if not self._speeds:
            return 1.0 / SECONDS_PER_BYTE
        found = [measured[node] / speed for node, speed in self._speeds.items() if node in measured]
        return statistics.median(found) if found else None

    def speed(self, node: str, measured: float | None = None) -> float:
        """Speed of a node: from its earlier jobs, else from the bytes of windows per second that
        its worker measured, else 1.
        """
        if node in self._speeds:
            return self._speeds[node]
        return measured / self._unit if measured and self._unit else 1.0

    def work(self, job: Job) -> float:
        """Bytes of windows that pass through the network in all expected epochs."""
        if job.kind == "script":
            return 0.0
        if job.kind == "base":
            learnt = self._sizes_of(job, job.base, ("train", "val"))
            chosen = self._sizes_of(job, job.base, ("test",))
            return self._passes(job, job.base, learnt, chosen)
        options = job.finetune.effective()
        target = identity.target(options)
        learnt = self._size(job, target, "train") * options.target_data_pct
        if options.mode in ("full_fine_tuning", "forest_base"):
            learnt += self._sizes_of(job, options, ("train", "val"))
        chosen = self._size(job, target, "val")
        if options.mode in WITHOUT_NETWORK:
            return learnt + chosen
        return self._passes(job, options, learnt, chosen)

    def _passes(self, job: Job, options: Options, learnt: float, chosen: float) -> float:
        """Bytes of all epochs. A small set is repeated up to min_steps_per_epoch batches."""
        batch = min(options.batch_size * self._window_bytes(job), learnt)
        learnt = max(learnt, options.min_steps_per_epoch * batch)
        return min(options.max_epochs, EPOCHS) * (learnt + chosen)

    def _sizes_of(self, job: Job, options: Options, splits: Sequence[str]) -> float:
        people = identity.base_participants(options)
        return sum(self._size(job, name, split) for name in people for split in splits)

    def _window_bytes(self, job: Job) -> int:
        """0 where no dataset.json says how many channels there are."""
        folder = str(job.values["data_path"])
        if folder not in self._windows:
            manifest = None
            with contextlib.suppress(InputError, OSError):
                manifest = read_manifest(self._paths.data(folder))
            size = 4 * len(manifest.channels) * manifest.window_size if manifest else 0
            self._windows[folder] = size
        return self._windows[folder]

    def seconds(self, job: Job) -> float:
        """The estimate at speed 1."""
        return OVERHEAD_SECONDS + self.work(job) * self._rates.get(kind(job), SECONDS_PER_BYTE)

    def _size(self, job: Job, participant: str, split: str) -> int:
        key = (str(job.values["data_path"]), split_file(participant, split))
        if key not in self._sizes:
            try:
                self._sizes[key] = (self._paths.data(key[0]) / key[1]).stat().st_size
            except OSError:  # the data are only on the nodes: take all files as equal
                self._sizes[key] = 10_000_000
        return self._sizes[key]


def _positive(value: Any) -> float:
    """The number, or 0 for anything else."""
    return float(value) if isinstance(value, (int, float)) and value > 0 else 0.0
