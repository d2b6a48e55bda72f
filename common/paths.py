"""Every file name that the project reads or writes, on the head and on a node. Nobody else joins
these names.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

CODE_ROOT = Path(__file__).resolve().parent.parent

BASE_JOBS = "base_training_jobs.json"
FINETUNE_JOBS = "finetune_jobs.json"
CLUSTER_CONFIG = "cluster_config.json"

BASE_MODELS = "base_models"
EXPERIMENTS = "experiments"
SUPERSEDED = "superseded"
RUNS = "runs"
MAX_LOCK_NAME = 200  # file systems take 255 bytes, and a letter of another script is quoted as 6
SPLITS = ("train", "val", "test")

# The files of an experiment that are byte-identical between two runs of it; metrics.json, apart
# from its provenance, is as well.
EXPERIMENT_FILES = ("best_model.pt", "losses.json", "config.json", "predictions.csv")
# The user's own code that an experiment was made with, where there is any, by option: a readable
# copy of what config.json holds.
EXPERIMENT_CODE = {"model": "model.py", "augmentation": "augmentation.py"}
EXPERIMENT_METRICS = "metrics.json"
EXPERIMENT_LOG = "train.log"


def split_file(participant: str, split: str) -> str:
    """File name of one participant's split in a prepared data set."""
    return f"{participant}_{split}.pt"


def windows_file(participant: str, split: str) -> str:
    """File name of the session and start second of each window."""
    return f"{participant}_{split}_windows.csv"


def bouts_file(participant: str) -> str:
    """File name of one participant's annotations, with the split that each lies in."""
    return f"{participant}_bouts.csv"


def experiment_name(fold: int, target: str) -> str:
    """Folder name of one experiment below its prefix."""
    return f"fold{fold}_{target}"


def result_files(job: str) -> list[str]:
    """Where a job's results lie below a project folder: `job` is a base model hash or an
    experiment's folder below experiments/.
    """
    if "/" not in job:
        return [f"{BASE_MODELS}/{job}.pt", f"{BASE_MODELS}/{job}_metadata.json"]
    return [
        f"{EXPERIMENTS}/{job}/{name}"
        for name in (*EXPERIMENT_FILES, EXPERIMENT_LOG, EXPERIMENT_METRICS)
    ]


def published_file(job: str) -> str:
    """The one of a job's result files whose presence makes it published."""
    return result_files(job)[-1]


@dataclass(frozen=True)
class Paths:
    """The names inside one project folder."""

    root: Path

    @classmethod
    def here(cls) -> Paths:
        """The project folder is the current working directory."""
        return cls(Path.cwd())

    @property
    def base_models(self) -> Path:
        return self.root / BASE_MODELS

    @property
    def experiments(self) -> Path:
        return self.root / EXPERIMENTS

    @property
    def superseded(self) -> Path:
        """Results that were published and are no longer current."""
        return self.root / SUPERSEDED

    @property
    def runs(self) -> Path:
        """Event logs and job logs, one folder a run."""
        return self.root / RUNS

    @property
    def incoming(self) -> Path:
        """Where copies from nodes land before they are verified."""
        return self.root / "incoming"

    @property
    def orchestrator_lock(self) -> Path:
        """Held by the one orchestrator of this project folder."""
        return self.root / "locks" / "orchestrator.lock"

    @property
    def sha256_cache(self) -> Path:
        """SHA-256 of data files by identity, so that unchanged files are read once."""
        return self.root / "cache" / "sha256.json"

    def base_weights(self, base_hash: str) -> Path:
        """State dict of a base model."""
        return self.base_models / f"{base_hash}.pt"

    def base_metadata(self, base_hash: str) -> Path:
        """Metadata of a base model; the file makes the model published."""
        return self.base_models / f"{base_hash}_metadata.json"

    def experiment(self, prefix: str, name: str) -> Path:
        return self.experiments / prefix / name

    def training_lock(self, key: str) -> Path:
        """Lock of one training, by training key or experiment key, or of one experiment's
        folder.
        """
        return self.root / "locks" / f"{key}.lock"

    def data_lock(self, data_path: str) -> Path:
        """Held shared by runs that read a data folder, alone by what replaces it."""
        name = quote(data_path, safe="")
        if len(name) > MAX_LOCK_NAME:
            name = hashlib.sha256(os.fsencode(data_path)).hexdigest()
        return self.root / "locks" / f"data.{name}.lock"

    def checkpoint(self, key: str) -> Path:
        """Checkpoint of one training that was cut short."""
        return self.root / "checkpoints" / f"{key}.ckpt"

    @property
    def code_copies(self) -> Path:
        """Copies of users' own Python files."""
        return self.root / "cache" / "code"

    def own_code(self, sha256: str, file_name: str) -> Path:
        """Copy of a user's own Python file, by content; it is never edited."""
        return self.code_copies / sha256[:16] / file_name

    def run(self, run_id: str) -> Path:
        """Folder of one orchestrator run."""
        return self.runs / run_id

    def slurm(self, run_id: str) -> Path:
        """What a run's Slurm tasks keep: what to call, their logs, their progress."""
        return self.runs / run_id / "slurm"

    def slurm_record(self, run_id: str) -> Path:
        """Which task of which array runs which jobs."""
        return self.slurm(run_id) / "arrays.json"

    def data(self, data_path: str) -> Path:
        """A prepared data set."""
        return self.root / data_path
