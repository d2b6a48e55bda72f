"""The engine over Slurm, which schedules arrays of jobs while the head may be away: see
common/cluster/engine.py for its functions.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import FrameType

from common.cluster.config import ClusterConfig, Slurm
from common.cluster.estimates import Estimates
from common.cluster.journal import Journal, new_run_id, past_events
from common.cluster.request import Prepared, Request, make_room, signals
from common.cluster.results import Results
from common.cluster.slurm import queue
from common.cluster.slurm.arrays import (
    Array,
    Base,
    Record,
    check_submitit,
    flags,
    hand_over,
    lay_out,
    submit,
)
from common.cluster.slurm.queue import Seen, SlurmError
from common.cluster.slurm.watch import Place, Watch
from common.cluster.work import Outcome, Report, Say, Show, Work
from common.data.data_sets import DataSha256
from common.errors import InputError
from common.jobs.inputs import File
from common.paths import Paths


def usable(config: ClusterConfig, paths: Paths) -> Slurm:
    """The settings, when tasks can be submitted from here. Raises InputError naming what is
    missing.
    """
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
    """Submit what is neither published nor with Slurm already, and watch until it is done.

    Raises:
        InputError: no sbatch, no submitit, or Slurm takes nothing of it (unknown partition,
        limits), in its own words.
    """
    paths, settings = request.paths, usable(request.config, request.paths)
    check_submitit()
    seen = queue.tasks(paths)
    waiting = _Waiting(paths, [task for task in seen if not task.ended])
    home = Results(paths, prepared.sha256, prepared.work.siblings)
    make_room(request, prepared, home)
    work = prepared.work
    blocked = sorted(prepared.made.missing_base)
    if not work.bases and not work.others:
        return Outcome(blocked=blocked)
    new = waiting.without(work)
    arrays = lay_out(new, waiting.bases, queue.array_size(), settings.jobs_per_task)
    leaving = _Leaving(say)
    with signals(leaving.on_signal):
        run_id = new_run_id() if arrays or not waiting.runs else max(waiting.runs)
        coming = sorted(
            {waiting.bases[job.id].array for job in work.bases if job.id in waiting.bases}
        )
        refused = _submit_all(request, settings, run_id, arrays, new, coming, say)
        journal = Journal(paths, run_id)
        journal.event(
            "start",
            jobs=len(work.bases) + len(work.others),
            engine="slurm",
            submitted=len(new.bases) + len(new.others),
        )
        places, ids = waiting.places(work, run_id)
        watch = Watch(
            paths, work, places, ids, home, journal, Estimates(paths, past_events(paths)), say, show
        )
        leaving.watching = True
        outcome = watch.run(queue.tasks(paths), lambda: leaving.asked)
        journal.close()
    outcome.blocked += blocked
    outcome.why = outcome.why or refused
    return outcome


class _Waiting:
    """The tasks that Slurm has already, and the jobs that they will run."""

    def __init__(self, paths: Paths, alive: Sequence[Seen]) -> None:
        self._paths, self._alive = paths, list(alive)
        self.runs = {task.run for task in alive}
        self._records = {run: Record.read(paths, run) for run in self.runs}
        self.bases = {
            base: Base(task.label, task.index, task.array)
            for task in alive
            for base in self._records[task.run].publishes(task.label, task.index)
        }
        for run, label, array in {(task.run, task.label, task.array) for task in alive}:
            hand_over(str(paths.slurm(run)), label, array)
        self._jobs = {
            job for task in alive for job in self._records[task.run].jobs(task.label, task.index)
        }

    def without(self, work: Work) -> Work:
        """`work` without what Slurm has already."""
        bases = [job for job in work.bases if job.id not in self.bases]
        others = [job for job in work.others if job.id not in self._jobs]
        return Work(bases, work.siblings, others, work.waiting, work.scripts, work.retrain)

    def places(self, work: Work, run: str) -> tuple[dict[str, Place], dict[str, str]]:
        """The task of each job that Slurm has, those of `run` included, and its name there (a base
        model may be trained as an equal one).
        """
        self._records[run] = Record.read(self._paths, run)
        tasks: list[Place] = [task.place for task in self._alive]
        tasks += [
            (run, label, int(index))
            for label, array in self._records[run].arrays.items()
            if array["id"]
            for index in array["tasks"]
        ]
        wanted = {job.id for job in (*work.bases, *work.others)}
        places: dict[str, Place] = {}
        ids: dict[str, str] = {}
        for place in tasks:
            record = self._records[place[0]]
            jobs, published = record.jobs(*place[1:]), record.publishes(*place[1:])
            for job in {*jobs, *published} & wanted:
                places[job], ids[job] = place, jobs[0] if job in published else job
        return places, ids


def _submit_all(
    request: Request,
    settings: Slurm,
    run: str,
    arrays: Sequence[Array],
    work: Work,
    coming: Collection[str],
    say: Say,
) -> str:
    """Submit in order. Returns '' or why Slurm took only a part; raises InputError when it took
    nothing. `coming`: arrays of bases that it has already.
    """
    if not arrays:
        say("all of it is with Slurm already: watching")
        return ""
    record = Record(request.paths, run, arrays, work.siblings)
    record.write()
    taken: dict[str, str] = {}
    for array in arrays:
        try:
            taken[array.label] = submit(
                request.paths,
                settings,
                run,
                array,
                work,
                _dependency(array, taken, coming, request),
            )
        except SlurmError as error:
            if not taken:
                shutil.rmtree(request.paths.run(run))
                raise InputError(f"{request.config_path}: Slurm refuses: {error}") from None
            return (
                f"Slurm took {len(taken)} of {len(arrays)} arrays and then refused: {error}: run"
                " the same command again later"
            )
        record.submitted(array.label, taken[array.label])
    tasks = sum(len(array.tasks) for array in arrays)
    jobs = sum(len(jobs) for array in arrays for jobs in array.tasks.values())
    say(
        f"submitted {jobs:,} jobs as {tasks:,} tasks in {len(arrays)} arrays:"
        f" {', '.join(taken.values())}"
    )
    return ""


def _dependency(
    array: Array, taken: Mapping[str, str], coming: Collection[str], request: Request
) -> str:
    """What has to have ended before a task of `array` starts: its own base, well, and where that is
    asked for all base trainings. `coming`: of these, the arrays that Slurm had already.
    """
    parts, own = [], ""
    if array.after is not None:
        own = array.after.array or taken[array.after.label]
        parts.append(f"aftercorr:{own}")
    bases = dict.fromkeys(
        [own, *coming, *(number for label, number in taken.items() if label.startswith("base"))]
    )
    bases.pop("", None)
    if request.wait_for_all_bases and bases and not array.label.startswith("base"):
        parts.append(f"afterany:{':'.join(bases)}")
    return ",".join(parts)


class _Leaving:
    """Ctrl-C and its like end the watching, never the jobs."""

    def __init__(self, say: Say) -> None:
        self.asked, self.watching, self._say = False, False, say

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Leave, once all is submitted."""
        self.asked = True
        if not self.watching:
            self._say("the submission is finished first")


def cancel(config: ClusterConfig, paths: Paths, say: Say) -> None:
    """End all that Slurm has of this project, and nothing else."""
    usable(config, paths)
    alive = [task for task in queue.tasks(paths) if not task.ended]
    queue.cancel(sorted({task.array for task in alive}))
    say(
        f"{len(alive):,} tasks of this project are cancelled"
        if alive
        else "Slurm has no tasks of this project"
    )


def check(
    config: ClusterConfig, paths: Paths, files: Sequence[File], sha256: DataSha256
) -> tuple[list[str], bool]:
    """For --check: what Slurm says of a task of this size, submitting nothing."""
    settings = usable(config, paths)
    check_submitit()
    try:
        return [f"slurm: ok: {queue.trial(flags(settings))}"], True
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
    """What Slurm has of this project."""
    counts = Counter(task.state.lower() for task in queue.tasks(paths) if not task.ended)
    tasks = ", ".join(f"{number:,} tasks {state}" for state, number in sorted(counts.items()))
    return [f"in Slurm: {tasks or 'no tasks of this project'}"]
