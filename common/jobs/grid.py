"""A grid of experiments, expanded into jobs. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.data_sets import Data
from common.errors import InputError, nearest
from common.jobs import identity
from common.jobs.job_files import Job, add_job, base_job, finetune_job
from common.options import BaseOptions, FinetuneOptions, hashed
from common.validation import kind_of, read_json

BASELINES = ("target_only", "head_only_fine_tuning")
# What a base job takes over from the fine-tune that needs it.
_BASE_OPTIONS = tuple(BaseOptions.model_fields)
_ADVICE = (
    "give them one value each, or leave out 'prefix' (what shapes no result is in no generated one)"
)

DOCUMENTED_GRID: dict[str, Any] = {
    "grid": {
        "batch_size": [32, 64],
        "n_base_participants": [1, 2, 3, 4, 5, 6],
        "mode": ["full_fine_tuning", "target_only_fine_tuning"],
        "target_data_pct": [0.01, 0.05, 0.125, 0.25, 0.5, 1.0],
    },
    "fixed": {
        "participants": ["tonmoy", "asfik", "alsaad", "anam", "ejaz", "iftakhar", "unk1"],
        "data_path": "data/001_60s_window",
        "use_augmentation": True,
    },
}


def read_grid(path: Path) -> dict[str, Any]:
    """A grid file.

    Raises:
        InputError: not of the form {"grid": {option: [values]}, "fixed": {option: value}}.
    """
    grid = read_json(path, "a grid file")
    if not isinstance(grid, dict):
        raise InputError(
            f'{path}: a grid file is an object {{"grid": {{option: [values]}}, "fixed": {{option:'
            f" value}}}}, this is {kind_of(grid)}"
        )
    unknown = [key for key in grid if key not in ("grid", "fixed") and not key.startswith("_")]
    if unknown:
        raise InputError(
            f"{path}: unknown key {unknown[0]!r}{nearest(unknown[0], ('grid', 'fixed'))}"
        )
    axes, fixed = grid.get("grid", {}), grid.get("fixed", {})
    if not isinstance(axes, dict) or not isinstance(fixed, dict):
        raise InputError(f"{path}: 'grid' and 'fixed' are objects of option names")
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: grid: {name}: a list of at least one value is needed")
        if name in fixed:
            raise InputError(f"{path}: {name} is in 'grid' and in 'fixed': leave one out")
    return {"grid": axes, "fixed": fixed}


def expand(
    grid: Mapping[str, Any],
    where: str,
    data: Data,
    folds: Sequence[str] | None = None,
    *,
    baselines: bool = False,
) -> tuple[list[Job], list[Job]]:
    """Base jobs and fine-tunes of a grid, each once, in the grid's order.

    `folds` are numbers or names of participants (all by default); `baselines` adds the modes of
    BASELINES.

    Raises:
        InputError: an option is unknown or out of bounds, a fold names nobody or is named twice,
        two jobs have one place.
    """
    axes, fixed = dict(grid["grid"]), dict(grid["fixed"])
    if baselines:
        modes = axes.get("mode") or [
            fixed.pop("mode", FinetuneOptions.model_fields["mode"].default)
        ]
        axes["mode"] = [*modes, *(mode for mode in BASELINES if mode not in modes)]
    bases: dict[str, Job] = {}
    finetunes: dict[str, Job] = {}
    for number, entry in enumerate(_entries(axes, fixed, where, data, folds)):
        job = finetune_job(entry, where, data)
        add_job(finetunes, job, f"{where}: job {number}", _ADVICE)
        if job.needs and job.needs not in bases:
            bases[job.needs] = base_job(
                {name: job.values[name] for name in _BASE_OPTIONS if name != "prefix"}, where, data
            )
    return list(bases.values()), list(finetunes.values())


def _entries(
    axes: dict[str, Any], fixed: dict[str, Any], where: str, data: Data, folds: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    names = list(axes)
    for fold in _folds(axes, fixed, where, data, folds):
        for values in itertools.product(*axes.values()):
            entry = {**fixed, **dict(zip(names, values, strict=True)), **fold}
            yield _meaningful(entry, axes)


def _meaningful(entry: dict[str, Any], axes: Collection[str]) -> dict[str, Any]:
    """`entry` without what says nothing in it, so that a grid of both kinds of jobs has each
    once.
    """
    if "use_augmentation" in axes and entry["use_augmentation"] is False:
        entry = {
            name: value
            for name, value in entry.items()
            if name not in BaseOptions.model_fields
            or not hashed(name).startswith("with_augmentation")
        }
    return _without_base(entry) if entry.get("mode") == "target_only" else entry


def _without_base(entry: dict[str, Any]) -> dict[str, Any]:
    """`target_only` has no base: it is never crossed with options that only a base has."""
    seed = entry.get("seed_finetune")
    rest = {name: value for name, value in entry.items() if name not in identity.BASE_ONLY}
    return {
        **rest,
        "n_base_participants": 0,
        "seed_finetune": entry.get("seed", 0) if seed is None else seed,
    }


def _folds(
    axes: dict[str, Any], fixed: dict[str, Any], where: str, data: Data, folds: Sequence[str] | None
) -> list[dict[str, int]]:
    if "fold" in axes or "fold" in fixed:
        if folds is not None:
            raise InputError(f"--folds: {where} names its own 'fold': leave one of the two out")
        return [{}]
    participants = _participants(axes, fixed, where, data)
    if folds is None:
        return [{"fold": number} for number in range(len(participants))]
    return [{"fold": _fold(text, participants)} for text in dict.fromkeys(folds)]


def _participants(axes: dict[str, Any], fixed: dict[str, Any], where: str, data: Data) -> list[str]:
    if "participants" in axes:
        raise InputError(
            f"{where}: participants belong to 'fixed': one grid has one list of people"
        )
    first = {name: values[0] for name, values in axes.items()}
    probe = {
        name: value
        for name, value in {**first, **fixed}.items()
        if name in ("participants", "data_path", "window_size")
    }
    resolved = data.resolve(FinetuneOptions.parse(probe, where, strict=True)).participants
    assert resolved is not None
    return resolved


def _fold(text: str, participants: list[str]) -> int:
    if text in participants:
        return participants.index(text)
    if text.isdecimal() and int(text) < len(participants):
        return int(text)
    raise InputError(
        f"--folds: {text!r} is neither a participant{nearest(text, participants)} nor a number from"
        f" 0 to {len(participants) - 1}"
    )
