"""Submits arrays through submitit, and records which task runs which jobs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.artifacts import to_json, write_file
from common.cluster.config import MEMORY_FLAGS, Slurm
from common.cluster.slurm.arrays import TaskArray, ranges
from common.cluster.slurm.queue import SlurmError, error_text, job_name, outer_job_hidden
from common.cluster.slurm.task import Task
from common.cluster.work import Work
from common.errors import InputError
from common.jobs.job_files import Job
from common.paths import CODE_ROOT, Paths

ENDLESS = 1_000_000  # requeues; a task that makes no progress ends itself


class SubmissionRecord:
    """Which task of which array of a run runs which jobs. Written before the first submission, so
    that a command killed in the middle loses nothing.
    """

    def __init__(
        self,
        paths: Paths,
        run: str,
        arrays: Sequence[TaskArray] = (),
        siblings: Mapping[str, Sequence[Job]] | None = None,
    ) -> None:
        self._paths, self.run, siblings = paths, run, siblings or {}
        self.arrays: dict[str, dict[str, Any]] = {
            array.label: {
                "id": None,
                "tasks": {str(i): [job.id for job in jobs] for i, jobs in array.tasks.items()},
                "publishes": {
                    str(i): [job.id, *(sibling.id for sibling in siblings.get(job.id, ()))]
                    for i, (job, *_) in array.tasks.items()
                    if job.kind == "base"
                },
            }
            for array in arrays
        }

    @classmethod
    def read(cls, paths: Paths, run: str) -> SubmissionRecord:
        """The record of a run; empty where there is none."""
        record = cls(paths, run)
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(paths.slurm_record(run).read_bytes())
            if isinstance(found, dict) and isinstance(found.get("arrays"), dict):
                record.arrays = found["arrays"]
        return record

    def write(self) -> None:
        """Write the record to the run's folder."""
        write_file(self._paths.slurm_record(self.run), to_json({"arrays": self.arrays}))

    def submitted(self, label: str, array: str) -> None:
        """Add the number that Slurm gave to an array."""
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


def check_submitit() -> None:
    """Raises InputError where submitit is not installed."""
    if importlib.util.find_spec("submitit") is None:
        raise InputError(
            '"engine": "slurm" needs submitit, which is not installed: env/bin/python -m pip'
            " install -r requirements-slurm.txt"
        )


def parameters(
    settings: Slurm, name: str, indices: Iterable[int], dependency: str
) -> dict[str, Any]:
    """submitit's parameters for one array. `dependency`: as in sbatch's flag, or ''."""
    ours: dict[str, Any] = {"array": f"{ranges(indices)}%{settings.max_parallel}", "requeue": True}
    if dependency:
        ours |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    return {
        "job_name": name,
        "time": settings.minutes,
        "ntasks_per_node": 1,
        "additional_parameters": _resources(settings) | ours,
        "signal_delay_s": min(settings.notice_seconds, settings.minutes * 30),
        "setup": [*settings.setup, *_exports()],
    }


def _resources(settings: Slurm) -> dict[str, Any]:
    """sbatch's flags for partition, account and size of a task."""
    flags: dict[str, Any] = dict(settings.sbatch)
    if settings.gpus:
        others = [str(flags["gres"])] if flags.get("gres") else []
        flags["gres"] = ",".join([f"gpu:{settings.gpus}", *others])
    if settings.memory_gb is not None and not any(flags.get(flag) for flag in MEMORY_FLAGS):
        flags["mem"] = f"{max(1, round(settings.memory_gb * 1024))}M"
    flags |= {"partition": settings.partition, "account": settings.account}
    flags["cpus-per-task"] = settings.cpus
    return {
        flag: value for flag, value in flags.items() if value is not None and value is not False
    }


def sbatch_flags(settings: Slurm) -> list[str]:
    """Size and time of a task as arguments of sbatch."""
    flags = {**_resources(settings), "time": settings.minutes}
    return [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in flags.items()]


def _exports() -> list[str]:
    """Shell lines so that tasks find our code and the head's cluster even where sbatch passes no
    environment on.
    """
    lines = [f"export PYTHONPATH={shlex.quote(str(CODE_ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    if conf := os.environ.get("SLURM_CONF"):
        lines.append(f"export SLURM_CONF={shlex.quote(os.path.abspath(conf))}")
    return lines


def submit(
    paths: Paths, settings: Slurm, run: str, array: TaskArray, work: Work, dependency: str
) -> str:
    """Submit one array with one call of sbatch. Returns its number.

    Raises:
        SlurmError: Slurm refuses; with its own message.
    """
    given = parameters(settings, job_name(paths, run, array.label), array.tasks, dependency)
    tasks = [
        Task(
            project=str(paths.root),
            run=run,
            label=array.label,
            index=index,
            jobs=jobs,
            siblings=tuple(work.siblings.get(jobs[0].id, ())),
            scripts=dict(work.scripts),
            retrain=work.retrain,
            device="0" if settings.asks_for_gpu else "cpu",
            notice_seconds=given["signal_delay_s"],
        )
        for index, jobs in array.tasks.items()
    ]
    return _submit(str(paths.slurm(run)), given, tasks)


def _submit(folder: str, given: Mapping[str, Any], tasks: Sequence[Task]) -> str:
    """submitit's map_array with our own indices, which its public interface does not offer (and a
    single task would become no array).
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
    from submitit.helpers import DelayedSubmission

    executor = SlurmExecutor(folder, max_num_timeout=ENDLESS)
    executor.update_parameters(**given)
    # as in submitit: names logs by array and index
    executor.parameters["map_count"] = len(tasks)
    pickles = []
    for task in tasks:
        delayed = DelayedSubmission(task)
        delayed.set_timeout(given["time"], ENDLESS)
        pickles.append(JobPaths(folder).folder / f"{task.label}_{task.index}.pkl")
        delayed.dump(pickles[-1])
    try:
        # submitit prints what it also raises
        with outer_job_hidden(), contextlib.redirect_stderr(io.StringIO()):
            array: str = executor._submit_command(executor._submitit_command_str).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        for path in pickles:
            path.unlink()
        raise SlurmError(error_text(str(error))) from None
    rename_pickles(folder, tasks[0].label, array)
    return array


def rename_pickles(folder: str, label: str, array: str) -> None:
    """Give the pickled tasks of an array the names under which submitit looks for them; tasks wait
    a minute for that. Repeated for arrays of a command that was killed before it did so.
    """
    from submitit.core.utils import JobPaths

    for path in Path(folder).glob(f"{label}_*.pkl"):
        JobPaths(folder, job_id=f"{array}_{path.stem.rpartition('_')[2]}").move_temporary_file(
            path, "submitted_pickle"
        )
