"""Hand-made project folders: published by the project's own functions, so that formats never drift,
with scores that a test chooses.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from common.artifacts import publish_base_model, publish_experiment, sha256, to_json
from common.data.data_sets import Data
from common.data.manifest import Manifest
from common.jobs import identity
from common.jobs.job_files import base_entries, base_job, finetune_job, write_jobs
from common.options import BaseOptions, FinetuneOptions
from common.paths import Paths, experiment_name

PEOPLE = ["anna", "ben", "carla", "dora", "emil", "finn", "gita"]
METRICS = (
    "loss",
    "macro_f1",
    "f1",
    "precision",
    "recall",
    "balanced_accuracy",
    "specificity",
    "mcc",
    "pr_auc",
    "roc_auc",
    "brier",
    "ece",
)
LOW_IS_GOOD = ("loss", "brier", "ece")
TUNED = ("macro_f1", "f1", "precision", "recall", "specificity", "balanced_accuracy", "mcc")
VERSIONS = {"torch": "2.13.0", "python": "3.11"}


@contextmanager
def quick() -> Iterator[None]:
    """Thousands of made files need not survive a power cut."""
    with mock.patch.object(os, "fsync"):
        yield


def config_of(
    options: FinetuneOptions,
    target: str,
    model: Mapping[str, Any] | None,
    data: Mapping[str, str],
    code: Mapping[str, str],
) -> dict[str, Any]:
    """config.json of an experiment; `model`: its base's metadata. data, code: fingerprints that
    differ from those of the others.
    """
    people = [] if model is None else model["base_participants"]
    files = identity.finetune_data_files(options, people)
    known = model or dict.fromkeys(("base_model_hash", "weights_sha256", "training_key"))
    fingerprints = {name: sha256(name.encode()) for name in files} | dict(data)
    weights = known["weights_sha256"]
    return {
        "options": options.model_dump(),
        "experiment_fields": identity.experiment_fields(options),
        "fold": options.fold,
        "target_participant": target,
        "base_participants": people,
        "base_model_hash": known["base_model_hash"],
        "base_weights_sha256": weights,
        "training_key": known["training_key"],
        "data_fingerprints": fingerprints,
        "code_fingerprints": {"models.py": "c" * 64, "training.py": "d" * 64} | dict(code),
        "experiment_key": identity.experiment_key(options, weights, fingerprints),
    }


@dataclass
class Made:
    """A project folder in the making."""

    root: Path
    people: list[str] = field(default_factory=lambda: list(PEOPLE))
    data_path: str = "data/made"
    jobs: list[dict[str, Any]] = field(default_factory=list)
    bases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.root / "experiments").mkdir(parents=True, exist_ok=True)
        (self.root / "base_models").mkdir(exist_ok=True)

    @property
    def paths(self) -> Paths:
        """Names inside it."""
        return Paths(self.root)

    def options(self, target: str, **given: Any) -> FinetuneOptions:
        """Resolved options of one fine-tune."""
        values = {
            "participants": self.people,
            "data_path": self.data_path,
            "window_size": 100,
            "fold": self.people.index(target),
        } | given
        return FinetuneOptions.parse(values, "made").resolved(None)

    def plan(self, target: str, **given: Any) -> FinetuneOptions:
        """A planned experiment that has not run."""
        options = self.options(target, **given)
        # where no dataset.json says otherwise
        job = finetune_job(
            options.model_dump(exclude_unset=True), "made", Data(Paths(self.root / "elsewhere"))
        )
        self.jobs.append(job.values)
        return job.finetune

    def base(
        self,
        options: FinetuneOptions,
        *,
        stopped_by: str = "patience",
        seconds: float = 1800.0,
        weights: bytes | None = None,
        data: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Publish the base model of a fine-tune, once."""
        name = identity.base_hash(options)
        if name not in self.bases:
            metadata = {
                "training_key": identity.training_key(options, None),
                "config": options.model_dump(),
                "base_participants": identity.base_participants(options),
                "target_participant": identity.target(options),
                "stopped_by": stopped_by,
                "data_fingerprints": dict(data or {}),
                "provenance": provenance(seconds) | {"trained_as": name},
            }
            self.bases[name] = publish_base_model(
                self.paths, name, weights or name.encode(), metadata
            )
        return self.bases[name]

    def run(
        self,
        target: str,
        *,
        base: float | None = 0.8,
        fine: float | None = 0.9,
        val: float | None = None,
        base_val: float | None = None,
        metrics: Mapping[str, Any] | None = None,
        predictions: bytes | None = None,
        losses: dict[str, Any] | None = None,
        windows: int = 31,
        base_stopped_by: str = "patience",
        code: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        base_data: Mapping[str, str] | None = None,
        versions: Mapping[str, str] | None = None,
        **given: Any,
    ) -> Path:
        """Publish one experiment whose test macro F1 is `fine`, that of its untouched base
        `base`.
        """
        options = self.plan(target, **given)
        scratch = options.mode == "target_only"
        model = None if scratch else self.base(options, stopped_by=base_stopped_by, data=base_data)
        config = config_of(options, target, model, data or {}, code or {})
        scores = score_fields(
            fine,
            base,
            fine if val is None else val,
            base if base_val is None else base_val,
            scratch,
        )
        names = ("mode", "target_data_pct", "fold")
        copied = ("target_participant", "base_model_hash", "base_weights_sha256")
        record = {
            **scores,
            **{name: getattr(options, name) for name in names},
            **{name: config[name] for name in copied},
            "best_epoch": 3,
            "epochs": 6,
            "updates": 60,
            "stopped_by": "patience",
            "counts": counts(windows, options.mode),
            "undefined": {},
            "provenance": provenance(60.0) | {"versions": dict(versions or VERSIONS)},
        }
        files = {
            "best_model.pt": f"{options.prefix}/{target}".encode(),
            "losses.json": to_json(
                losses or {name: values[int(scratch) :] for name, values in LOSSES.items()}
            ),
            "config.json": to_json(config),
            "predictions.csv": plain_predictions(scratch) if predictions is None else predictions,
        }
        name = experiment_name(options.fold, target)
        return publish_experiment(
            self.paths, str(options.prefix), name, files, record | dict(metrics or {}), log="made\n"
        )

    def annotate(self, predictions: Mapping[str, bytes]) -> None:
        """Write dataset.json and, of each participant, the annotations from which the labels of
        the given predictions could come: windows of 2 s.
        """
        folder = self.root / self.data_path
        folder.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(
            sampling_rate_hz=50,
            channels=["x"],
            units=["g"],
            window_seconds=2,
            stride_seconds=1,
            window_size=100,
            labelling={},
            split={},
            source={},
            participants={person: {} for person in self.people},
            files={},
        )
        (folder / "dataset.json").write_text(manifest.model_dump_json())
        for person, text in predictions.items():
            lines = ["session,start_s,end_s,split"]
            lines += [",".join(map(str, bout)) for bout in labelled_bouts(text)]
            (folder / f"{person}_bouts.csv").write_text("\n".join(lines) + "\n")

    def write_jobs(self) -> None:
        """The two job files of all that was planned."""
        data = Data(self.paths)
        finetunes = [finetune_job(dict(values), "made", data) for values in self.jobs]
        needed = {job.needs: job for job in finetunes if job.needs}
        names = set(BaseOptions.model_fields) - {"prefix"}
        bases = [
            base_job({key: job.values[key] for key in names}, "made", data)
            for job in needed.values()
        ]
        write_jobs(self.root / "finetune_jobs.json", [job.values for job in finetunes])
        write_jobs(self.root / "base_training_jobs.json", base_entries(bases, finetunes, {}))

    def log(self, *events: Mapping[str, Any], run: str = "run1", tail: str = "") -> None:
        """The event log of one run."""
        folder = self.root / "runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events.jsonl").write_text(
            "".join(json.dumps(dict(event)) + "\n" for event in events) + tail
        )


LOSSES = {
    "train": [None, 0.6, 0.5, 0.4, 0.35, 0.3, 0.28],
    "val": [0.7, 0.6, 0.5, 0.45, 0.46, 0.47, 0.48],
    "val_macro_f1": [0.7, 0.75, 0.8, 0.86, 0.85, 0.86, 0.85],
}


def provenance(seconds: float) -> dict[str, Any]:
    """Where, when and for how long."""
    return {
        "versions": dict(VERSIONS),
        "device": "cuda:0 (NVIDIA H100)",
        "host": "gpu1.lab",
        "git_commit": "0123abc",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:34:05+00:00",
        "train_seconds": seconds,
        "threads": 1,
        "compile": "off",
    }


def counts(windows: int, mode: str) -> dict[str, Any]:
    """Labelled windows of 2 s."""
    parts = {"train": windows, "selection": 40, "test": 50} | (
        {"base_train": 900} if mode == "full_fine_tuning" else {}
    )
    return {
        part: {"windows": number, "positives": number // 3, "hours": number * 2 / 3600}
        for part, number in parts.items()
    }


def score_fields(
    fine: float | None, base: float | None, val: float | None, base_val: float | None, scratch: bool
) -> dict[str, Any]:
    """All scores of metrics.json; the tuned ones are .01 higher."""
    fields: dict[str, Any] = {"threshold_tuned": 0.4} | (
        {} if scratch else {"base_threshold_tuned": 0.6}
    )
    sides = {"test": fine, "val": val} | (
        {} if scratch else {"base_test": base, "base_val": base_val}
    )
    for side, value in sides.items():
        for metric in METRICS:
            fields[f"{side}_{metric}"] = (
                None
                if value is None
                else 1 - value
                if metric in ("loss", "brier", "ece")
                else value
            )
        for metric in TUNED:
            fields[f"{side}_{metric}_tuned"] = None if value is None else min(1.0, value + 0.01)
    return fields


def plain_predictions(scratch: bool) -> bytes:
    """Without times, as from a data set that was not prepared here."""
    lines = ["split,index,session,start_s,label,p_base,p_finetuned"]
    for split in ("val", "test"):
        lines += [
            f"{split},{i},,,{i % 2},{'' if scratch else 0.3 + 0.2 * (i % 3)},{0.2 + 0.6 * (i % 2)}"
            for i in range(12)
        ]
    return ("\n".join(lines) + "\n").encode()


def timed_predictions(
    skill: float, base_skill: float | None, seed: int, length: int = 160, sessions: int = 2
) -> bytes:
    """Windows of 2 s every second with a few bouts; a higher skill separates the classes better."""
    random = np.random.default_rng(seed)
    text = io.StringIO()
    text.write("split,index,session,start_s,label,p_base,p_finetuned\n")
    for split in ("val", "test"):
        number = 0
        for session in range(sessions):
            label = np.zeros(length, dtype=int)
            for start in random.choice(length - 20, size=3, replace=False):
                label[start : start + int(random.integers(8, 20))] = 1
            smooth = np.convolve(random.normal(size=length + 4), np.ones(5) / 5, mode="valid")
            other = np.convolve(random.normal(size=length + 4), np.ones(5) / 5, mode="valid")
            fine = 1 / (1 + np.exp(-(skill * (2 * label - 1) + 2 * smooth)))
            base = (
                None
                if base_skill is None
                else 1 / (1 + np.exp(-(base_skill * (2 * label - 1) + 2 * other)))
            )
            for i in range(length):
                p_base = "" if base is None else f"{base[i]:.6f}"
                row = (split, number, f"{split}{session}", i * 1.0, label[i], p_base)
                text.write(",".join(map(str, row)) + f",{fine[i]:.6f}\n")
                number += 1
    return text.getvalue().encode()


def labelled_bouts(predictions: bytes) -> list[tuple[str, float, float, str]]:
    """Session, start, end and split of the runs of labelled windows of 2 s, a second apart."""
    found: list[tuple[str, float, float, str]] = []
    for line in predictions.decode().splitlines()[1:]:
        split, _, session, start, label, *_ = line.split(",")
        begin = float(start)
        if label != "1":
            continue
        same = found and found[-1][:1] + found[-1][3:] == (session, split)
        if same and found[-1][2] >= begin:
            found[-1] = (session, found[-1][1], begin + 2, split)
        else:
            found.append((session, begin, begin + 2, split))
    return found
