"""A user's request: plan it, describe it, make room for its results, and describe how it ended.

Knows no engine: neither ssh/ nor slurm/ nor transport/.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType

from common import artifacts
from common.cli import number_are, number_of
from common.cluster.config import ClusterConfig
from common.cluster.journal import last_failures, new_run_id
from common.cluster.results import Results
from common.cluster.work import Outcome, Work
from common.data.data_sets import Data, DataSha256
from common.errors import BaseModelNotFound, Conflict, InputError
from common.jobs import identity
from common.jobs.inputs import File, all_data_files, own_files
from common.jobs.job_files import KINDS, Job
from common.jobs.plan import Plan, code_notice, counted, plan, reasons
from common.jobs.verdicts import State, make_way
from common.paths import Paths

# SHA-256 of data files that the head lacks, as the nodes have them.
AskNodes = Callable[[Sequence[File]], dict[File, str]]


@dataclass(frozen=True)
class Request:
    """What a user asked for."""

    paths: Paths
    config_path: Path
    config: ClusterConfig
    bases: Sequence[Job] = ()
    others: Sequence[Job] = ()  # fine-tunes, or jobs of a user's own script
    script: Path | None = None  # a user's own
    train_bases: bool = True
    sync: bool = True
    wait_for_all_bases: bool = False
    wait_for_slots: bool = True  # that another project fills
    retrain: bool = False
    only: str | None = None
    max_retries: int = 2
    run_id: str = field(default_factory=new_run_id)


@dataclass
class Prepared:
    """A request, planned: what is there, and what has to run."""

    made: Plan
    work: Work
    sha256: DataSha256
    data: dict[File, str | None] = field(default_factory=dict)


# -- planning


def plan_request(request: Request, data: Data, fingerprints: AskNodes) -> Prepared:
    """Plan a request. Changes nothing. Raises InputError, BaseModelNotFound and Conflict for what
    cannot be run.
    """
    bases, others = _chosen(request)
    files = all_data_files((*bases, *others))
    own = {file for job in (*bases, *others) for file in own_files(job)}
    sha256, known = _data_sha256(request.paths, data, files, fingerprints, own)
    made = Plan()
    if request.script is None:
        made = plan(request.paths, bases, others, sha256, retrain=request.retrain)
        _refuse(made, others)
    return Prepared(made, _work(request, made, bases, others), sha256, known)


def _chosen(request: Request) -> tuple[list[Job], list[Job]]:
    """--only: failed jobs, or the fine-tunes of a prefix, with the bases that they need."""
    bases, others = list(request.bases) if request.train_bases else [], list(request.others)
    if request.only is None:
        return bases, others
    wanted = set(last_failures(request.paths)) if request.only == "failed" else set[str]()
    if request.only == "failed":
        chosen = [job for job in others if job.id in wanted]
    else:
        chosen = [job for job in others if job.id.startswith(request.only)]
        if not chosen:
            raise InputError(
                f"--only {request.only}: no job has that prefix, and 'failed' is the other choice"
            )
    # a base model that was deleted meanwhile is trained again; one that is there costs nothing
    wanted.update(job.needs for job in chosen if job.needs)
    return [job for job in bases if job.id in wanted], chosen


def without_their_base(request: Request, outcome: Outcome) -> Request | None:
    """A request for the fine-tunes that failed in a run because their published base model was
    deleted meanwhile, with the training of that base; None where there are none.
    """
    if not request.train_bases or outcome.interrupted:
        return None
    lost = outcome.failed.keys() | set(outcome.blocked)
    gone = _not_trained(request, lost)
    others = [job for job in request.others if job.id in lost and job.needs in gone]
    needed = {job.needs for job in others}
    bases = [job for job in request.bases if job.id in needed]
    if not bases:
        return None
    return replace(request, bases=bases, others=others, only=None, run_id=new_run_id())


def _not_trained(request: Request, lost: Collection[str]) -> set[str]:
    """Hashes that are not published, but for those whose training failed, under whichever of its
    hashes. Equal trainings are known by configuration here: the data may be on the nodes alone.
    """
    absent = {
        job.id: identity.training_key(job.base, None)
        for job in request.bases
        if not request.paths.base_metadata(job.id).exists()
    }
    failed = {key for base_hash, key in absent.items() if base_hash in lost}
    return {base_hash for base_hash, key in absent.items() if key not in failed}


def _data_sha256(
    paths: Paths,
    data: Data,
    files: Sequence[File],
    fingerprints: AskNodes,
    own: Collection[File] = (),
) -> tuple[DataSha256, dict[File, str | None]]:
    """The head's own fingerprints; those of the nodes where the head has no data at all. `own`:
    those of `files` that the head must have in any case.
    """
    folders = {paths.data(file[0]) for file in files if file not in own}
    if any(folder.is_dir() for folder in folders) or not files:
        known: dict[File, str | None] = {
            (data_path, name): data.sha256(data_path, name) for data_path, name in files
        }
        return data.sha256, known
    found = fingerprints([file for file in files if file not in own])

    def sha256(data_path: str, name: str) -> str:
        if (data_path, name) in own:
            return data.sha256(data_path, name)
        if (data_path, name) not in found:
            raise InputError(
                f"{data_path}/{name}: neither here nor on any node: prepare the data with"
                " prepare_data.py or correct --data_path"
            )
        return found[data_path, name]

    here = {file: sha256(*file) for file in files}
    return sha256, {file: here[file] if file in own else None for file in files}


def _refuse(made: Plan, others: Sequence[Job]) -> None:
    overwrite = {job.id for job in others if job.kind == "finetune" and job.finetune.overwrite}
    for job, verdict in made.finetunes.items():
        if verdict.state is State.CONFLICT and job not in overwrite:
            raise Conflict(verdict.reason)
    verdicts = made.bases | made.finetunes
    todo = {job for job, verdict in verdicts.items() if verdict.state is not State.DONE}
    if made.missing_base and todo <= set(made.missing_base):
        raise BaseModelNotFound(made.finetunes[next(iter(made.missing_base))].reason)


def _work(request: Request, made: Plan, bases: Sequence[Job], others: Sequence[Job]) -> Work:
    scripts: dict[str, str] = {kind: name for name, kind in KINDS.items()}
    if request.script is not None:
        return Work((), {}, others, frozenset(), scripts | {"script": str(request.script)})
    todo = [
        job
        for job in bases
        if made.bases[job.id].state is not State.DONE and job.id not in made.copies
    ]
    first: dict[str | None, Job] = {}
    siblings: dict[str, list[Job]] = {}
    for job in todo:
        trained = first.setdefault(made.keys[job.id], job)
        if trained is not job:
            siblings.setdefault(trained.id, []).append(job)
    runnable = [
        job
        for job in others
        if made.finetunes[job.id].state is not State.DONE and job.id not in made.missing_base
    ]
    return Work(
        list(first.values()), siblings, runnable, frozenset(made.waiting), scripts, request.retrain
    )


def describe(prepared: Prepared, *, verbose: bool = False) -> list[str]:
    """What will run, what is reused and why."""
    made, work = prepared.made, prepared.work
    lines = []
    if made.bases:
        copies = f", {len(made.copies):,} copied from equal trainings" if made.copies else ""
        lines.append(
            f"base models: {counted(made.bases)};"
            f" {number_of(len(work.bases), 'training')} to run{copies}"
        )
    if made.finetunes:
        lines.append(f"fine-tunes: {counted(made.finetunes)}; {len(work.others):,} to run")
    if made.missing_base:
        lines.append(
            f"blocked: {number_of(len(made.missing_base), 'fine-tune')}:"
            f" {made.finetunes[next(iter(made.missing_base))].reason}"
        )
    lines += reasons(made)
    lines += [notice] if (notice := code_notice(made)) else []
    if verbose:
        goes_on = dict.fromkeys(made.begun, ", going on from its checkpoint")
        lines += [
            f"would train {job.id}{goes_on.get(job.id, '')}" + _with(work, job)
            for job in work.bases
        ]
        lines += [f"would run {job.id}{goes_on.get(job.id, '')}" for job in work.others]
        verdicts = made.bases | made.finetunes
        lines += [f"is there: {job}" for job, v in verdicts.items() if v.state is State.DONE]
    return lines


def _with(work: Work, job: Job) -> str:
    siblings = work.siblings.get(job.id, ())
    return (
        f" (published for {len(siblings)} more hashes:"
        f" {', '.join(sibling.id for sibling in siblings)})"
        if siblings
        else ""
    )


# -- running


def only_orchestrator(paths: Paths) -> AbstractContextManager[None]:
    """One orchestrator a project folder. Raises Conflict naming the first."""
    return artifacts.lock(
        paths.orchestrator_lock,
        wait=False,
        owner=f"process {os.getpid()} on {platform.node()}",
        refusal=lambda holder: (
            f"another orchestrator runs in this project folder ({holder}): wait for it, or stop it;"
            " --status shows what it does"
        ),
    )


@contextlib.contextmanager
def lock_data(request: Request) -> Iterator[None]:
    """Keep data from being prepared again while the request runs. Raises Conflict while they are
    being prepared.
    """
    owner = f"run {request.run_id} (process {os.getpid()} on {platform.node()})"
    folders = {file[0] for file in all_data_files((*request.bases, *request.others))}
    with contextlib.ExitStack() as held:
        for folder in folders:
            refusal = partial("{}: is being prepared by {}: wait for it to end".format, folder)
            lock = request.paths.data_lock(folder)
            held.enter_context(
                artifacts.lock(lock, wait=False, owner=owner, shared=True, refusal=refusal)
            )
        yield


def make_room(request: Request, prepared: Prepared) -> Results:
    """Move what is stale or damaged aside, clear away what a killed head was writing, and publish
    what is only a copy. Returns the head's side of publishing the rest.
    """
    made, paths = prepared.made, request.paths
    results = Results(paths, prepared.sha256, prepared.work.siblings)
    half_written = " ".join(path.name for path in artifacts.leftovers(paths.base_models))
    for base_hash, key in made.keys.items():
        if base_hash in half_written:
            _clear(paths, str(key), paths.base_models, base_hash)
    for job in made.finetunes:
        prefix, _, name = job.partition("/")
        _clear(paths, identity.experiment_lock(prefix, name), paths.experiments / job)
    jobs = {job.id: job for job in (*request.bases, *request.others)}
    _make_room_for_bases(paths, made, results, jobs)
    for job, verdict in made.finetunes.items():
        if verdict.state in (State.STALE, State.DAMAGED, State.CONFLICT):
            make_way(
                paths, paths.experiments / job, verdict, overwrite=jobs[job].finetune.overwrite
            )
    return results


def _make_room_for_bases(
    paths: Paths, made: Plan, results: Results, jobs: Mapping[str, Job]
) -> None:
    """Copies first: a data folder that was renamed leaves their sources stale under their own
    hashes. Of two folders that changed names each source is in the place of a copy, and is opened
    before any is replaced.
    """
    stale = {
        base_hash
        for base_hash, verdict in made.bases.items()
        if verdict.state in (State.STALE, State.DAMAGED)
    }
    in_the_way = made.copies.keys() & set(made.copies.values())
    opened = {source: artifacts.open_base_model(paths, source) for source in in_the_way}
    for base_hash, source in made.copies.items():
        model = opened.get(source) or artifacts.open_base_model(paths, source)
        if base_hash in stale:
            artifacts.supersede_base_model(paths, base_hash)
        results.copy(model, jobs[base_hash])
    for base_hash in stale - made.copies.keys():
        artifacts.supersede_base_model(paths, base_hash)


def _clear(paths: Paths, lock: str, folder: Path, name: str = "") -> None:
    """Half-written files, unless a training by hand is writing them."""
    if artifacts.leftovers(folder, name):
        with contextlib.suppress(Conflict), artifacts.training_lock(paths, lock, wait=False):
            artifacts.remove_temporaries(folder, name)


@contextlib.contextmanager
def signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP (unless ignored, as under nohup) go to `handler` for the length of
    the block.
    """
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
    ]
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, earlier in zip(numbers, before, strict=True):
            signal.signal(number, earlier)


def _failures(outcome: Outcome) -> list[str]:
    """A line for each cause, whichever base model it names. Each failure was said when it happened,
    so that of many one is named here.
    """
    causes: dict[str, list[str]] = {}
    for job, (cause, _) in outcome.failed.items():
        causes.setdefault(re.sub(r"\b[0-9a-f]{16}\b", "", cause), []).append(job)
    lines = []
    for job, *others in causes.values():
        cause, log = outcome.failed[job]
        who = f"{job} and {len(others):,} more" if others else job
        lines.append(f"{who}: {cause}" + (f" (log: {log})" if log else ""))
    return lines


def conclude(outcome: Outcome, made: Plan, only: str | None = None) -> list[str]:
    """How it ended, for a person. `only`: as in the request."""
    lines = _failures(outcome)
    if outcome.blocked:
        blocked = number_are(len(outcome.blocked), "job")
        lines.append(f"{blocked} blocked: the base model failed or is missing")
    if outcome.left:
        left = number_are(len(outcome.left), "job")
        lines.append(f"{left} left: run the same command again")
    verdicts = (made.bases | made.finetunes).values()
    reused = sum(verdict.state is State.DONE for verdict in verdicts) + len(made.copies)
    if outcome.done or outcome.failed or outcome.blocked or outcome.left:
        lines.append(
            f"{outcome.done:,} done, {len(outcome.failed):,} failed, {len(outcome.blocked):,}"
            f" blocked, {len(outcome.left):,} left, {reused:,} reused"
        )
    elif only == "failed" and not reused:
        lines.append("nothing to do: none of these jobs failed when it ran last")
    else:
        lines.append(f"nothing to do: all {reused:,} results are there")
    return [*lines, outcome.why] if outcome.why else lines
