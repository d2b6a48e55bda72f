"""Project folders into one table, a row an experiment; what cannot be read is named and left out.
Works while a run is going on.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.artifacts import Json, open_experiment, published_base_hashes, read_base_metadata
from common.data.manifest import KeptBout, Manifest, listed_bouts, listed_windows, read_manifest
from common.errors import CorruptArtifact, InputError, ProjectError
from common.jobs.generate import read_analysis
from common.jobs.identity import digest, effective_seed
from common.options import FROM_SCRATCH, TARGET_ALONE, FinetuneOptions
from common.paths import (
    EXPERIMENT_METRICS,
    EXPERIMENTS,
    FINETUNE_JOBS,
    SPLITS,
    Paths,
    experiment_name,
)
from common.report.cells import Names, Reasons
from common.report.grids import Analysis
from common.report.predictions import (
    EventRules,
    Predictions,
    SplitWindows,
    confusion_counts,
    event_columns,
    no_events,
    read_windows,
)

COUNTED = ("train", "selection", "test", "base_train")
MODELS = (("", "p_finetuned"), ("base_", "p_base"))  # prefix of a score, column
SIDES = ("val", "test", "base_val", "base_test")


@dataclass(frozen=True)
class Skipped:
    """A folder that is left out, and why."""

    folder: str
    reason: str


@dataclass(frozen=True)
class Run:
    """What of an experiment does not fit into a row."""

    id: int
    folder: Path
    losses: Json
    config: Json
    metrics: Json
    project: Project

    @property
    def first_epoch(self) -> int:
        """Epoch of the first loss: from scratch there is no untouched base that would be epoch
        0.
        """
        return int(self.config["options"]["mode"] in FROM_SCRATCH)

    def windows(self, split: str) -> Predictions:
        """Labels, times and probabilities of a split, as they stand on disk now."""
        return read_windows((self.folder / "predictions.csv").read_text())[split]

    def threshold(self, side: str) -> float | None:
        """The tuned threshold of a model; None where none could be tuned. `side`: '' or 'base_'."""
        return _number(self.metrics.get(f"{side}threshold_tuned"))

    def bouts(self, split: str) -> list[KeptBout] | None:
        """Annotations of the target's split."""
        options = self.config["options"]
        return self.project.bouts_of(options["data_path"], self.config["target_participant"], split)

    @cached_property
    def session_starts(self) -> dict[str, float]:
        """Start second of each session's first window, of whatever split."""
        folder = self.project.paths.data(self.config["options"]["data_path"])
        starts: dict[str, float] = {}
        for split in SPLITS:
            for session, start in listed_windows(folder, self.config["target_participant"], split):
                with contextlib.suppress(ValueError):
                    starts[session] = min(float(start), starts.get(session, math.inf))
        return starts

    @property
    def window_seconds(self) -> float | None:
        """Length of a window, where the data set says it."""
        options = self.config["options"]
        manifest = self.project.manifests.get(options["data_path"])
        same = manifest is not None and manifest.window_size == options["window_size"]
        return manifest.window_seconds if manifest and same else None


@dataclass
class Project:
    """One project folder."""

    paths: Paths
    label: str
    bases: dict[str, Json] = field(default_factory=dict)
    manifests: dict[str, Manifest | None] = field(default_factory=dict)
    bouts: dict[tuple[str, str], list[KeptBout] | None] = field(default_factory=dict)
    analysis: Analysis = field(default_factory=Analysis)

    def bouts_of(self, data_path: str, participant: str, split: str) -> list[KeptBout] | None:
        """Annotations of a participant's split; None where the data set keeps none."""
        key = (data_path, participant)
        if key not in self.bouts:
            self.bouts[key] = listed_bouts(self.paths.data(data_path), participant)
        found = self.bouts[key]
        return None if found is None else [bout for bout in found if bout[3] == split]


@dataclass
class Collection:
    """Everything that a report is made from. `table` has one row a run, its index is `Run.id`."""

    projects: list[Project]
    table: pd.DataFrame
    runs: dict[int, Run]
    skipped: list[Skipped]


def collect(folders: list[Path], rules: EventRules | None = None) -> Collection:
    """Read `experiments/` and `base_models/` of each project folder. `rules`: of events.

    Raises:
        InputError: a folder is not there, or has no experiments/.
    """
    collection = Collection([], pd.DataFrame(), {}, [])
    rows: list[Json] = []
    for project in _projects(folders):
        collection.projects.append(project)
        project.analysis = Analysis(**read_analysis(project.paths.root / FINETUNE_JOBS))
        _read_bases(project, collection.skipped)
        for folder in _experiment_folders(project, collection.skipped):
            try:
                run = _read_run(folder, len(rows), project)
                rows.append(_row(run, project, rules or EventRules()))
            except ProjectError as error:
                collection.skipped.append(
                    Skipped(_shown(folder, project), _reason(error, folder, project))
                )
            except OSError as error:
                why = f"cannot be read now: {_reason(error, folder, project)}"
                collection.skipped.append(Skipped(_shown(folder, project), why))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                collection.skipped.append(
                    Skipped(
                        _shown(folder, project),
                        f"foreign: not in this project's format ({type(error).__name__}: {error})",
                    )
                )
            else:
                collection.runs[run.id] = run
    collection.table = pd.DataFrame(rows)
    if rows:
        mark_duplicates(collection.table)
        mark_versions(collection.table, collection.runs)
    return collection


def _projects(folders: list[Path]) -> list[Project]:
    """The folders with short labels of their own."""
    roots = list(dict.fromkeys(folder.resolve() for folder in folders))
    for root in roots:
        if not (root / EXPERIMENTS).is_dir():
            raise InputError(
                f"{root}: no {EXPERIMENTS}/ in it: name a project folder in which experiments have"
                " run, or run them first"
            )
    names = [root.name or str(root) for root in roots]
    return [
        Project(Paths(root), name if names.count(name) == 1 else str(root))
        for root, name in zip(roots, names, strict=True)
    ]


def _read_bases(project: Project, skipped: list[Skipped]) -> None:
    for base_hash in published_base_hashes(project.paths):
        try:
            project.bases[base_hash] = read_base_metadata(project.paths, base_hash)
        except (ProjectError, OSError) as error:
            path = project.paths.base_metadata(base_hash)
            skipped.append(Skipped(_shown(path, project), _reason(error, path, project)))


def _experiment_folders(project: Project, skipped: list[Skipped]) -> Iterator[Path]:
    """Folders that say they are published; the others are named."""
    for prefix in sorted(path for path in project.paths.experiments.iterdir() if path.is_dir()):
        below = sorted(path for path in prefix.iterdir() if path.is_dir())
        if not below:
            skipped.append(Skipped(_shown(prefix, project), "empty: no experiment in it"))
        for folder in below:
            if (folder / EXPERIMENT_METRICS).exists():
                yield folder
            elif not any(folder.iterdir()):
                skipped.append(Skipped(_shown(folder, project), "empty: nothing in it yet"))
            elif folder.name.startswith("fold"):
                skipped.append(
                    Skipped(
                        _shown(folder, project),
                        f"half-written: no {EXPERIMENT_METRICS} yet (running, or cut short)",
                    )
                )
            else:
                skipped.append(
                    Skipped(_shown(folder, project), "foreign: not the folder of an experiment")
                )


def _shown(path: Path, project: Project) -> str:
    return f"{project.label}/{path.relative_to(project.paths.root)}"


def _reason(error: Exception, path: Path, project: Project) -> str:
    kind = "corrupt: " if isinstance(error, CorruptArtifact) else ""
    text = str(error)
    for known in (f"{path}/", f"{path}: ", f"{project.paths.root}/"):
        text = text.replace(known, "")
    return kind + text


def _read_run(folder: Path, number: int, project: Project) -> Run:
    """An experiment, verified, that says of itself what its place says."""
    experiment = open_experiment(folder)
    config = experiment.config
    named = experiment_name(config["fold"], config["target_participant"])
    if folder.name != named:
        raise CorruptArtifact(
            f"its config.json is that of {named}: moved or copied by hand; it is not used"
        )
    losses = json.loads((folder / "losses.json").read_bytes())
    if not isinstance(losses, dict) or not all(
        isinstance(values, list) for values in losses.values()
    ):
        raise ValueError("losses.json holds no lists of losses")
    return Run(number, folder, losses, config, experiment.metrics, project)


def _row(run: Run, project: Project, rules: EventRules) -> Json:
    """One tidy row: place, options, scores, counts, times, marks."""
    config, metrics = run.config, run.metrics
    options = FinetuneOptions.parse(config["options"], "config.json")
    from_scratch = options.mode in FROM_SCRATCH
    row: Json = {
        "project": project.label,
        "folder": str(run.folder.relative_to(project.paths.root)),
        "prefix": run.folder.parent.name,
    }
    row |= {"target_participant": config["target_participant"], **_flat(options.model_dump())}
    row |= {
        "prefix": run.folder.parent.name,
        "fold": config["fold"],
        "seed_finetune": effective_seed(options),
    }
    people = config["base_participants"]
    row["n_base_participants"] = None if options.mode in TARGET_ALONE else len(people)
    if options.mode == "forest_base":  # learns from none of the target's windows
        row["target_data_pct"] = 0.0
    row["base_participants"] = " ".join(people)
    row |= {
        key: config.get(key)
        for key in ("base_model_hash", "base_weights_sha256", "training_key", "experiment_key")
    }
    row |= _scores(metrics) | _counts(metrics)
    manifest = _manifest(project, options.data_path)
    scored, reasons = from_windows([run], options, rules)
    row |= scored
    row |= {
        "split_seed": _split_seed(manifest),
        "data_family": _data_family(manifest, options.data_path),
        "part_tested": manifest.fold if manifest else None,
    }
    ended = ("parameters", "best_epoch", "epochs", "updates", "stopped_by")
    row |= {key: metrics.get(key) for key in ended}
    # Without a selection set there is no early stopping: the last epoch is meant to be reached.
    row["hit_max_epochs"] = (
        metrics.get("stopped_by") == "max_epochs" and options.target_val != "none"
    )
    base = project.bases.get(str(config.get("base_model_hash")), {})
    row["base_hit_max_epochs"] = base.get("stopped_by") == "max_epochs"
    row |= _provenance(metrics.get("provenance", {}))
    row["undefined"] = _undefined(metrics.get("undefined", {}) | reasons, from_scratch)
    return row


def _undefined(reasons: Json, from_scratch: bool) -> Reasons:
    """Why scores are undefined. A mode from scratch has no base: the missing scores of a base are
    left out.
    """
    return Reasons(
        {key: why for key, why in reasons.items() if not (from_scratch and key.startswith("base_"))}
    )


def _flat(options: Json) -> Json:
    """Options as a row takes them: lists and objects as text."""
    return {
        name: " ".join(map(str, value))
        if isinstance(value, list)
        else json.dumps(value, sort_keys=True)
        if isinstance(value, dict)
        else value
        for name, value in options.items()
    }


def _scores(metrics: Json) -> Json:
    names = [key for key in metrics if key.startswith(tuple(f"{side}_" for side in SIDES))]
    thresholds = [key for key in ("threshold_tuned", "base_threshold_tuned") if key in metrics]
    return {key: _number(metrics[key]) for key in names + thresholds}


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"a score is {value!r}")
    return float(value)


def _counts(metrics: Json) -> Json:
    counts = metrics.get("counts", {})
    return {
        f"{part}_{what}": counts[part].get(what)
        for part in COUNTED
        if part in counts
        for what in ("windows", "positives", "hours")
    }


def _provenance(provenance: Json) -> Json:
    versions = provenance.get("versions", {})
    keys = ("train_seconds", "started", "finished", "device", "host", "git_commit")
    row = {"trained_on" if key == "device" else key: provenance.get(key) for key in keys}
    return row | {"versions": " ".join(f"{name} {versions[name]}" for name in sorted(versions))}


def _manifest(project: Project, data_path: str) -> Manifest | None:
    if data_path not in project.manifests:
        try:
            project.manifests[data_path] = read_manifest(project.paths.data(data_path))
        except (InputError, OSError):  # the page then reports that there is none
            project.manifests[data_path] = None
    return project.manifests[data_path]


def _split_seed(manifest: Manifest | None) -> Any:
    """The seed of the data set's split, whatever the split rule calls it."""
    seeds = (
        [value for key, value in sorted(manifest.split.items()) if "seed" in key]
        if manifest
        else []
    )
    return seeds[0] if seeds else None


def _data_family(manifest: Manifest | None, data_path: str) -> str:
    """Equal for data sets that differ by the seed of their split alone, or are its folds. The
    folder of the recordings is left out: their SHA-256 identifies them.
    """
    if manifest is None:
        return data_path
    apart: Json = {
        "files": True,
        "participants": True,
        "split": {"seed", "fold", "fold_of"},
        "source": {"folder": True, "settings": {"split_seed"}},
    }
    return digest(manifest.model_dump(exclude=apart))


def from_windows(
    runs: Sequence[Run], options: FinetuneOptions, rules: EventRules
) -> tuple[Json, Json]:
    """Confusion counts and event scores over one experiment, or over those whose tests are pooled,
    named as all scores are (base_test_event_f1_tuned, ...), and why some are undefined.
    """
    row: Json = {}
    reasons: Json = {}
    splits = [read_windows((run.folder / "predictions.csv").read_text()) for run in runs]
    for split in ("val", "test"):
        tests = [
            SplitWindows(windows[split], run.bouts(split), run.window_seconds)
            for windows, run in zip(splits, runs, strict=True)
        ]
        lacks = (no_events(test.windows, test.bouts, test.window_seconds) for test in tests)
        lacking = next((why for why in lacks if why), None)
        if split == "test":
            bouts = sum(len(test.bouts or []) for test in tests)
            row |= {"no_events": lacking, "test_bouts": None if lacking else bouts}
        # only all selection windows are comparable with the annotations
        scored = not lacking and (split == "test" or options.target_val == "full")
        for side, column in MODELS:
            for tuned in ("", "_tuned"):
                cuts = [run.threshold(side) if tuned else 0.5 for run in runs]
                name = f"{side}{split}_{{}}{tuned}".format
                counts = _counted([test.windows for test in tests], column, cuts)
                row |= {name(key): value for key, value in counts.items()}
                if scored:
                    values, why = event_columns(tests, column, cuts, rules)
                    row |= {name(key): value for key, value in values.items()}
                    reasons |= {name(key): text for key, text in why.items()}
    return row, reasons


def _counted(
    tests: Sequence[Predictions], column: str, cuts: Sequence[float | None]
) -> dict[str, float]:
    together = joined(tests)
    limits = each_window(tests, cuts)
    return confusion_counts(together["label"], together[column], limits)


def joined(tests: Sequence[Predictions]) -> Predictions:
    """The windows of several tests one after the other."""
    return {name: np.concatenate([test[name] for test in tests]) for name in tests[0]}


def each_window(tests: Sequence[Predictions], cuts: Sequence[float | None]) -> NDArray[Any] | None:
    """The threshold of each window of `joined`: that of its test. None where a test has none."""
    known = [cut for cut in cuts if cut is not None]
    if len(known) < len(cuts):
        return None
    return np.repeat(known, [len(test["label"]) for test in tests])


def mark_duplicates(table: pd.DataFrame) -> None:
    """The same experiment under two prefixes counts once; the second is marked with the folder of
    the first.
    """
    table["duplicate_of"] = None
    keys = table["experiment_key"].where(table["experiment_key"].notna(), table["folder"])
    first: dict[tuple[str, str], str] = {}
    for index, key in keys.items():
        where = (str(table.at[index, "project"]), str(key))
        if where in first:
            table.at[index, "duplicate_of"] = first[where]
        else:
            first[where] = str(table.at[index, "folder"])


def mark_versions(table: pd.DataFrame, runs: dict[int, Run]) -> None:
    """Name the rows whose data, code or libraries are not those of most others (stale ones, where
    they are known, do not count among these).
    """
    counted = table.index[table["stale"].isna()] if "stale" in table else table.index
    data = {
        index: {
            f"{table.at[index, 'data_path']}/{name}": sha
            for name, sha in runs[index].config.get("data_fingerprints", {}).items()
        }
        for index in runs
    }
    code = {index: dict(runs[index].config.get("code_fingerprints", {})) for index in runs}
    versions = {
        index: dict(runs[index].metrics.get("provenance", {}).get("versions", {})) for index in runs
    }
    for column, facts in (("other_data", data), ("other_code", code), ("other_versions", versions)):
        common = _most_common({index: facts[index] for index in counted}, table["project"])
        table[column] = [
            _differing(facts[index], common[str(table.at[index, "project"])])
            for index in table.index
        ]


def _most_common(facts: dict[int, Json], project: pd.Series) -> dict[str, Json]:
    """By project, the value that most of its experiments have under each name."""
    counted: dict[str, dict[str, Counter[Any]]] = {str(label): {} for label in project.unique()}
    for index, values in facts.items():
        for name, value in values.items():
            counted[str(project[index])].setdefault(name, Counter())[value] += 1
    return {
        label: {name: max(tally, key=lambda v: (tally[v], str(v))) for name, tally in names.items()}
        for label, names in counted.items()
    }


def _differing(values: Json, common: Json) -> Names:
    return Names(sorted(name for name, value in values.items() if common.get(name) != value))
