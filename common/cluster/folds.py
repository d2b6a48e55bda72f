"""The K tests of a person (prepare_data.py --split_folds) as one, for the table that ends a run."""

from __future__ import annotations

import contextlib
import csv
from collections import Counter
from collections.abc import Iterable
from typing import Any

from common.artifacts import sha256
from common.data.manifest import Fold, read_manifest
from common.errors import InputError
from common.jobs.job_files import Job
from common.options import FinetuneOptions, shapes_result
from common.paths import Paths

Result = tuple[Job, dict[str, Any]]  # with its metrics.json
PREDICTIONS = "predictions.csv"
COLUMNS = {"": "p_finetuned", "base_": "p_base"}
OF_ONE = ("data_path", "base_model_hash", "prefix", "participants")  # differ between the K


class Folds:
    """Which data sets are parts of one preparation."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._known: dict[str, Fold | None] = {}

    def of(self, data_path: str) -> Fold | None:
        """What dataset.json says of it; None for a data set of its own."""
        if data_path not in self._known:
            try:
                manifest = read_manifest(self._paths.data(data_path))
            except (InputError, OSError):
                manifest = None
            self._known[data_path] = manifest.fold if manifest else None
        return self._known[data_path]

    def whole(self, data_path: str) -> str:
        """The name of the preparation."""
        fold = self.of(data_path)
        return fold.whole if fold else data_path

    def pooled(self, results: Iterable[Result]) -> tuple[list[Result], list[str]]:
        """One result for the K of a person under equal options, its macro F1 that of the windows of
        all K; and who lacks some. Others stay as they are.
        """
        kept, groups = list[Result](), dict[str, dict[int, Result]]()
        for job, metrics in results:
            fold = self.of(str(job.values.get("data_path")))
            if fold is None:
                kept.append((job, metrics))
            else:
                groups.setdefault(_key(job, metrics), {})[fold.number] = (job, metrics)
        lacking: dict[str, None] = {}
        for tests in groups.values():
            job, metrics = tests[min(tests)]
            fold = self.of(str(job.values.get("data_path")))
            scores = None
            if fold and len(tests) == fold.of:
                with contextlib.suppress(OSError, LookupError, ValueError, TypeError, csv.Error):
                    scores = self._scores(tests.values())
            if scores is None:
                lacking[str(metrics["target_participant"])] = None
            else:
                kept.append((job, metrics | scores))
        return kept, list(lacking)

    def _scores(self, tests: Iterable[Result]) -> dict[str, float | None]:
        from common.training.metrics import macro_f1  # numpy takes a while to load

        counts: dict[str, Counter[int]] = {}
        for job, metrics in tests:
            raw = (self._paths.experiments / job.id / PREDICTIONS).read_bytes()
            if sha256(raw) != metrics["files"][PREDICTIONS]:
                raise ValueError("not what was published")
            _count(raw.decode(), counts)
        return {
            f"{side}{split}_macro_f1": macro_f1([cells[cell] for cell in range(4)])
            for side, column in COLUMNS.items()
            for split in ("val", "test")
            for cells in [counts.get(f"{split} {column}", Counter())]
        }


def _count(predictions: str, counts: dict[str, Counter[int]]) -> None:
    """Add tn, fp, fn, tp (cells 0 to 3) at probability 0.5, by split and model."""
    for row in csv.DictReader(predictions.splitlines()):
        for column in COLUMNS.values():
            if row[column]:
                cell = 2 * int(row["label"]) + (float(row[column]) >= 0.5)
                counts.setdefault(f"{row['split']} {column}", Counter())[cell] += 1


def _key(job: Job, metrics: dict[str, Any]) -> str:
    """What the K tests of a person have in common."""
    options = {
        name: value
        for name, value in job.values.items()
        if name not in OF_ONE and name in FinetuneOptions.model_fields and shapes_result(name)
    }
    base = job.values.get("n_base_participants")
    return repr((metrics["target_participant"], base, sorted(options.items())))
