"""Lays out a grid as Slurm arrays.

One array holds the base trainings, an index for each distinct training. Fine-tunes follow in arrays
over the same indices, so that `--dependency=aftercorr` starts each when its own base has been
trained, and never after a failed one. Jobs that need no base to come are in arrays without a
dependency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.cluster.work import Work
from common.jobs.job_files import Job


@dataclass(frozen=True)
class BaseTask:
    """The task that trains a base model: index of an array that is still to be submitted (`label`),
    or of one that Slurm already has (`array`, its number).
    """

    label: str
    index: int
    array: str = ""


@dataclass(frozen=True)
class TaskArray:
    """Jobs by task index. `after`: the array whose task of the same index must succeed first."""

    label: str
    tasks: Mapping[int, tuple[Job, ...]]
    after: BaseTask | None = None

    @property
    def trains_bases(self) -> bool:
        """Whether its jobs are base trainings."""
        return any(job.kind == "base" for jobs in self.tasks.values() for job in jobs)


def lay_out(
    work: Work, submitted: Mapping[str, BaseTask], size: int, per_task: int
) -> list[TaskArray]:
    """The arrays of `work`. `submitted`: base hashes that tasks in Slurm will publish. Indices stay
    below `size`.
    """
    bases = dict(submitted)
    arrays = []
    for number, start in enumerate(range(0, len(work.bases), size)):
        tasks = {index: (job,) for index, job in enumerate(work.bases[start : start + size])}
        arrays.append(TaskArray(f"base{number}", tasks))
        for index, (job,) in tasks.items():
            for published in (job, *work.siblings.get(job.id, ())):
                bases[published.id] = BaseTask(f"base{number}", index)
    ordered = sorted(work.others, key=_neighbours)
    dependent = [(bases[job.needs], job) for job in ordered if job.needs in bases]
    free = _chunks([job for job in ordered if job.needs not in bases], per_task)
    return [
        *arrays,
        *_after_their_bases(dependent, per_task),
        *(
            TaskArray(f"free{number}", dict(enumerate(free[start : start + size])))
            for number, start in enumerate(range(0, len(free), size))
        ),
    ]


def _neighbours(job: Job) -> tuple[str, int]:
    """Fine-tunes in one process share base and data; a script's fold may be anything."""
    return job.needs or "", job.values.get("fold", 0) if job.kind == "finetune" else 0


def _chunks(jobs: Sequence[Job], size: int) -> list[tuple[Job, ...]]:
    return [tuple(jobs[start : start + size]) for start in range(0, len(jobs), size)]


def _after_their_bases(finetunes: Iterable[tuple[BaseTask, Job]], per_task: int) -> list[TaskArray]:
    """For each array of bases, one array for the first chunk of fine-tunes of every base, one for
    the second, and so on, at the indices of their bases.
    """
    by_array: dict[tuple[str, str], dict[int, list[Job]]] = {}
    for base, job in finetunes:
        by_array.setdefault((base.label, base.array), {}).setdefault(base.index, []).append(job)
    arrays = []
    for number, ((label, array), by_index) in enumerate(by_array.items()):
        chunks = {index: _chunks(jobs, per_task) for index, jobs in sorted(by_index.items())}
        for chunk in range(max(map(len, chunks.values()))):
            tasks = {index: own[chunk] for index, own in chunks.items() if chunk < len(own)}
            arrays.append(TaskArray(f"tune{number}c{chunk}", tasks, BaseTask(label, 0, array)))
    return arrays


def ranges(indices: Iterable[int]) -> str:
    """'0-3,7' for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], index]
        else:
            runs.append([index])
    return ",".join("-".join(map(str, run)) for run in runs)
