"""Results come home: verified against what the head expects, then published. The only place where a
job becomes done. No torch, no threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common import artifacts
from common.cli import one_line
from common.cluster import protocol
from common.data.data_sets import DataSha256
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
    judge_experiment,
    make_way,
)
from common.paths import Paths


class Home:
    """The head's side of publishing. `siblings`: by base hash, the jobs with the same training key,
    which are published with it.
    """

    def __init__(
        self, paths: Paths, sha256: DataSha256, siblings: Mapping[str, Sequence[Job]]
    ) -> None:
        self._paths, self._sha256, self._siblings = paths, sha256, siblings

    def accept(self, job: Job, root: Paths) -> str:
        """Take the result of `job` that lies in `root`, a project folder of a node's or the head's
        own. Returns '' or why it is not accepted.

        Raises:
            OSError: the head's disk.
        """
        try:
            verdict = self._judge(job, root)
            if verdict.state is not State.DONE:
                return one_line(verdict.reason) or f"{job.id}: nothing is published"
            self._check_record(job, root)
            if root.root != self._paths.root:
                self._adopt(job, root)
            for sibling in self._siblings.get(job.id, ()):
                self.copy(job.id, sibling)
        # also what stands in its way here: another configuration's results
        except (CorruptArtifact, InputError) as error:
            return one_line(error)
        return ""

    def judge(self, job: Job, root: Paths) -> Verdict:
        """How a result in `root` stands to what is expected; stale, and why, where that cannot be
        said: its data or its base model changed meanwhile.
        """
        try:
            return self._judge(job, root)
        except (CorruptArtifact, InputError) as error:
            return Verdict(State.STALE, str(error))

    def _judge(self, job: Job, root: Paths) -> Verdict:
        """Raises BaseModelNotFound, CorruptArtifact or InputError."""
        if job.kind == "base":
            data = base_fingerprints(job.base, self._sha256)
            return judge_base(root, job.id, identity.training_key(job.base, data), data)
        base = self._base_of(job)
        people, weights = (
            (base["base_participants"], base["weights_sha256"]) if base else ([], None)
        )
        return judge_experiment(
            root.experiments / job.id,
            job.finetune,
            weights,
            finetune_fingerprints(job.finetune, people, self._sha256),
        )

    def _check_record(self, job: Job, root: Paths) -> None:
        """What the head will read of it later is what the head knows, in the right form. Raises
        CorruptArtifact.
        """
        if job.kind == "base":
            protocol.base_record(
                job,
                artifacts.read_base_metadata(root, job.id),
                base_fingerprints(job.base, self._sha256),
            )
            return
        base = self._base_of(job)
        people, weights = (
            (base["base_participants"], base["weights_sha256"]) if base else ([], None)
        )
        there = artifacts.open_experiment(root.experiments / job.id)
        protocol.experiment_record(
            job,
            there.config,
            there.metrics,
            base,
            finetune_fingerprints(job.finetune, people, self._sha256),
        )
        named = there.config["base_model_hash"]
        if (
            root.root != self._paths.root
            and named != job.needs
            and self._weights_of(named) != weights
        ):
            raise CorruptArtifact(
                f"{job.id}: names base model {named}, which has not the weights that it started"
                " from: it is not used"
            )

    def _weights_of(self, base_hash: str) -> str | None:
        """SHA-256 of a base model's weights, None where it is not published here."""
        try:
            return str(artifacts.read_base_metadata(self._paths, base_hash)["weights_sha256"])
        except (BaseModelNotFound, CorruptArtifact):
            return None

    def _base_of(self, job: Job) -> artifacts.Json | None:
        """Metadata of the base model that a fine-tune starts from, as published here; None where it
        starts from none.
        """
        return artifacts.read_base_metadata(self._paths, job.needs) if job.needs else None

    def copy(self, source_hash: str, sibling: Job) -> None:
        """Publish a sibling of a base model that is published here."""
        data = base_fingerprints(sibling.base, self._sha256)
        if (
            judge_base(
                self._paths, sibling.id, identity.training_key(sibling.base, data), data
            ).state
            is not State.DONE
        ):
            artifacts.supersede_base_model(self._paths, sibling.id)
            copy_base_model(self._paths, source_hash, sibling.base)

    def _adopt(self, job: Job, root: Paths) -> None:
        if job.kind == "base":
            if (
                self._paths.base_metadata(job.id).exists()
                and self._judge(job, self._paths).state is not State.DONE
            ):
                artifacts.supersede_base_model(self._paths, job.id)
            artifacts.adopt_base_model(self._paths, root, job.id)
            return
        folder = self._paths.experiments / job.id
        here = self._judge(job, self._paths)
        if here.state is not State.DONE:
            make_way(self._paths, folder, here, overwrite=job.finetune.overwrite)
            prefix, _, name = job.id.partition("/")
            artifacts.adopt_experiment(self._paths, root, prefix, name)
