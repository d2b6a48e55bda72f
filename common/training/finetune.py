"""One fine-tune, from its options to its publication. `run` is what train_finetune.py and the
workers call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import artifacts
from common.data.data_sets import Data
from common.data.dataset import Rows, Split, Windows, select_subset
from common.data.manifest import Manifest, listed_windows, read_manifest, require_one_clock
from common.data.windowing import covered_hours
from common.errors import CorruptArtifact, InputError
from common.jobs import identity
from common.jobs.score_names import SCORES, THRESHOLDED
from common.jobs.verdicts import (
    State,
    Verdict,
    check_unchanged,
    finetune_fingerprints,
    judge_experiment,
    make_way,
    refuse_conflict,
    stale_base,
)
from common.options import FROM_SCRATCH, TARGET_ALONE, WITHOUT_NETWORK, FinetuneOptions
from common.paths import SPLITS, Paths, experiment_name, split_file
from common.training import baselines, loop, metrics, plugins
from common.training.networks import Model
from common.training.provenance import Beginning
from common.training.setup import (
    CheckpointFile,
    Log,
    LruCache,
    Progress,
    device_name,
    loop_settings,
    model_input,
    network,
    number_of_parameters,
    open_splits,
    outcome_of,
    own_lock,
    place,
    prepare_process,
    score,
)

# Taken from the base model; an option that contradicts it is refused.
_OF_THE_BASE = (
    "n_base_participants",
    "model",
    "model_options",
    "init_weights",
    "base_channels",
    "num_blocks",
    "normalization",
    "window_size",
    "base_order_seed",
    "base_selection",
    "early_stopping_patience",
    "seed",
)
LEARN_FROM_BASE = ("full_fine_tuning", "forest_base")  # modes that read base participants' data
# Taken from the base model unless given.
_BESIDES = ("fold", "participants", "data_path")


@dataclass(frozen=True)
class _Scores:
    """A model's scores under the names of metrics.json, why some are undefined, and its
    probabilities by split.
    """

    values: dict[str, float | None]
    undefined: dict[str, str]
    probabilities: dict[str, np.ndarray[Any, Any]]

    def set(self, name: str, value: float | None, why: str) -> None:
        """A value, or the reason for None."""
        self.values[name] = value
        if value is None:
            self.undefined[name] = why
        else:
            self.undefined.pop(name, None)


Publish = Callable[[dict[str, bytes], dict[str, Any], str], None]
Predict = Callable[[Windows], tuple[np.ndarray[Any, Any], float]]
_bases: LruCache[dict[str, torch.Tensor]] = LruCache(4)
_untouched: LruCache[_Scores] = LruCache(32)


@dataclass(frozen=True)
class _Task:
    """A fine-tune with all that its result depends on."""

    options: FinetuneOptions
    base: artifacts.BaseModel | None
    people: tuple[str, ...]  # base participants
    fingerprints: dict[str, str]
    by_hand: bool

    @property
    def base_sha256(self) -> str | None:
        """Of the weights that it starts from."""
        return str(self.base.metadata["weights_sha256"]) if self.base else None

    @property
    def key(self) -> str:
        """Of all that its result depends on."""
        return identity.experiment_key(self.options, self.base_sha256, self.fingerprints)

    @property
    def seed_key(self) -> str:
        """What all randomness derives from: the seed, and all that the result depends on but the
        target's test file, which it is only scored on.
        """
        scored = split_file(identity.target(self.options), "test")
        read = {name: sha256 for name, sha256 in self.fingerprints.items() if name != scored}
        key = identity.experiment_key(self.options, self.base_sha256, read)
        return f"{identity.effective_seed(self.options)}/{key}"

    @property
    def name(self) -> str:
        """Folder below the prefix."""
        return experiment_name(self.options.fold, identity.target(self.options))

    @property
    def prefix(self) -> str:
        """Folder below experiments/."""
        return self.options.prefix or identity.experiment_prefix(self.options)


def run(values: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Publish the fine-tune that `values` (options) describe, unless it is published and current.

    Returns "folder" (relative to the project), "data_path", and "reused" with the reason when
    nothing was trained, else what `outcome_of` says.

    Raises:
        InputError: options, data, base model. TrainingError: the training. NodeError: the GPU.
        OSError: the disk.
    """
    paths = Paths.here()
    data = Data(paths)
    task = _task(
        paths, data, FinetuneOptions.parse(values, "options"), by_hand=bool(values.get("_by_hand"))
    )
    folder = paths.experiment(task.prefix, task.name)
    done = {"folder": str(folder.relative_to(paths.root)), "data_path": task.options.data_path}
    with own_lock(paths, identity.experiment_lock(task.prefix, task.name), progress):
        artifacts.remove_temporaries(folder)
        verdict = _judge(task, folder)
        if verdict.state is State.DONE and not (values.get("_retrain") and verdict.other_code):
            return {**done, "reused": "already published"}
        refuse_conflict(verdict, overwrite=task.options.overwrite)

        def unchanged() -> None:
            check_unchanged(
                paths,
                str(folder),
                task.fingerprints,
                lambda sha256: finetune_fingerprints(task.options, task.people, sha256),
            )

        def publish(files: dict[str, bytes], record: dict[str, Any], log: str) -> None:
            """Supersede the old result once the new one is ready."""
            unchanged()
            make_way(paths, folder, _judge(task, folder), overwrite=task.options.overwrite)
            artifacts.publish_experiment(paths, task.prefix, task.name, files, record, log)

        # The folder first, then the key, whose checkpoint all prefixes share: a fixed order
        # prevents deadlock.
        with own_lock(paths, task.key, progress):
            outcome = _train(paths, task, progress, unchanged, publish)
    return {**done, **outcome}


def _judge(task: _Task, folder: Path) -> Verdict:
    verdict = judge_experiment(folder, task.options, task.base_sha256, task.fingerprints)
    if verdict.state is State.STALE and task.base and task.by_hand:
        there = artifacts.open_experiment(folder).config.get("base_model_hash")
        if there != task.base.hash:  # a name that was made from the options tells them not apart
            return Verdict(
                State.CONFLICT,
                f"{folder} holds results that started from base model {there}, not"
                f" {task.base.hash}: give another --prefix, or --overwrite",
            )
    return verdict


# -- what is asked for


def _task(paths: Paths, data: Data, options: FinetuneOptions, *, by_hand: bool) -> _Task:
    base: artifacts.BaseModel | None = None
    people: tuple[str, ...] = ()
    if options.mode in FROM_SCRATCH:
        alone = {"n_base_participants": 0} if options.mode in TARGET_ALONE else {}
        options = data.resolve(options.model_copy(update=alone))
        people = tuple(identity.base_participants(options))
    elif options.base_model_hash is None:
        raise InputError(
            f"base_model_hash: mode {options.mode} starts from a base model: give --base_model_hash"
            " (see base_models/, or generate_jobs.py)"
        )
    else:
        base = artifacts.open_base_model(paths, options.base_model_hash)
        # For a worker the plan has looked: its node need not have today's files of people whom its
        # jobs do not read.
        if by_hand and (
            stale := stale_base(
                paths, base.metadata, base.metadata["config"]["data_path"], data.sha256
            )
        ):
            raise InputError(stale)
        options, people = (
            _as_the_base(options, base, data),
            tuple(base.metadata["base_participants"]),
        )
        if identity.target(options) in people:
            raise InputError(
                f"target {identity.target(options)} is among the base participants of {base.hash}:"
                " its data trained that model; another --fold"
            )
    fingerprints = finetune_fingerprints(options, people, data.sha256)
    return _Task(options, base, people, fingerprints, by_hand)


def _as_the_base(
    options: FinetuneOptions, base: artifacts.BaseModel, data: Data
) -> FinetuneOptions:
    """What was not given comes from the base model. Raises InputError where what was given
    contradicts it.
    """
    defaults = FinetuneOptions().model_dump()  # for a base model made before an option was added
    config = defaults | base.metadata["config"]
    given = options.model_dump(exclude_unset=True)
    for name in _OF_THE_BASE:
        if (
            name in given
            and given[name] != config[name]
            and not (given[name] == "all" and name == "n_base_participants")
        ):
            hint = "; a fine-tune's own seed is --seed_finetune" if name == "seed" else ""
            raise InputError(
                f"{name}: {given[name]} was given, but base model {base.hash} has {config[name]}:"
                f" leave it out, or take another base{hint}"
            )
    for name in (*_OF_THE_BASE, *(name for name in _BESIDES if name not in given)):
        given[name] = config[name]
    # A longer list of people does not change who the base model learnt from.
    return data.resolve(FinetuneOptions.parse(given, "options"))


# -- training


@dataclass(frozen=True)
class _Sets:
    """The windows of a fine-tune. `selection` is None when nothing is selected (target_val
    none).
    """

    train: Windows
    own: Windows | None  # the target's part of `train`
    selection: Windows | None
    test: Windows
    rows: dict[str, tuple[Split, Rows | None]]  # of the target, by split


def _sets(paths: Paths, task: _Task, channels: int | None) -> _Sets:
    options, target = task.options, identity.target(task.options)
    seed = identity.effective_seed(options)
    splits = SPLITS if options.mode != "forest_base" else ("val", "test")
    opened = dict(zip(splits, open_splits(paths, options, [target], splits, channels), strict=True))
    if options.target_order == "time":
        require_one_clock(paths.data(options.data_path), target, "train")

    def subset(split: str) -> tuple[Split, Rows | None]:
        fraction, order = options.target_data_pct, options.target_order
        return opened[split], select_subset(opened[split].y, fraction, order=order, seed=seed)

    rows: dict[str, tuple[Split, Rows | None]] = {"test": (opened["test"], None)}
    if "train" in opened:
        rows["train"] = subset("train")
    parts: list[Split | tuple[Split, Rows | None]] = [rows["train"]] if "train" in rows else []
    if options.mode in LEARN_FROM_BASE:
        forest = options.mode == "forest_base"
        learnt = identity.base_learning_splits(options) if forest else ("train", "val")
        parts += open_splits(paths, options, task.people, learnt, opened["test"].x.shape[1])
    if options.target_val != "none":
        rows["val"] = subset("val") if options.target_val == "matched" else (opened["val"], None)
    return _Sets(
        Windows(parts),
        Windows([rows["train"]]) if "train" in rows else None,
        Windows([rows["val"]]) if "val" in rows else None,
        Windows([rows["test"]]),
        rows,
    )


def _train(
    paths: Paths, task: _Task, progress: Progress, unchanged: Callable[[], None], publish: Publish
) -> dict[str, Any]:
    options = task.options
    device, began = prepare_process(options), Beginning()
    sets = _sets(paths, task, task.base.metadata["channels"] if task.base else None)
    baseline = options.mode in WITHOUT_NETWORK
    for windows in (sets.train, sets.selection, sets.test):
        if windows is not None and not baseline:
            place(windows, device)
    unchanged()  # before anything of them is kept, for this training or for others of this worker
    seed_key = task.seed_key
    own = plugins.read_own(paths, options, task.fingerprints)
    if baseline:
        fitted, after = _baseline(options.mode, sets, loop.epoch_seed(seed_key, 0, "init"))
        ran = began.provenance(options, "cpu", fitted)
        log = Log(f"{task.prefix}/{task.name}", progress)
        _publish(paths, task, sets, fitted, None, after, ran, own, log, publish)
        return outcome_of(options, fitted)
    model = network(
        options.effective(), own, sets.train.channels, loop.epoch_seed(seed_key, 0, "init")
    )
    if task.base:
        _load(model, task.base)
    elif options.normalization == "train":
        model.set_normalization(*sets.train.normalization())
    model.to(device)
    plugins.check_own(own, model, sets.train)
    before = _score_of_base(task, model, sets) if task.base else None
    checkpoint, origin = CheckpointFile(paths, task.key, unchanged), task.base
    log = Log(f"{task.prefix}/{task.name} from {origin.hash if origin else 'scratch'}", progress)
    chosen = _settings(task, seed_key, own)
    with own.explained():
        fitted = loop.fit(
            model, sets.train, sets.selection, chosen, progress=log.epoch, checkpoint=checkpoint
        )
        after = _score(partial(score, model), sets, "", "threshold_tuned")
    ran = began.provenance(options, device_name(device), fitted)
    size = number_of_parameters(model)
    _publish(paths, task, sets, fitted, before, after, ran, own, log, publish, size)
    checkpoint.remove()
    return outcome_of(options, fitted)


def _baseline(mode: str, sets: _Sets, seed: int) -> tuple[loop.FitResult, _Scores]:
    """A baseline without a network, as a training of no epochs."""
    fitted = baselines.fit_baseline(mode, sets.train, seed)
    losses: dict[str, list[float | None]] = {"train": [], "val": [], "val_macro_f1": []}
    result = loop.FitResult(
        fitted.state, losses, 0, 0, 0, "no_epochs", resumed=False, backend="scikit-learn"
    )
    return result, _score(fitted.score, sets, "", "threshold_tuned")


def _publish(
    paths: Paths,
    task: _Task,
    sets: _Sets,
    fitted: loop.FitResult,
    before: _Scores | None,
    after: _Scores,
    ran: dict[str, Any],
    own: plugins.Own,
    log: Log,
    publish: Publish,
    parameters: int = 0,
) -> None:
    places = _places(paths, task, sets)
    record = _metrics(task, fitted, before, after) | {
        "counts": _counts(paths, task, sets, places),
        "parameters": parameters,
        "provenance": ran,
    }
    files = {
        "best_model.pt": loop.serialize(fitted.state),
        "losses.json": artifacts.to_json(fitted.losses),
        "config.json": artifacts.to_json(
            _config(task) | {"input": model_input(paths, task.options), "own_code": own.record}
        ),
        "predictions.csv": _predictions(sets, places, before, after),
    }
    publish(files, record, log.text)


def _load(model: Model, base: artifacts.BaseModel) -> None:
    """Raises CorruptArtifact where the bytes are those that were published, but no weights of this
    network.
    """
    try:
        sha256 = base.metadata["weights_sha256"]
        model.load_state_dict(_bases.get(sha256, lambda: loop.deserialize(base.weights)))
    except (RuntimeError, TypeError, AttributeError, LookupError, ValueError) as error:
        raise CorruptArtifact(
            f"base_models/{base.hash}.pt: no weights of the network that its metadata name: run"
            " base training again"
        ) from error


def _settings(task: _Task, seed_key: str, own: plugins.Own) -> loop.TrainingSettings:
    head_only = task.options.mode == "head_only_fine_tuning"
    patience = task.options.early_stopping_patience_target
    return loop_settings(
        task.options.effective(),
        seed_key,
        own,
        patience=patience,
        from_untouched=task.base is not None,
        head_only=head_only,
        freeze=tuple(task.options.freeze),
    )


def _score_of_base(task: _Task, model: Model, sets: _Sets) -> _Scores:
    return _untouched.get(
        _untouched_key(task),
        lambda: _score(partial(score, model), sets, "base_", "base_threshold_tuned"),
    )


def _untouched_key(task: _Task) -> Any:
    """What the scores of the untouched base depend on: a warm worker computes them once for a base
    and target, not once for each sibling fine-tune.
    """
    options = task.options
    matched = (
        (identity.effective_seed(options), options.target_data_pct, options.target_order)
        if options.target_val == "matched"
        else None
    )
    target = [task.fingerprints[name] for name in identity.finetune_data_files(options, ())[1:3]]
    return (
        task.base_sha256,
        *target,
        *(task.fingerprints[name] for name in options.own_files()),
        options.target_val,
        matched,
        options.threads,
        options.device,
    )


# -- scores


def _score(predict: Predict, sets: _Sets, who: str, threshold_name: str) -> _Scores:
    """Scores on selection and test windows, at 0.5 and at the threshold that maximises macro F1 on
    the own selection windows. `predict`: probabilities and mean loss of windows.
    """
    windows = {"test": sets.test}
    if sets.selection is not None:
        windows["val"] = sets.selection
    scored = {split: predict(part) for split, part in windows.items()}
    made = _no_scores(who, threshold_name, "no selection windows")
    made.probabilities.update({split: p for split, (p, _) in scored.items()})
    threshold = (
        metrics.tuned_threshold(sets.selection.y.numpy(), scored["val"][0])
        if sets.selection is not None
        else None
    )
    made.set(threshold_name, threshold, "no selection windows of both classes")
    for split, (probabilities, loss) in scored.items():
        labels = windows[split].y.numpy()
        values, undefined = metrics.final_scores(labels, probabilities, loss=loss)
        tuned, tuned_undefined = (
            metrics.threshold_scores(labels, probabilities, threshold)
            if threshold is not None
            else ({}, {})
        )
        for name in SCORES:
            made.set(f"{who}{split}_{name}", values[name], undefined.get(name, ""))
        for name in THRESHOLDED:
            made.set(
                f"{who}{split}_{name}_tuned",
                tuned.get(name),
                tuned_undefined.get(name, "no tuned threshold"),
            )
    return made


def _no_scores(who: str, threshold_name: str, why: str = "no base model") -> _Scores:
    names = [f"{who}{split}_{name}" for split in ("val", "test") for name in SCORES]
    names += [f"{who}{split}_{name}_tuned" for split in ("val", "test") for name in THRESHOLDED]
    return _Scores(
        dict.fromkeys([threshold_name, *names]), dict.fromkeys([threshold_name, *names], why), {}
    )


# -- what is recorded


def _config(task: _Task) -> dict[str, Any]:
    options = task.options
    values = options.model_dump() | {
        "prefix": task.prefix,
        "seed_finetune": identity.effective_seed(options),
        "overwrite": False,
        "device": "auto",
    }
    return {
        "options": values,
        "experiment_fields": identity.experiment_fields(options),
        "experiment_key": task.key,
        "fold": options.fold,
        "target_participant": identity.target(options),
        "base_participants": list(task.people),
        "base_model_hash": task.base.hash if task.base else None,
        "base_weights_sha256": task.base_sha256,
        "training_key": task.base.metadata["training_key"] if task.base else None,
        "data_fingerprints": task.fingerprints,
        "code_fingerprints": identity.code_fingerprints(),
    }


def _metrics(
    task: _Task, fitted: loop.FitResult, before: _Scores | None, after: _Scores
) -> dict[str, Any]:
    base = before or _no_scores("base_", "base_threshold_tuned")
    record: dict[str, Any] = {
        **base.values,
        **after.values,
        "undefined": {**base.undefined, **after.undefined},
    }
    return record | {
        **fitted.course,
        "mode": task.options.mode,
        "target_data_pct": task.options.target_data_pct,
        "fold": task.options.fold,
        "target_participant": identity.target(task.options),
        "base_model_hash": task.base.hash if task.base else None,
        "base_weights_sha256": task.base_sha256,
    }


def _counts(
    paths: Paths, task: _Task, sets: _Sets, places: Mapping[str, list[tuple[str, str]]]
) -> dict[str, Any]:
    """Windows, positives and recorded hours of what was learnt from, selected on and tested on."""
    manifest = read_manifest(paths.data(task.options.data_path))
    counts: dict[str, Any] = {}
    for name, split, windows in (
        ("train", "train", sets.own),
        ("selection", "val", sets.selection),
        ("test", "test", sets.test),
    ):
        number, positives = (len(windows), windows.positives) if windows is not None else (0, 0)
        counts[name] = {
            "windows": number,
            "positives": positives,
            "hours": _hours(manifest, places.get(split, [])),
        }
    if task.options.mode in LEARN_FROM_BASE:
        mine = counts["train"]
        counts["base_train"] = {
            "windows": len(sets.train) - mine["windows"],
            "positives": sets.train.positives - mine["positives"],
        }
    return counts


def _hours(manifest: Manifest | None, places: list[tuple[str, str]]) -> float | None:
    """Recorded time under the windows, overlaps counted once; windows of unknown start count as
    if they followed each other.
    """
    if manifest is None:
        return None
    try:
        hours = covered_hours(
            [(session, float(start)) for session, start in places], manifest.window_seconds
        )
    except (TypeError, ValueError):  # no numbers
        hours = math.nan
    return round(
        (
            hours
            if math.isfinite(hours)
            else len(places) * min(manifest.stride_seconds, manifest.window_seconds) / 3600
        ),
        6,
    )


def _predictions(
    sets: _Sets, places: Mapping[str, list[tuple[str, str]]], before: _Scores | None, after: _Scores
) -> bytes:
    rows: list[Sequence[object]] = []
    for split in (split for split in ("val", "test") if split in sets.rows):
        opened, kept = sets.rows[split]
        base, tuned = before.probabilities[split] if before else None, after.probabilities[split]
        for position, number in enumerate(_numbers(opened, kept)):
            p_base = "" if base is None else f"{base[position]:.9g}"
            p_tuned, label = f"{tuned[position]:.9g}", int(opened.y[number])
            rows.append([split, number, *places[split][position], label, p_base, p_tuned])
    header = ["split", "index", "session", "start_s", "label", "p_base", "p_finetuned"]
    return artifacts.to_csv(header, rows)


def _places(paths: Paths, task: _Task, sets: _Sets) -> dict[str, list[tuple[str, str]]]:
    """Session and start second of the windows of `sets.rows`, by split; empty where the data set
    does not say.
    """
    listed = {
        split: _listed(paths, task, split, len(opened)) for split, (opened, _) in sets.rows.items()
    }
    return {
        split: [listed[split][number] for number in _numbers(*rows)]
        for split, rows in sets.rows.items()
    }


def _numbers(opened: Split, kept: Rows | None) -> Sequence[int]:
    return range(len(opened)) if kept is None else [int(number) for number in kept]


def _listed(paths: Paths, task: _Task, split: str, number: int) -> list[tuple[str, str]]:
    places = listed_windows(
        paths.data(task.options.data_path), identity.target(task.options), split
    )
    return places if len(places) == number else [("", "")] * number
