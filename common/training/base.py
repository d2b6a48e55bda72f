"""One base model, from its options to its publication. `run` is what train_base.py and the workers
call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common import artifacts
from common.data.data_sets import Data
from common.data.dataset import Windows
from common.jobs import identity
from common.jobs.job_files import BOOKKEEPING
from common.jobs.verdicts import (
    State,
    Verdict,
    base_fingerprints,
    check_unchanged,
    copy_base_model,
    judge_base,
    published_trainings,
)
from common.options import BaseOptions
from common.paths import Paths
from common.training import initial, loop, metrics, plugins
from common.training.provenance import Beginning
from common.training.setup import (
    CheckpointFile,
    Log,
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

Publish = Callable[[bytes, dict[str, Any]], None]


@dataclass(frozen=True)
class _BaseTraining:
    """A base training with all that its result depends on."""

    options: BaseOptions
    base_hash: str
    key: str
    fingerprints: dict[str, str]

    @property
    def people(self) -> list[str]:
        """Base participants."""
        return identity.base_participants(self.options)


def run(values: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Publish the base model that `values` (options) describe, training it only when nothing equal
    is published.

    Returns "base_model_hash", and "reused" with the reason when nothing was trained, else what
    `outcome_of` says.

    Raises:
        InputError: options or data. TrainingError: the training. NodeError: the GPU. OSError: the
        disk.
    """
    paths = Paths.here()
    data = Data(paths)
    options = data.resolve(
        BaseOptions.parse(
            {key: value for key, value in values.items() if key not in BOOKKEEPING}, "options"
        )
    )
    fingerprints = base_fingerprints(options, data.sha256)
    base_hash, key = identity.base_hash(options), identity.training_key(options, fingerprints)
    with own_lock(paths, key, progress):
        artifacts.remove_temporaries(paths.base_models, f"{base_hash}")
        verdict = judge_base(paths, base_hash, key, fingerprints)
        retrain = bool(values.get("_retrain"))
        if verdict.state is State.DONE and not (retrain and verdict.other_code):
            return {"base_model_hash": base_hash, "reused": "already published"}
        equal = published_trainings(paths, only=key, todays_code=retrain).get(key)
        if equal:
            source = artifacts.open_base_model(paths, equal)
            _make_way(paths, base_hash, verdict)
            copy_base_model(paths, source, options)
            return {
                "base_model_hash": base_hash,
                "reused": f"copied from {equal}, an equal training",
            }

        def unchanged() -> None:
            check_unchanged(
                paths,
                f"base model {base_hash}",
                fingerprints,
                lambda sha256: base_fingerprints(options, sha256),
            )

        def publish(weights: bytes, metadata: dict[str, Any]) -> None:
            unchanged()
            _make_way(paths, base_hash, verdict)
            artifacts.publish_base_model(paths, base_hash, weights, metadata)

        task = _BaseTraining(options, base_hash, key, fingerprints)
        outcome = _train(paths, task, progress, unchanged, publish)
    return {"base_model_hash": base_hash, **outcome}


def _make_way(paths: Paths, base_hash: str, verdict: Verdict) -> None:
    """Supersede the old model once the new one is ready: a failure before changes nothing."""
    if verdict.state is not State.NEW:
        artifacts.supersede_base_model(paths, base_hash)


def _train(
    paths: Paths,
    task: _BaseTraining,
    progress: Progress,
    unchanged: Callable[[], None],
    publish: Publish,
) -> dict[str, Any]:
    options, people = task.options, task.people
    device, began = prepare_process(options), Beginning()
    learnt = Windows(open_splits(paths, options, people, identity.base_learning_splits(options)))
    selection = (options.base_selection,)
    chosen = Windows(open_splits(paths, options, people, selection, learnt.channels))
    own = plugins.read_own(paths, options, task.fingerprints)
    model = network(options, own, learnt.channels, loop.epoch_seed(task.key, 0, "init"))
    started_from = initial.start(model, paths, options.init_weights)
    if options.normalization == "train":
        model.set_normalization(*learnt.normalization())
    model.to(device)
    place(learnt, device), place(chosen, device)
    plugins.check_own(own, model, learnt)
    unchanged()
    checkpoint = CheckpointFile(paths, task.key, unchanged)
    title = f"base model {task.base_hash}, training {task.key}, base participants"
    log = Log(f"{title} {', '.join(people)}", progress)
    chosen_settings = loop_settings(options, task.key, own)
    with own.explained():
        fitted = loop.fit(
            model, learnt, chosen, chosen_settings, progress=log.epoch, checkpoint=checkpoint
        )
        probabilities, loss = score(model, chosen)
    scores, undefined = metrics.final_scores(chosen.y.numpy(), probabilities, loss=loss)
    publish(
        loop.serialize(fitted.state),
        _metadata(task, fitted, learnt, chosen)
        | {
            "metrics": scores,
            "undefined": undefined,
            "parameters": number_of_parameters(model),
            "input": model_input(paths, options),
            "own_code": own.record,
            "init_weights": started_from,
            # Which of several equal hashes was trained depends on the order of jobs: that is
            # provenance.
            "provenance": began.provenance(options, device_name(device), fitted)
            | {"trained_as": task.base_hash},
        },
    )
    checkpoint.remove()
    return outcome_of(options, fitted)


def _metadata(
    task: _BaseTraining, fitted: loop.FitResult, learnt: Windows, chosen: Windows
) -> dict[str, Any]:
    return {
        "training_key": task.key,
        "config": task.options.model_dump() | {"device": "auto", "prefix": None},
        "base_participants": task.people,
        "target_participant": identity.target(task.options),
        "data_fingerprints": task.fingerprints,
        "code_fingerprints": identity.code_fingerprints(),
        "losses": fitted.losses,
        **fitted.course,
        "counts": {"train": _counts(learnt), "selection": _counts(chosen)},
        "channels": learnt.channels,
    }


def _counts(windows: Windows) -> dict[str, int]:
    return {"windows": len(windows), "positives": windows.positives}
