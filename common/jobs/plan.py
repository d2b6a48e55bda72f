"""Which of a list of jobs are done, which are stale and which have to run, decided before anything
starts. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.artifacts import read_base_metadata
from common.cli import few, number_of
from common.data.data_sets import DataSha256
from common.errors import BaseModelNotFound, CorruptArtifact, InputError
from common.jobs import identity
from common.jobs.job_files import Job
from common.jobs.verdicts import (
    State,
    Verdict,
    base_fingerprints,
    finetune_fingerprints,
    judge_base,
    judge_experiment,
    judge_waiting,
    published_trainings,
    stale_base,
    stale_verdict,
)
from common.paths import Paths


@dataclass
class Plan:
    """Verdicts by job id; `keys` are the training keys of base jobs (None: the data were not
    read).
    """

    keys: dict[str, str | None] = field(default_factory=dict)
    bases: dict[str, Verdict] = field(default_factory=dict)
    finetunes: dict[str, Verdict] = field(default_factory=dict)
    # base hash -> published hash with the same training key
    copies: dict[str, str] = field(default_factory=dict)
    # fine-tunes whose verdict is known only once their base model is published
    waiting: set[str] = field(default_factory=set)
    # fine-tune -> hash of its base model, which is missing or stale and not among the base jobs
    missing_base: dict[str, str] = field(default_factory=dict)
    unseen: str | None = None  # why the data could not be read
    # jobs of which a training that was cut short left a checkpoint here
    begun: set[str] = field(default_factory=set)

    def trainings(self) -> int:
        """Distinct trainings among the base jobs."""
        return len(set(self.keys.values()))


def plan(
    paths: Paths,
    bases: Sequence[Job],
    finetunes: Sequence[Job],
    sha256: DataSha256,
    *,
    retrain: bool = False,
) -> Plan:
    """Judge every job against what is published in `paths`. Reads; changes nothing."""
    made = Plan()
    trainings = published_trainings(paths, todays_code=retrain)
    for job in bases:
        _judge_base_job(made, paths, job, sha256, trainings, retrain)
    for job in finetunes:
        _judge_finetune_job(made, paths, job, sha256, retrain)
    return made


def _judge_base_job(
    made: Plan, paths: Paths, job: Job, sha256: DataSha256, trainings: dict[str, str], retrain: bool
) -> None:
    try:
        data = base_fingerprints(job.base, sha256)
    except InputError as error:
        made.unseen = str(error)
        made.keys[job.id] = identity.training_key(job.base, None)
        made.bases[job.id] = Verdict(State.UNSEEN)
        return
    key = identity.training_key(job.base, data)
    made.keys[job.id] = key
    verdict = judge_base(paths, job.id, key, data)
    if retrain and verdict.other_code:
        verdict = stale_verdict(f"base model {job.id}", _other_code(verdict))
    made.bases[job.id] = verdict
    _note_begun(made, paths, job, verdict, key)
    if verdict.state is not State.DONE and key in trainings:
        made.copies[job.id] = trainings[key]


def _judge_finetune_job(
    made: Plan, paths: Paths, job: Job, sha256: DataSha256, retrain: bool
) -> None:
    weights, base = None, [""]
    if job.needs:
        # A base that is only copied has the weights of its source: whether the fine-tune is done is
        # known before the copy is made.
        published = made.copies.get(job.needs, job.needs)
        planned = made.bases.get(job.needs)
        if planned and planned.state is not State.DONE and job.needs not in made.copies:
            made.waiting.add(job.id)
            verdict = judge_waiting(paths.experiments / job.id, job.finetune, planned)
            if verdict.state is State.NEW and planned.state is State.UNSEEN:
                verdict = planned
            made.finetunes[job.id] = verdict
            return
        try:
            metadata = read_base_metadata(paths, published)
            weights, base = metadata["weights_sha256"], metadata["base_participants"]
            missing = (
                None if planned else stale_base(paths, metadata, job.finetune.data_path, sha256)
            )
        except (BaseModelNotFound, CorruptArtifact) as error:
            missing = str(error)
        if missing:
            made.missing_base[job.id] = job.needs
            made.finetunes[job.id] = Verdict(State.NEW, missing)
            return
    try:
        data = finetune_fingerprints(job.finetune, base, sha256)
    except InputError as error:
        made.unseen = str(error)
        made.finetunes[job.id] = Verdict(State.UNSEEN)
        return
    verdict = judge_experiment(paths.experiments / job.id, job.finetune, weights, data)
    if retrain and verdict.other_code:
        verdict = stale_verdict(job.id, _other_code(verdict))
    made.finetunes[job.id] = verdict
    key = identity.experiment_key(job.finetune, weights, data)
    _note_begun(made, paths, job, verdict, key)


def _other_code(verdict: Verdict) -> str:
    return f"trained by other code ({', '.join(verdict.other_code)})"


def _note_begun(made: Plan, paths: Paths, job: Job, verdict: Verdict, key: str) -> None:
    if verdict.state is not State.DONE and paths.checkpoint(identity.checkpoint_name(key)).exists():
        made.begun.add(job.id)


def reasons(made: Plan) -> list[str]:
    """Why results have to be made anew: a line for each cause, with a few of those that have it."""
    alike: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for kind, verdicts in (("base model", made.bases), ("experiment", made.finetunes)):
        for job, verdict in verdicts.items():
            if verdict.state in (State.STALE, State.DAMAGED, State.CONFLICT):
                cause = verdict.cause or verdict.reason
                alike.setdefault((kind, cause), []).append((job, verdict.reason))
    return [
        found[0][1]
        if len(found) == 1
        else f"{number_of(len(found), kind)} are stale: {cause}: {few(job for job, _ in found)}"
        for (kind, cause), found in alike.items()
    ]


def counted(verdicts: dict[str, Verdict]) -> str:
    """'3 done, 1 stale, 80 new'."""
    counts = Counter(verdict.state.value for verdict in verdicts.values())
    return (
        ", ".join(
            f"{counts[state.value]:,} {state.value}" for state in State if counts[state.value]
        )
        or "none"
    )


def code_notice(made: Plan) -> str | None:
    """One line when results of other code versions are reused, or None."""
    verdicts = [
        verdict
        for verdict in (*made.bases.values(), *made.finetunes.values())
        if verdict.state is State.DONE and verdict.other_code
    ]
    if not verdicts:
        return None
    files = sorted({name for verdict in verdicts for name in verdict.other_code})
    return (
        f"{len(verdicts):,} results made by other versions of {', '.join(files)} are reused;"
        " --retrain makes them again"
    )
