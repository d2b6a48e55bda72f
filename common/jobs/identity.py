"""Names and keys: the hash of a base model, the key of a distinct training, the prefix and key of
an experiment, the fingerprints of data and code. The only place that hashes options.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from common.options import (
    FROM_SCRATCH,
    OWN,
    TARGET_ALONE,
    WITHOUT_NETWORK,
    BaseOptions,
    FinetuneOptions,
    Options,
    hashed,
    shapes_result,
)
from common.paths import CODE_ROOT, SPLITS, split_file

# Code that shapes a training's result, whatever its key: reuse across versions of these files is
# announced, and no checkpoint of another is resumed.
CODE_FILES = (
    "training/networks.py",
    "training/adam.py",
    "training/backends.py",
    "training/kernel/stack.cpp",
    "training/kernel/stack.py",
    "training/kernel/build.py",
    "training/scattered.py",
    "training/augment.py",
    "training/plugins.py",
    "training/initial.py",
    "data/dataset.py",
    "data/subsets.py",
    "training/loop.py",
    "training/metrics.py",
    "training/setup.py",
    "training/base.py",
    "training/finetune.py",
    "training/baselines.py",
    "jobs/identity.py",  # seeds; the base participants and their order
    "options.py",  # a changed default is in no hash
    "data/windowing.py",  # hours
)
# Options that only a base model depends on: they have no effect where there is none.
BASE_ONLY = frozenset(
    {
        "n_base_participants",
        "early_stopping_patience",
        "base_selection",
        "base_order_seed",
        "seed",
        "init_weights",
    }
)
# Options that have an effect where there is no network.
OF_BASELINES = frozenset(
    {
        "mode",
        "data_path",
        "window_size",
        "target_data_pct",
        "target_val",
        "target_order",
        "seed_finetune",
        "n_base_participants",
        "base_order_seed",
        "base_selection",
    }
)

Fingerprints = Mapping[str, str]
Sha256 = Callable[[str], str]


def digest(value: Any, digits: int = 16) -> str:
    """The first hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def hash_fields(options: Options) -> dict[str, Any]:
    """The options that make up the base model hash. `options` are resolved."""
    values = options.model_dump()
    return {name: values[name] for name in BaseOptions.model_fields if _enters(name, values)}


def _enters(name: str, values: Mapping[str, Any]) -> bool:
    how = hashed(name)
    if how.startswith("with_augmentation") and not values["use_augmentation"]:
        return False
    if how.endswith("unless_default"):
        return bool(values[name] != BaseOptions.model_fields[name].default)
    return how != "never"


def base_hash(options: Options) -> str:
    """The 16 hex digits that name a base model's configuration. `options` are resolved."""
    return digest(hash_fields(options))


def target(options: Options) -> str:
    """The participant that is held out and personalised to. `options` are resolved."""
    assert options.participants is not None
    return options.participants[options.fold]


def base_participants(options: Options) -> list[str]:
    """The participants that the base model learns from, in order. `options` are resolved."""
    assert options.participants is not None
    assert options.n_base_participants != "all"
    others = [name for name in options.participants if name != target(options)]
    if options.base_order_seed is not None:
        random.Random(f"{options.base_order_seed}/{target(options)}").shuffle(others)
    return others[: options.n_base_participants]


def training_fields(options: Options, data: Fingerprints | None) -> dict[str, Any]:
    """What base training really depends on. `data` is None where the data were not read."""
    left_out = {"fold", "participants", "n_base_participants", "data_path", "base_order_seed"}
    fields = {name: value for name, value in hash_fields(options).items() if name not in left_out}
    return fields | {
        "base_participants": base_participants(options),
        "data": None if data is None else dict(data),
    }


def training_key(options: Options, data: Fingerprints | None) -> str:
    """Hashes with one training key share one training. `options` are resolved."""
    return digest(training_fields(options, data))


def file_location(data_path: str, name: str) -> tuple[str, str]:
    """(folder, file name) of a fingerprinted file: of the data set, or one of the user's own."""
    return os.path.split(os.path.normpath(name)) if "/" in name else (data_path, name)


def base_learning_splits(options: Options) -> tuple[str, ...]:
    """The splits of the base participants that base training learns from; it stops on
    `base_selection`.
    """
    return ("train", "val") if options.base_selection == "test" else ("train",)


def base_data_files(options: Options) -> list[str]:
    """Exactly the files that base training reads: data, then the user's own."""
    splits = (*base_learning_splits(options), options.base_selection)
    data = [split_file(name, split) for name in base_participants(options) for split in splits]
    return data + options.own_files()


def finetune_data_files(options: FinetuneOptions, base: Iterable[str]) -> list[str]:
    """Exactly the files that a fine-tune reads, `base` being the base model's participants."""
    if options.mode == "forest_base":  # the target's are only tuned and scored on
        learnt = [
            split_file(name, split)
            for name in base_participants(options)
            for split in base_learning_splits(options)
        ]
        return [split_file(target(options), split) for split in ("val", "test")] + learnt
    files = [split_file(target(options), split) for split in SPLITS]
    if options.mode == "full_fine_tuning":
        files += [split_file(name, split) for name in base for split in ("train", "val")]
    return files + options.own_files()


def fingerprints(files: Iterable[str], sha256: Sha256) -> dict[str, str]:
    """SHA-256 by file name."""
    return {name: sha256(name) for name in files}


def effective_seed(options: FinetuneOptions) -> int:
    """The seed of a fine-tune's subset, order and initialisation."""
    return options.seed if options.seed_finetune is None else options.seed_finetune


def has_effect(name: str, mode: str) -> bool:
    """Whether an option can shape a result of this mode."""
    if name in BASE_ONLY and mode in TARGET_ALONE:
        return False
    return mode not in WITHOUT_NETWORK or name in OF_BASELINES


def experiment_fields(options: FinetuneOptions) -> dict[str, Any]:
    """The options that shape a fine-tune's result, apart from fold, participants and the base
    weights themselves.
    """
    values = options.model_dump() | {"seed_finetune": effective_seed(options)}
    if not has_effect("seed", options.mode):  # the effective seed alone says it
        values["seed"] = FinetuneOptions.model_fields["seed"].default
    # what the base alone augments with tells two base models apart
    of_the_base = options.use_augmentation and options.mode not in FROM_SCRATCH
    fields: dict[str, Any] = {}
    for name, augments, always, default in _shaping(options.mode):
        unused = augments and not (options.augments or of_the_base)
        same = name.endswith(OWN) and values[name] == values.get(name.removesuffix(OWN))
        if not unused and not same and (always or values[name] != default):
            fields[name] = values[name]
    return fields


@cache
def _shaping(mode: str) -> tuple[tuple[str, bool, bool, Any], ...]:
    """The options that can shape a result of this mode: name, whether it acts with augmentation
    only, whether it is named at its default too, and that default.
    """
    found = []
    for name, field in FinetuneOptions.model_fields.items():
        if shapes_result(name) and has_effect(name, mode):
            how = hashed(name) if name in BaseOptions.model_fields else ""
            always = how == "always" or name in ("mode", "target_data_pct", "seed_finetune")
            found.append((name, how.startswith("with_augmentation"), always, field.default))
    return tuple(found)


def experiment_lock(prefix: str, name: str) -> str:
    """Names the lock of an experiment's folder."""
    return digest([prefix, name])


def experiment_prefix(options: FinetuneOptions) -> str:
    """Folder of a generated experiment: mode, fraction, base participants, batch size, and 8 hex
    digits of everything else. Depends on the job alone.
    """
    fields = experiment_fields(options)
    number = fields.get("n_base_participants", 0)
    rest = {
        key: value
        for key, value in fields.items()
        if key not in ("mode", "target_data_pct", "n_base_participants", "batch_size")
    }
    pct = f"{options.target_data_pct:.12g}"
    size = fields.get("batch_size", 0)
    return f"{options.mode}_pct{pct}_base{number}_bs{size}_{digest(rest, 8)}"


def experiment_key(
    options: FinetuneOptions, base_weights_sha256: str | None, data: Fingerprints
) -> str:
    """All that a fine-tune's result depends on: options, target, base weights and data."""
    fields = experiment_fields(options)
    return digest(
        {
            "options": fields,
            "target": target(options),
            "base_weights": base_weights_sha256,
            "data": dict(data),
        }
    )


def checkpoint_name(key: str) -> str:
    """Names the checkpoint of a training by its key and the code that wrote it."""
    return f"{key}-{digest(code_fingerprints(), 8)}"


@cache
def code_fingerprints() -> dict[str, str]:
    """SHA-256 by name of the code that shapes results."""
    return {
        name: hashlib.sha256((CODE_ROOT / "common" / name).read_bytes()).hexdigest()
        for name in CODE_FILES
        if (CODE_ROOT / "common" / name).is_file()
    }
