"""Verify results against what the head expects, then publish them. The only place where a job
becomes done. No torch, no threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

from common import artifacts
from common.cli import one_line
from common.cluster import protocol
from common.data.data_sets import DataSha256
from common.data.manifest import file_identity, is_settled
from common.errors import BaseModelNotFound, CorruptArtifact, InputError
from common.jobs import identity
from common.jobs.job_files import Job
from common.jobs.verdicts import (
    State,
    Verdict,
    base_fingerprints,
    copy_base_model,
    finetune_fingerprints,
    judge_base,
    judge_base_model,
    judge_experiment,
    judge_opened,
    make_way,
)
from common.paths import Paths


class Results:
    """The head's side of publishing. `siblings`: by base hash, the jobs with the same training key,
    which are published with it.
    """

    def __init__(
        self, paths: Paths, sha256: DataSha256, siblings: Mapping[str, Sequence[Job]]
    ) -> None:
        self._paths, self._sha256, self._siblings = paths, sha256, siblings

    def accept(self, job: Job, root: Paths) -> str:
        """Take the result of `job` that lies in `root`, a project folder of a node's or the head's
        own. It is opened and verified once. Returns '' or why it is not accepted.

        Raises:
            OSError: the head's disk.
        """
        try:
            if job.kind == "base":
                self._accept_base(job, root)
            else:
                self._accept_experiment(job, root)
            for sibling in self._siblings.get(job.id, ()):
                self.copy(artifacts.open_base_model(self._paths, job.id), sibling)
        # InputError: results of another configuration are published here under its name
        except (CorruptArtifact, InputError) as error:
            return one_line(error)
        return ""

    def judge(self, job: Job, root: Paths) -> Verdict:
        """The verdict on a result in `root`; STALE where its data or its base model changed so that
        it cannot be judged.
        """
        try:
            if job.kind == "base":
                return judge_base(root, job.id, *self._base_key(job))
            weights, data = self._expected(job, self._base_of(job))
            return judge_experiment(root.experiments / job.id, job.finetune, weights, data)
        except (CorruptArtifact, InputError) as error:
            return Verdict(State.STALE, str(error))

    def copy(self, source: artifacts.BaseModel, sibling: Job) -> None:
        """Publish a sibling of a base model that is or was published here."""
        verdict = judge_base(self._paths, sibling.id, *self._base_key(sibling))
        if verdict.state is not State.DONE:
            artifacts.supersede_base_model(self._paths, sibling.id)
            copy_base_model(self._paths, source, sibling.base)

    # -- base models

    def _accept_base(self, job: Job, root: Paths) -> None:
        key, data = self._base_key(job)
        try:
            model = artifacts.open_base_model(root, job.id)
        except BaseModelNotFound:
            raise CorruptArtifact(f"{job.id}: nothing is published", job=job.id) from None
        _refuse(job, judge_base_model(model, key, data))
        protocol.base_record(job, model.metadata, data)
        if root.root == self._paths.root:
            return
        # the first result is kept: experiments here may have started from its weights
        if judge_base(self._paths, job.id, key, data).state is not State.DONE:
            if self._paths.base_metadata(job.id).exists():
                artifacts.supersede_base_model(self._paths, job.id)
            artifacts.adopt_base_model(self._paths, model)

    def _base_key(self, job: Job) -> tuple[str, dict[str, str]]:
        """Training key and data fingerprints by today's data."""
        data = base_fingerprints(job.base, self._sha256)
        return identity.training_key(job.base, data), data

    # -- experiments

    def _accept_experiment(self, job: Job, root: Paths) -> None:
        base = self._base_of(job)
        weights, data = self._expected(job, base)
        try:
            experiment = artifacts.open_experiment(root.experiments / job.id)
        except FileNotFoundError:
            raise CorruptArtifact(f"{job.id}: nothing is published", job=job.id) from None
        _refuse(job, judge_opened(experiment, job.finetune, weights, data))
        protocol.experiment_record(job, experiment.config, experiment.metrics, base, data)
        if root.root == self._paths.root:
            return
        named = experiment.config["base_model_hash"]
        if named != job.needs and self._weights_of(named) != weights:
            raise CorruptArtifact(
                f"{job.id}: names base model {named}, which has not the weights that it started"
                " from: it is not used",
                job=job.id,
            )
        here = self.judge(job, self._paths)
        if here.state is not State.DONE:
            folder = self._paths.experiments / job.id
            make_way(self._paths, folder, here, overwrite=job.finetune.overwrite)
            artifacts.adopt_experiment(self._paths, experiment)

    def _expected(self, job: Job, base: artifacts.Json | None) -> tuple[str | None, dict[str, str]]:
        """SHA-256 of the base weights that a fine-tune starts from, and its data fingerprints."""
        people = base["base_participants"] if base else []
        data = finetune_fingerprints(job.finetune, people, self._sha256)
        return base["weights_sha256"] if base else None, data

    def _weights_of(self, base_hash: str) -> str | None:
        """SHA-256 of a base model's weights, None where it is not published here."""
        try:
            return str(self._metadata(base_hash)["weights_sha256"])
        except (BaseModelNotFound, CorruptArtifact):
            return None

    def _base_of(self, job: Job) -> artifacts.Json | None:
        """Metadata of the base model that a fine-tune starts from, as published here; None where it
        starts from none.
        """
        return self._metadata(job.needs) if job.needs else None

    def _metadata(self, base_hash: str) -> artifacts.Json:
        """Metadata of a base model published here; those of a file that has not changed since are
        not read again. Raises as `read_base_metadata`.
        """
        with contextlib.suppress(OSError):
            identity = file_identity(self._paths.base_metadata(base_hash))
            if is_settled(*identity[2:]):
                return _read_once(self._paths, base_hash, *identity)
        return artifacts.read_base_metadata(self._paths, base_hash)


@lru_cache(maxsize=64)
def _read_once(paths: Paths, base_hash: str, *_identity: int) -> artifacts.Json:
    """Fine-tunes of one base model come in a row."""
    return artifacts.read_base_metadata(paths, base_hash)


def _refuse(job: Job, verdict: Verdict) -> None:
    """Raises CorruptArtifact for a result that is not what the job is to give."""
    if verdict.state is not State.DONE:
        raise CorruptArtifact(verdict.reason, job=job.id)
