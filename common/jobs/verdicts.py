"""Verdicts: whether a published base model or experiment is current, stale, damaged, of another
configuration, or missing. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from common import artifacts
from common.cli import few
from common.data.data_sets import Data, DataSha256
from common.errors import BaseModelNotFound, Conflict, CorruptArtifact, InputError, TrainingError
from common.jobs import identity
from common.options import FinetuneOptions, Options
from common.paths import Paths, split_file


class State(Enum):
    """The state of a published result, in the order in which states are reported."""

    DONE = "done"
    STALE = "stale"
    STALE_BASE = "stale (their base)"
    DAMAGED = "damaged"
    CONFLICT = "conflict"
    NEW = "new"
    UNSEEN = "not known"  # its data are not here


@dataclass(frozen=True)
class Verdict:
    """A state and its reason; for a current result also the SHA-256 of its weights, and the code
    files that differed when it was made. cause: of the reason, what others may have in common.
    """

    state: State
    reason: str = ""
    cause: str = ""
    weights_sha256: str | None = None
    other_code: tuple[str, ...] = ()


def base_fingerprints(options: Options, sha256: DataSha256) -> dict[str, str]:
    """Fingerprints of what base training reads."""
    return identity.fingerprints(
        identity.base_data_files(options),
        lambda name: sha256(*identity.file_location(options.data_path, name)),
    )


def finetune_fingerprints(
    options: FinetuneOptions, base: Iterable[str], sha256: DataSha256
) -> dict[str, str]:
    """Fingerprints of what a fine-tune reads."""
    return identity.fingerprints(
        identity.finetune_data_files(options, base),
        lambda name: sha256(*identity.file_location(options.data_path, name)),
    )


def check_unchanged(
    paths: Paths,
    name: str,
    before: dict[str, str],
    fingerprints: Callable[[DataSha256], dict[str, str]],
) -> None:
    """Raises TrainingError when the data, fingerprinted again, differ from `before`. `name` is what
    was trained.
    """
    try:
        now = fingerprints(Data(paths).sha256)
    except InputError:  # deleted, or being replaced
        now = {}
    if now != before:
        raise TrainingError(
            f"{name}: the data changed while it was trained: nothing is published, run it again"
        )


def changed(before: object, now: dict[str, str]) -> list[str]:
    """Names whose fingerprints differ or are new."""
    old = before if isinstance(before, dict) else {}
    return sorted(name for name in now if old.get(name) != now[name])


def _other_code(recorded: object) -> tuple[str, ...]:
    return tuple(changed(recorded, identity.code_fingerprints()))


def judge_base(paths: Paths, base_hash: str, key: str, data: dict[str, str]) -> Verdict:
    """Judge the base model published under `base_hash` against the training `key` of today's
    data.
    """
    try:
        model = artifacts.open_base_model(paths, base_hash)
    except BaseModelNotFound:
        return Verdict(State.NEW)
    except CorruptArtifact as error:
        return Verdict(State.DAMAGED, str(error))
    return judge_base_model(model, key, data)


def judge_base_model(model: artifacts.BaseModel, key: str, data: dict[str, str]) -> Verdict:
    """The same for a base model that is open."""
    if model.metadata.get("training_key") != key:
        cause = _stale(changed(model.metadata.get("data_fingerprints"), data))
        return stale_verdict(f"base model {model.hash}", cause)
    return Verdict(
        State.DONE,
        weights_sha256=model.metadata["weights_sha256"],
        other_code=_other_code(model.metadata.get("code_fingerprints")),
    )


def stale_verdict(name: object, cause: str) -> Verdict:
    """Published, but it has to be made anew."""
    return Verdict(State.STALE, f"{name} is stale: {cause}", cause)


def _stale(files: list[str]) -> str:
    """Names the files. Few expect that base training reads test files."""
    only_test = files and all(name.endswith(split_file("", "test")) for name in files)
    why = f"; its early stopping reads {few(files)}" if only_test else ""
    return f"{kind_of_files(files)} changed ({few(files)}{why})"


def kind_of_files(files: Sequence[str]) -> str:
    """'data', or what else fingerprints name: files of the project's own, such as a network's."""
    own = sum(name.startswith("./") for name in files)
    return "data" if not own else "own file" if own == len(files) else "data and own file"


def stale_base(
    paths: Paths, metadata: dict[str, Any], data_path: str, sha256: DataSha256
) -> str | None:
    """Why a published base model may not be used: its data changed. None where it is current, or
    its data are not here.
    """
    recorded, now = metadata["data_fingerprints"], dict[str, str]()
    for name in recorded:
        folder, file = identity.file_location(data_path, name)
        try:
            now[name] = sha256(folder, file)
        except InputError:
            if (paths.data(folder) / file).exists():
                now[name] = "not what dataset.json describes"
    files = changed(recorded, now)
    name = f"base model {metadata['base_model_hash']}"
    return f"{name} is stale: {_stale(files)}: run base training again" if files else None


def published_trainings(
    paths: Paths, *, only: str | None = None, todays_code: bool = False
) -> dict[str, str]:
    """By training key, the first hash under which an undamaged base model is published.
    `only`: a key; what does not name it is not opened, which is much quicker.
    `todays_code`: one that no other version of the code made.
    """
    found: dict[str, str] = {}
    for base_hash in artifacts.published_base_hashes(paths):
        try:
            if only and only.encode() not in _metadata_text(paths, base_hash):
                continue
            metadata = artifacts.open_base_model(paths, base_hash).metadata
        except (CorruptArtifact, BaseModelNotFound, OSError):
            continue
        if not (todays_code and _other_code(metadata.get("code_fingerprints"))):
            found.setdefault(str(metadata.get("training_key")), base_hash)
    return found


def _metadata_text(paths: Paths, base_hash: str) -> bytes:
    return artifacts.read_regular(paths.base_metadata(base_hash), artifacts.MAX_JSON_BYTES)


def judge_experiment(
    folder: Path, options: FinetuneOptions, base_weights_sha256: str | None, data: dict[str, str]
) -> Verdict:
    """Judge the experiment published in `folder` against these options, base weights and data."""
    try:
        experiment = artifacts.open_experiment(folder)
    except FileNotFoundError:
        return Verdict(State.NEW)
    except CorruptArtifact as error:
        return Verdict(State.DAMAGED, str(error))
    return judge_opened(experiment, options, base_weights_sha256, data)


def judge_opened(
    experiment: artifacts.Experiment,
    options: FinetuneOptions,
    base_weights_sha256: str | None,
    data: dict[str, str],
) -> Verdict:
    """The same for an experiment that is open."""
    folder, config = experiment.folder, experiment.config
    if config.get("experiment_key") == identity.experiment_key(options, base_weights_sha256, data):
        return Verdict(
            State.DONE,
            weights_sha256=experiment.metrics["files"]["best_model.pt"],
            other_code=_other_code(config.get("code_fingerprints")),
        )
    if conflict := _conflict(folder, config, options):
        return conflict
    if config.get("base_weights_sha256") != base_weights_sha256:
        return stale_verdict(folder, "its base model changed")
    files = changed(config.get("data_fingerprints"), data)
    return stale_verdict(folder, f"{kind_of_files(files)} changed ({few(files)})")


def judge_waiting(folder: Path, options: FinetuneOptions, base: Verdict) -> Verdict:
    """Judge the experiment in `folder` while its base model, whose verdict is `base`, is still to
    be trained.
    """
    try:
        conflict = _conflict(folder, artifacts.open_experiment(folder).config, options)
    except (FileNotFoundError, CorruptArtifact):
        return Verdict(State.NEW, "waits for its base model")
    if conflict is None and base.state is State.STALE:
        return Verdict(State.STALE_BASE, f"{folder} is stale: {base.reason}")
    return conflict or Verdict(State.NEW, "waits for its base model")


def _conflict(folder: Path, config: dict[str, Any], options: FinetuneOptions) -> Verdict | None:
    fields = identity.experiment_fields(options)
    if config.get("experiment_fields") == fields and config.get(
        "target_participant"
    ) == identity.target(options):
        return None
    different = _different(config.get("experiment_fields"), fields)
    return Verdict(
        State.CONFLICT,
        f"{folder} holds results of another configuration ({different}): give another --prefix, or"
        " --overwrite",
    )


def refuse_conflict(verdict: Verdict, *, overwrite: bool) -> None:
    """Raises Conflict when the folder holds results of another configuration, and `overwrite` is
    off.
    """
    if verdict.state is State.CONFLICT and not overwrite:
        raise Conflict(verdict.reason)


def make_way(paths: Paths, folder: Path, verdict: Verdict, *, overwrite: bool) -> None:
    """Move the experiment that a new one replaces to superseded/.

    Raises:
        Conflict: it is of another configuration, and `overwrite` is off.
    """
    refuse_conflict(verdict, overwrite=overwrite)
    if verdict.state is not State.NEW and folder.exists():
        artifacts.supersede_experiment(paths, folder)


def _different(before: object, now: dict[str, Any]) -> str:
    old = before if isinstance(before, dict) else {}
    names = sorted(name for name in old.keys() | now.keys() if old.get(name) != now.get(name))
    return (
        few([f"{name} {old.get(name)} there, {now.get(name)} here" for name in names])
        or "another target"
    )


def copy_base_model(paths: Paths, source: artifacts.BaseModel, options: Options) -> str:
    """Publish a whole base model for `options` from one with the same training key: equal weights,
    its own configuration. Returns its hash.
    """
    base_hash = identity.base_hash(options)
    metadata = {
        **source.metadata,
        "config": options.model_dump() | {"device": "auto", "prefix": None},
        "target_participant": identity.target(options),
    }
    artifacts.publish_base_model(paths, base_hash, source.weights, metadata)
    return base_hash
