"""The engine over Slurm, which schedules arrays of jobs while the head may be away: see
common/cluster/engine.py for its functions.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import FrameType

from common.cluster.config import ClusterConfig, Slurm
from common.cluster.estimates import Estimates
from common.cluster.journal import Journal, past_events
from common.cluster.request import Prepared, Request, make_room, signals
from common.cluster.slurm.arrays import BaseTask, TaskArray, lay_out
from common.cluster.slurm.queue import (
    QueuedTask,
    SlurmError,
    array_size,
    cancel_arrays,
    queued_tasks,
    try_submission,
)
from common.cluster.slurm.submission import (
    SubmissionRecord,
    check_submitit,
    rename_pickles,
    sbatch_flags,
    submit,
)
from common.cluster.slurm.watch import Place, Watch
from common.cluster.work import Outcome, Report, Say, Show, Work
from common.data.data_sets import DataSha256
from common.errors import InputError
from common.jobs.inputs import File
from common.paths import Paths


def _settings(config: ClusterConfig, paths: Paths) -> Slurm:
    """The settings of Slurm. Raises InputError where tasks cannot be submitted from here."""
    if config.slurm is None:
        raise InputError(
            'this is for "engine": "slurm" in cluster_config.json; a run over SSH is ended with'
            " Ctrl-C"
        )
    if "%" in str(paths.root) or "\n" in str(paths.root):
        raise InputError(
            f"{paths.root}: Slurm reads % in the name of a folder as a pattern: move the project to"
            " a folder without it"
        )
    return config.slurm


def run(request: Request, prepared: Prepared, say: Report, show: Show) -> Outcome:
    """Submit what is neither published nor in Slurm already, and watch until it is done.

    Raises:
        InputError: no sbatch, no submitit, or Slurm accepts nothing of it (unknown partition,
        limits); with Slurm's own message.
    """
    paths, settings, work = request.paths, _settings(request.config, request.paths), prepared.work
    check_submitit()
    submitted = _Submitted(paths, [task for task in queued_tasks(paths) if not task.ended])
    results = make_room(request, prepared)
    blocked = sorted(prepared.made.missing_base)
    if not work.bases and not work.others:
        return Outcome(blocked=blocked)
    new = submitted.without(work)
    arrays = lay_out(new, submitted.bases, array_size(), settings.jobs_per_task)
    leaving = _Leaving(say)
    with signals(leaving.on_signal):
        run_id = request.run_id if arrays or not submitted.runs else max(submitted.runs)
        earlier = sorted(
            {submitted.bases[b.id].array for b in work.bases if b.id in submitted.bases}
        )
        refused = _submit_all(request, settings, run_id, arrays, new, earlier, say)
        journal = Journal(paths, run_id)
        journal.event(
            "start",
            jobs=len(work.bases) + len(work.others),
            engine="slurm",
            submitted=len(new.bases) + len(new.others),
        )
        places = submitted.places(work, run_id)
        estimates = Estimates(paths, past_events(paths))
        watch = Watch(paths, work, places, results, journal, estimates, say, show)
        leaving.watching = True
        outcome = watch.run(queued_tasks(paths), lambda: leaving.asked)
        journal.close()
    outcome.blocked += blocked
    outcome.why = outcome.why or refused
    return outcome


class _Submitted:
    """The tasks that Slurm already has, and the jobs that they run."""

    def __init__(self, paths: Paths, alive: Sequence[QueuedTask]) -> None:
        self._paths, self._alive = paths, alive
        self.runs = {task.run for task in alive}
        self._records = {run: SubmissionRecord.read(paths, run) for run in self.runs}
        self.bases = {
            base: BaseTask(task.label, task.index, task.array)
            for task in alive
            for base in self._records[task.run].publishes(task.label, task.index)
        }
        for run, label, array in {(task.run, task.label, task.array) for task in alive}:
            rename_pickles(str(paths.slurm(run)), label, array)
        self._jobs = {
            job for task in alive for job in self._records[task.run].jobs(task.label, task.index)
        }

    def without(self, work: Work) -> Work:
        """`work` without what Slurm already has."""
        return replace(
            work,
            bases=[job for job in work.bases if job.id not in self.bases],
            others=[job for job in work.others if job.id not in self._jobs],
        )

    def places(self, work: Work, run: str) -> dict[Place, dict[str, str]]:
        """By task, those of `run` included: the name of each job in the task's event log -> its id.
        They differ where a base model is trained under the hash of an equal training.
        """
        self._records[run] = SubmissionRecord.read(self._paths, run)
        tasks: list[Place] = [task.place for task in self._alive]
        tasks += [
            (run, label, int(index))
            for label, array in self._records[run].arrays.items()
            if array["id"]
            for index in array["tasks"]
        ]
        wanted = {job.id for job in (*work.bases, *work.others)}
        places: dict[Place, dict[str, str]] = {}
        for place in tasks:
            record = self._records[place[0]]
            jobs, published = record.jobs(*place[1:]), record.publishes(*place[1:])
            for job in {*jobs, *published} & wanted:
                places.setdefault(place, {})[jobs[0] if job in published else job] = job
        return places


def _submit_all(
    request: Request,
    settings: Slurm,
    run: str,
    arrays: Sequence[TaskArray],
    work: Work,
    earlier: Collection[str],
    say: Say,
) -> str:
    """Submit in order. Returns '' or why Slurm accepted only a part; raises InputError when it
    accepted nothing. `earlier`: arrays of base trainings that it already has.
    """
    if not arrays:
        say("already submitted; watching")
        return ""
    record = SubmissionRecord(request.paths, run, arrays, work.siblings)
    record.write()
    numbers: dict[str, str] = {}
    bases = list(earlier)
    for array in arrays:
        dependency = _dependency(array, numbers, bases, request)
        try:
            number = submit(request.paths, settings, run, array, work, dependency)
        except SlurmError as error:
            if not numbers:
                shutil.rmtree(request.paths.run(run))
                raise InputError(f"{request.config_path}: Slurm refuses: {error}") from None
            return (
                f"Slurm accepted {len(numbers)} of {len(arrays)} arrays and then refused: {error}:"
                " run the same command again later"
            )
        numbers[array.label] = number
        bases += [number] if array.trains_bases else []
        record.submitted(array.label, number)
    tasks = sum(len(array.tasks) for array in arrays)
    jobs = sum(len(jobs) for array in arrays for jobs in array.tasks.values())
    say(
        f"submitted {jobs:,} jobs as {tasks:,} tasks in {len(arrays)} arrays:"
        f" {', '.join(numbers.values())}"
    )
    return ""


def _dependency(
    array: TaskArray, numbers: Mapping[str, str], bases: Sequence[str], request: Request
) -> str:
    """What has to end before a task of `array` starts: its own base training, with success, and
    with --wait-for-all-bases every base training. `numbers`: by label, those of the arrays that are
    submitted; `bases`: those of all arrays of base trainings.
    """
    parts, own = [], ""
    if array.after is not None:
        own = array.after.array or numbers[array.after.label]
        parts.append(f"aftercorr:{own}")
    before = [number for number in dict.fromkeys([own, *bases]) if number]
    if request.wait_for_all_bases and before and not array.trains_bases:
        parts.append(f"afterany:{':'.join(before)}")
    return ",".join(parts)


class _Leaving:
    """Ctrl-C, SIGTERM and SIGHUP end the watching, not the jobs."""

    def __init__(self, say: Say) -> None:
        self.asked, self.watching, self._say = False, False, say

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Leave, after everything is submitted."""
        self.asked = True
        if not self.watching:
            self._say("the submission is finished first")


def cancel(config: ClusterConfig, paths: Paths, say: Say) -> None:
    """Cancel all tasks of this project, and no others."""
    _settings(config, paths)
    alive = [task for task in queued_tasks(paths) if not task.ended]
    cancel_arrays(sorted({task.array for task in alive}))
    say(
        f"{len(alive):,} tasks of this project are cancelled"
        if alive
        else "Slurm has no tasks of this project"
    )


def check(
    config: ClusterConfig, paths: Paths, files: Sequence[File], sha256: DataSha256
) -> tuple[list[str], bool]:
    """What Slurm says of a task of this size; nothing is submitted."""
    settings = _settings(config, paths)
    check_submitit()
    try:
        return [f"slurm: ok: {try_submission(sbatch_flags(settings))}"], True
    except SlurmError as error:
        return [f"slurm: CANNOT WORK: {error}"], False


def data_fingerprints(
    config: ClusterConfig, paths: Paths, files: Sequence[File]
) -> dict[File, str]:
    """Nothing: the nodes share the head's project folder."""
    return {}


def setup(config: ClusterConfig, paths: Paths, say: Say) -> bool:
    """Raises InputError: there is nothing to set up."""
    raise InputError(
        "under Slurm all nodes share this project folder and its environment: there is nothing to"
        " set up or to clean"
    )


clean = setup


def queue_lines(paths: Paths) -> list[str]:
    """The tasks of this project by state."""
    counts = Counter(task.state.lower() for task in queued_tasks(paths) if not task.ended)
    tasks = ", ".join(f"{number:,} tasks {state}" for state, number in sorted(counts.items()))
    return [f"in Slurm: {tasks or 'no tasks of this project'}"]
