"""How long a job will take, in seconds, and how fast a node is: from the bytes of windows that jobs
learn from, and from jobs done in earlier runs.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from common.jobs import identity
from common.jobs.job_files import Job
from common.paths import Paths, split_file

# Before anything was measured: an epoch over 100 MB takes about 4 s on one core, and early stopping
# ends most trainings after some 40 epochs.
SECONDS_PER_BYTE = 4e-8
EPOCHS = 40
OVERHEAD_SECONDS = 0.2
JOBS_SEEN = 200  # the latest ones, of a kind and of a node, tell


def kind(job: Job) -> str:
    """Jobs of one kind cost alike per byte."""
    return str(job.values["mode"]) if job.kind == "finetune" else job.kind


class Estimates:
    """Seconds by job at speed 1, which is that of the nodes of earlier runs on average, and the
    speed of each node; sharper with each `past` event.
    """

    def __init__(self, paths: Paths, past: Iterable[dict[str, Any]]) -> None:
        self._paths = paths
        self._sizes: dict[tuple[str, str], int] = {}
        rates: dict[str, list[float]] = defaultdict(list)
        done: list[tuple[str, str, float, float]] = []
        for event in past:
            seconds, work = event.get("seconds"), event.get("work")
            if (
                event.get("event") == "done"
                and isinstance(seconds, (int, float))
                and isinstance(work, (int, float))
                and seconds > 0
                and work > 0
            ):
                rates[str(event.get("kind"))].append(max(0.0, seconds - OVERHEAD_SECONDS) / work)
                done.append((str(event.get("node")), str(event.get("kind")), work, seconds))
        self._rates = {name: statistics.median(found[-JOBS_SEEN:]) for name, found in rates.items()}
        self._speeds = self._compared(done)

    def _compared(self, done: list[tuple[str, str, float, float]]) -> dict[str, float]:
        """How much sooner than expected each node was done, over how much sooner all were."""
        sooner: dict[str, list[float]] = defaultdict(list)
        for node, name, work, seconds in done:
            sooner[node].append((OVERHEAD_SECONDS + work * self._rates[name]) / seconds)
        average = statistics.median(
            [value for found in sooner.values() for value in found[-JOBS_SEEN:]] or [1.0]
        )
        return {
            node: statistics.median(found[-JOBS_SEEN:]) / average for node, found in sooner.items()
        }

    def speed(self, node: str) -> float:
        """1 for a node that has done nothing yet."""
        return self._speeds.get(node, 1.0)

    def work(self, job: Job) -> float:
        """Bytes of windows that pass through the network, over all epochs that are to be
        expected.
        """
        if job.kind == "script":
            return 0.0
        epochs = min(int(job.values["max_epochs"]), EPOCHS)
        if job.kind == "base":
            people = identity.base_participants(job.base)
            return epochs * sum(
                self._size(job, name, split)
                for name in people
                for split in ("train", "val", "test")
            )
        options = job.finetune
        target = identity.target(options)
        size = self._size(job, target, "train") * options.target_data_pct + self._size(
            job, target, "val"
        )
        if options.mode == "full_fine_tuning":
            size += sum(
                self._size(job, name, split)
                for name in identity.base_participants(options)
                for split in ("train", "val")
            )
        return epochs * size

    def seconds(self, job: Job) -> float:
        """The estimate at speed 1."""
        return OVERHEAD_SECONDS + self.work(job) * self._rates.get(kind(job), SECONDS_PER_BYTE)

    def _size(self, job: Job, participant: str, split: str) -> int:
        key = (str(job.values["data_path"]), split_file(participant, split))
        if key not in self._sizes:
            try:
                self._sizes[key] = (self._paths.data(key[0]) / key[1]).stat().st_size
            except OSError:  # the data lie only on the nodes: all alike
                self._sizes[key] = 10_000_000
        return self._sizes[key]
