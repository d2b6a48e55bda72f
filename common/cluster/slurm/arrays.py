"""A grid as Slurm arrays: laid out, written down, submitted through submitit.

One base array, indexed by distinct training; then one array per chunk of fine-tunes over the same
indices, so that `--dependency=aftercorr` lets each chunk start when its own base has ended well,
and never otherwise. What needs no base that is still to come goes into an array without a
dependency.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.artifacts import to_json, write_file
from common.cluster.config import MEMORY_FLAGS, Slurm
from common.cluster.slurm.queue import SlurmError, job_name, outer_job_hidden, plain
from common.cluster.slurm.task import Task
from common.cluster.work import Work
from common.errors import InputError
from common.jobs.job_files import Job
from common.paths import CODE_ROOT, Paths

ENDLESS = 1_000_000  # requeues: a task that comes nowhere ends itself


@dataclass(frozen=True)
class Base:
    """The task in which a base model is trained: of an array submitted here (by label), or of one
    that Slurm already has (by number).
    """

    label: str
    index: int
    array: str = ""


@dataclass(frozen=True)
class Array:
    """Tasks by index; `after`: the array whose task of the same index must have ended well."""

    label: str
    tasks: Mapping[int, tuple[Job, ...]]
    after: Base | None = None


def lay_out(work: Work, coming: Mapping[str, Base], size: int, per_task: int) -> list[Array]:
    """The arrays of `work`. `coming`: base hashes that tasks already submitted will publish;
    indices stay below `size`.
    """
    arrays: list[Array] = []
    bases = dict(coming)
    for start in range(0, len(work.bases), size):
        label = f"base{len(arrays)}"
        arrays.append(
            Array(
                label, {index: (job,) for index, job in enumerate(work.bases[start : start + size])}
            )
        )
        for index, (job,) in arrays[-1].tasks.items():
            for base_hash in (job.id, *(sibling.id for sibling in work.siblings.get(job.id, ()))):
                bases[base_hash] = Base(label, index)
    # neighbours share base and data in a warm process
    ordered = sorted(work.others, key=lambda job: (job.needs or "", job.values.get("fold", 0)))
    free = [job for job in ordered if job.needs not in bases]
    chunks = [tuple(free[start : start + per_task]) for start in range(0, len(free), per_task)]
    alone = [
        Array(f"free{start // size}", dict(enumerate(chunks[start : start + size])))
        for start in range(0, len(chunks), size)
    ]
    return [
        *arrays,
        *_after_their_bases(
            [(bases[job.needs], job) for job in ordered if job.needs in bases], per_task
        ),
        *alone,
    ]


def _after_their_bases(finetunes: Sequence[tuple[Base, Job]], per_task: int) -> list[Array]:
    """For each array of bases one array per chunk number, at the indices of their bases."""
    after: dict[tuple[str, str], dict[int, list[Job]]] = {}
    for base, job in finetunes:
        after.setdefault((base.label, base.array), {}).setdefault(base.index, []).append(job)
    arrays = []
    for number, ((label, array), jobs) in enumerate(after.items()):
        for chunk in range(max(-(-len(several) // per_task) for several in jobs.values())):
            part = {
                index: tuple(several[chunk * per_task : (chunk + 1) * per_task])
                for index, several in sorted(jobs.items())
            }
            arrays.append(
                Array(
                    f"tune{number}c{chunk}",
                    {index: several for index, several in part.items() if several},
                    Base(label, 0, array),
                )
            )
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


# -- what was submitted


class Record:
    """Which task of which array of a run runs which jobs. Written before the first submission, so
    that a head killed in the middle loses nothing.
    """

    def __init__(
        self,
        paths: Paths,
        run: str,
        arrays: Sequence[Array] = (),
        siblings: Mapping[str, Sequence[Job]] | None = None,
    ) -> None:
        self._paths, self.run, siblings = paths, run, siblings or {}
        self.arrays: dict[str, dict[str, Any]] = {
            array.label: {
                "id": None,
                "tasks": {
                    str(index): [job.id for job in jobs] for index, jobs in array.tasks.items()
                },
                "publishes": {
                    str(i): [job.id, *(s.id for s in siblings.get(job.id, ()))]
                    for i, (job, *_) in array.tasks.items()
                    if job.kind == "base"
                },
            }
            for array in arrays
        }

    @classmethod
    def read(cls, paths: Paths, run: str) -> Record:
        """An earlier run's; empty where there is none."""
        record = cls(paths, run)
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(paths.slurm_record(run).read_bytes())
            record.arrays = (
                found["arrays"]
                if isinstance(found, dict) and isinstance(found.get("arrays"), dict)
                else {}
            )
        return record

    def write(self) -> None:
        """Keep it."""
        write_file(self._paths.slurm_record(self.run), to_json({"arrays": self.arrays}))

    def submitted(self, label: str, array: str) -> None:
        """Slurm has taken it under this number."""
        self.arrays[label]["id"] = array
        self.write()

    def jobs(self, label: str, index: int) -> list[str]:
        """Ids of the jobs of a task."""
        found: list[str] = self.arrays.get(label, {}).get("tasks", {}).get(str(index), [])
        return found

    def publishes(self, label: str, index: int) -> list[str]:
        """Base hashes that a task publishes."""
        found: list[str] = self.arrays.get(label, {}).get("publishes", {}).get(str(index), [])
        return found


# -- submitting


def check_submitit() -> None:
    """Raises InputError where submitit is not installed."""
    if importlib.util.find_spec("submitit") is None:
        raise InputError(
            '"engine": "slurm" needs submitit, which is not installed: env/bin/python -m pip'
            " install -r requirements-slurm.txt"
        )


def parameters(settings: Slurm, name: str, indices: Iterable[int], after: str) -> dict[str, Any]:
    """What submitit is told of one array. `after`: the whole dependency, or ''."""
    ours: dict[str, Any] = {"array": f"{ranges(indices)}%{settings.max_parallel}", "requeue": True}
    if after:
        ours |= {"dependency": after, "kill-on-invalid-dep": "yes"}
    return {
        "job_name": name,
        "time": settings.minutes,
        "ntasks_per_node": 1,
        "additional_parameters": _sizes(settings) | ours,
        "signal_delay_s": min(settings.notice_seconds, settings.minutes * 30),
        "setup": [*settings.setup, *_exports()],
    }


def _sizes(settings: Slurm) -> dict[str, Any]:
    """sbatch's flags for where a task runs and how large it is."""
    asked = dict(settings.sbatch)
    if settings.gpus:
        asked["gres"] = ",".join(
            filter(None, (f"gpu:{settings.gpus}", str(asked.get("gres") or "")))
        )
    if settings.memory_gb is not None and not any(asked.get(flag) for flag in MEMORY_FLAGS):
        asked["mem"] = f"{max(1, round(settings.memory_gb * 1024))}M"
    known = {
        "partition": settings.partition,
        "account": settings.account,
        "cpus-per-task": settings.cpus,
    }
    return {
        flag: value
        for flag, value in {**asked, **known}.items()
        if value is not None and value is not False
    }


def flags(settings: Slurm) -> list[str]:
    """The same on a command line."""
    return [
        f"--{flag}" if value is True else f"--{flag}={value}"
        for flag, value in {**_sizes(settings), "time": settings.minutes}.items()
    ]


def _exports() -> list[str]:
    """The tasks find our code, and the cluster that the head was told of, also where sbatch passes
    no environment on.
    """
    lines = [f"export PYTHONPATH={shlex.quote(str(CODE_ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    if conf := os.environ.get("SLURM_CONF"):
        lines.append(f"export SLURM_CONF={shlex.quote(os.path.abspath(conf))}")
    return lines


def submit(paths: Paths, settings: Slurm, run: str, array: Array, work: Work, after: str) -> str:
    """Submit one array with one call of sbatch; its number.

    Raises:
        SlurmError: Slurm refuses; in its own words.
    """
    told = parameters(settings, job_name(paths, run, array.label), array.tasks, after)
    common: dict[str, Any] = {
        "project": str(paths.root),
        "run": run,
        "label": array.label,
        "scripts": dict(work.scripts),
        "retrain": work.retrain,
        "device": "0" if settings.asks_for_gpu else "cpu",
        "notice_seconds": told["signal_delay_s"],
    }
    tasks = {
        index: Task(
            index=index, jobs=jobs, siblings=tuple(work.siblings.get(jobs[0].id, ())), **common
        )
        for index, jobs in array.tasks.items()
    }
    return _submit(str(paths.slurm(run)), told, tasks)


def _submit(folder: str, told: Mapping[str, Any], tasks: Mapping[int, Task]) -> str:
    """submitit's map_array with indices of our own, which it has no public way to ask for (and it
    makes no array of a single task).
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
    from submitit.helpers import DelayedSubmission

    executor = SlurmExecutor(folder, max_num_timeout=ENDLESS)
    executor.update_parameters(**told)
    # as submitit does: logs are named by array and index
    executor.parameters["map_count"] = len(tasks)
    kept = {}
    for index, task in tasks.items():
        delayed = DelayedSubmission(task)
        delayed.set_timeout(told["time"], ENDLESS)
        kept[index] = JobPaths(folder).folder / f"{task.label}_{index}.pkl"
        delayed.dump(kept[index])
    try:
        # it prints what it also raises
        with outer_job_hidden(), contextlib.redirect_stderr(io.StringIO()):
            array: str = executor._submit_command(executor._submitit_command_str).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        for path in kept.values():
            path.unlink()
        raise SlurmError(plain(str(error))) from None
    hand_over(folder, tasks[next(iter(tasks))].label, array)
    return array


def hand_over(folder: str, label: str, array: str) -> None:
    """Give what is kept for the tasks of an array the names by which submitit looks for it. Tasks
    wait a minute for that.

    Also for an array whose head was killed between the submission and this.
    """
    from submitit.core.utils import JobPaths

    for path in Path(folder).glob(f"{label}_*.pkl"):
        JobPaths(folder, job_id=f"{array}_{path.stem.rpartition('_')[2]}").move_temporary_file(
            path, "submitted_pickle"
        )
