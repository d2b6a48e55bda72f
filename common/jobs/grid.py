"""A grid of experiments, expanded into jobs. No torch.

A grid file is a JSON object with up to four parts, each an object of option names:

    "grid"      option: [values]            every combination is a cell
    "fixed"     option: value               the same in all cells
    "finetune"  option: value or [values]   what differs for fine-tunes only; base models stay as
                                            many as they were
    "analysis"  metric, mode, target_data_pct   what the report calls primary, fixed before
                                            anything runs; written into each fine-tune job as
                                            `_analysis`
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data.data_sets import Data
from common.errors import InputError, nearest
from common.jobs import identity
from common.jobs.job_files import Job, add_job, base_job, finetune_job
from common.jobs.score_names import REPORTED
from common.options import (
    OWN,
    TARGET_ALONE,
    WITHOUT_NETWORK,
    BaseOptions,
    FinetuneOptions,
    Options,
    hashed,
    shapes_result,
)
from common.validation import kind_of, read_json

BASELINES = ("target_only", "head_only_fine_tuning")
PARTS = ("grid", "fixed", "finetune", "analysis")
ANALYSIS = ("metric", "mode", "target_data_pct")
# What a base job takes over from the fine-tune that needs it.
_BASE_OPTIONS = tuple(BaseOptions.model_fields)
_ADVICE = "give them one value each, or leave out 'prefix' (it is made from all that differs)"
# What a fine-tune has under another name than its base model.
_RENAMED = {"early_stopping_patience": "early_stopping_patience_target"}


@dataclass(frozen=True)
class GridSpec:
    """The parts of a grid file."""

    axes: dict[str, list[Any]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    analysis: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, grid: object, where: str) -> GridSpec:
        """Check the form of a grid; the options themselves are checked job by job.

        Raises:
            InputError: beginning with `where`.
        """
        if not isinstance(grid, dict):
            raise InputError(
                f'{where}: a grid file is an object {{"grid": {{option: [values]}}, "fixed":'
                f" {{option: value}}}}, this is {kind_of(grid)}"
            )
        parts = {name: value for name, value in grid.items() if not name.startswith("_")}
        for name in parts:
            if name not in PARTS:
                raise InputError(f"{where}: unknown key {name!r}{nearest(name, PARTS)}")
            if not isinstance(parts[name], dict):
                raise InputError(f"{where}: {name!r} is an object of option names")
        axes, fixed, own, analysis = (dict(parts.get(name, {})) for name in PARTS)
        for name, values in axes.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"{where}: grid: {name}: a list of at least one value is needed")
            if name in fixed:
                raise InputError(f"{where}: {name} is in 'grid' and in 'fixed': leave one out")
        return cls(axes, fixed, _own_options(own, where), _analysis(analysis, where))

    def record(self) -> dict[str, Any]:
        """The grid as a JSON value, as in a grid file."""
        return {
            "grid": self.axes,
            "fixed": self.fixed,
            "finetune": self.finetune,
            "analysis": self.analysis,
        }

    def with_baselines(self) -> GridSpec:
        """A copy with the modes of BASELINES."""
        fixed = dict(self.fixed)
        default = fixed.pop("mode", FinetuneOptions.model_fields["mode"].default)
        modes = self.axes.get("mode", [default])
        added = [mode for mode in BASELINES if mode not in modes]
        return GridSpec(
            {**self.axes, "mode": [*modes, *added]}, fixed, self.finetune, self.analysis
        )


DOCUMENTED_GRID = GridSpec(
    axes={
        "batch_size": [32, 64],
        "n_base_participants": [1, 2, 3, 4, 5, 6],
        "mode": ["full_fine_tuning", "target_only_fine_tuning"],
        "target_data_pct": [0.01, 0.05, 0.125, 0.25, 0.5, 1.0],
    },
    fixed={
        "participants": ["tonmoy", "asfik", "alsaad", "anam", "ejaz", "iftakhar", "unk1"],
        "data_path": "data/001_60s_window",
        "use_augmentation": True,
    },
)


def _own_options(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The part 'finetune' with the names that the options have in a fine-tune's job."""
    named: dict[str, Any] = {}
    own = FinetuneOptions.own_names()
    alone = [name for name in FinetuneOptions.model_fields if name not in Options.model_fields]
    for name, value in part.items():
        option = f"{name}{OWN}" if name in own else _RENAMED.get(name, name)
        if option not in alone:
            known = nearest(name, (*own, *_RENAMED, *alone))
            raise InputError(
                f"{where}: finetune: {name!r} is no option that a fine-tune can have of its own"
                f"{known}"
            )
        if value == [] or option in named:
            raise InputError(f"{where}: finetune: {name}: one value, or a list of values")
        named[option] = value
    return named


def _analysis(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The part 'analysis', its values checked and rounded as those of options are."""
    for name in part:
        if name not in ANALYSIS:
            raise InputError(f"{where}: analysis: unknown key {name!r}{nearest(name, ANALYSIS)}")
    metric = part.get("metric")
    if "metric" in part and metric not in REPORTED:
        raise InputError(
            f"{where}: analysis: metric {metric!r} is no score of a report"
            f"{nearest(str(metric), REPORTED)}; there are {', '.join(REPORTED)}"
        )
    cell = {name: value for name, value in part.items() if name != "metric"}
    parsed = FinetuneOptions.parse(cell, f"{where}: analysis", strict=True)
    return {**part, **parsed.model_dump(include=set(cell))}


def read_grid(path: Path) -> GridSpec:
    """A grid file.

    Raises:
        InputError: it cannot be read or has another form.
    """
    return GridSpec.parse(read_json(path, "a grid file"), str(path))


def expand(
    grid: GridSpec, where: str, data: Data, folds: Sequence[str] | None = None
) -> tuple[list[Job], list[Job]]:
    """Base jobs and fine-tunes of a grid, each once, in the grid's order.

    `folds` are numbers or names of participants (all by default).

    Raises:
        InputError: an option is unknown or out of bounds, a fold names no participant or is
        given twice, two jobs have one place, the analysis names a cell that is not in the grid.
    """
    bases: dict[str, Job] = {}
    finetunes: dict[str, Job] = {}
    for number, entry in enumerate(_entries(grid, where, data, folds)):
        job = finetune_job(entry, where, data)
        add_job(finetunes, job, f"{where}: job {number}", _ADVICE)
        if job.needs and job.needs not in bases:
            bases[job.needs] = base_job(_of_the_base(job), where, data)
    _check_analysis(grid.analysis, where, finetunes.values())
    return list(bases.values()), list(finetunes.values())


def _check_analysis(analysis: Mapping[str, Any], where: str, jobs: Collection[Job]) -> None:
    for name in ("mode", "target_data_pct"):
        there = {job.values[name] for job in jobs}
        if name in analysis and analysis[name] not in there:
            raise InputError(
                f"{where}: analysis: {name} is {analysis[name]!r}, which is not in the grid"
                f" ({', '.join(sorted(map(str, there)))})"
            )


def _of_the_base(job: Job) -> dict[str, Any]:
    """The options of the base job that a fine-tune needs."""
    values = {name: job.values[name] for name in _BASE_OPTIONS if name != "prefix"}
    if not values["use_augmentation"]:  # the fine-tune alone augments
        values["augmentation"] = None
    return values


def _entries(
    grid: GridSpec, where: str, data: Data, folds: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    own = {name: _values_of(name, value) for name, value in grid.finetune.items()}
    if twice := [name for name in own if name in grid.axes or name in grid.fixed]:
        raise InputError(f"{where}: {twice[0]} is in 'finetune' and elsewhere: leave one out")
    axes = {**grid.axes, **own}
    first = {**grid.fixed, **{name: values[0] for name, values in axes.items()}}
    # a misspelt option is named before data that are not there, perhaps for that reason
    FinetuneOptions.parse(_drop_ineffective(first, grid.axes), where, strict=True)
    for fold in _folds(grid, where, data, folds):
        for values in itertools.product(*axes.values()):
            entry = {**grid.fixed, **dict(zip(axes, values, strict=True)), **fold}
            yield _drop_ineffective(entry, grid.axes)


def _values_of(name: str, value: Any) -> list[Any]:
    """A list is several values, except for an option whose value is itself a list."""
    if name.startswith("magnitude_range") or name == "freeze":
        return value if isinstance(value, list) and isinstance(value[0], list) else [value]
    return value if isinstance(value, list) else [value]


def _drop_ineffective(entry: dict[str, Any], axes: Collection[str]) -> dict[str, Any]:
    """`entry` without options that have no effect in it, so that each job appears once."""
    augments = entry.get(f"use_augmentation{OWN}") or entry.get("use_augmentation")
    if "use_augmentation" in axes and augments is False:
        entry = _without_augmentation(entry)
    defaults = {name: field.default for name, field in Options.model_fields.items()}
    entry = {
        name: value
        for name, value in entry.items()
        if not (name.endswith(OWN) and name != f"seed{OWN}")
        or value != (defaults | entry).get(name.removesuffix(OWN))
    }
    mode = entry.get("mode")
    if mode in WITHOUT_NETWORK:
        entry = _without_network(entry)
    return _without_base(entry) if mode in TARGET_ALONE else entry


def _without_augmentation(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in entry.items()
        if (option := name.removesuffix(OWN)) not in BaseOptions.model_fields
        or not hashed(option).startswith("with_augmentation")
    }


def _without_network(entry: dict[str, Any]) -> dict[str, Any]:
    """`entry` without what only a network has; for a forest of base participants also without the
    target's fraction, which is of its training windows, unless it limits the selection too.
    """
    seed = entry.get("seed_finetune")
    entry = {**entry, "seed_finetune": entry.get("seed", 0) if seed is None else seed}
    kept = set(identity.OF_BASELINES)
    if entry["mode"] == "forest_base" and entry.get("target_val") != "matched":
        kept -= {"target_data_pct", "target_order"}
    return {
        name: value
        for name, value in entry.items()
        if name in kept
        or name not in FinetuneOptions.model_fields
        or not (shapes_result(name) or name == "compile")
    }


def _without_base(entry: dict[str, Any]) -> dict[str, Any]:
    """A mode that learns from the target alone is never crossed with options that only a base has,
    and its options are all its own.
    """
    seed = entry.get("seed_finetune")
    own = {
        name.removesuffix(OWN): value
        for name, value in entry.items()
        if name.endswith(OWN) and name != f"seed{OWN}"
    }
    if own.get("use_augmentation") is False:  # the base alone would augment
        entry, own = _without_augmentation(entry), _without_augmentation(own)
    rest = {
        name: value
        for name, value in entry.items()
        if name not in identity.BASE_ONLY and not name.endswith(OWN)
    }
    return {
        **rest,
        **own,
        "n_base_participants": 0,
        "seed_finetune": entry.get("seed", 0) if seed is None else seed,
    }


def _folds(
    grid: GridSpec, where: str, data: Data, folds: Sequence[str] | None
) -> list[dict[str, int]]:
    if "fold" in grid.axes or "fold" in grid.fixed:
        if folds is not None:
            raise InputError(f"--folds: {where} names its own 'fold': leave one of the two out")
        return [{}]
    participants = _participants(grid, where, data)
    if folds is None:
        return [{"fold": number} for number in range(len(participants))]
    named = [
        part
        for text in folds
        for part in ([text] if text in participants or "," not in text else text.split(","))
        if part or "," not in text
    ]
    return [{"fold": _fold(text, participants)} for text in dict.fromkeys(named)]


def _participants(grid: GridSpec, where: str, data: Data) -> list[str]:
    """Everyone, in order; the same in all data sets of the grid."""
    if "participants" in grid.axes:
        raise InputError(
            f"{where}: participants belong to 'fixed': one grid has one list of people"
        )
    first = {name: values[0] for name, values in grid.axes.items()}
    probe = {
        name: value
        for name, value in {**first, **grid.fixed}.items()
        if name in ("participants", "data_path", "window_size")
    }
    found: dict[str, list[str]] = {}
    for data_path in grid.axes.get("data_path", [None]):
        more = {} if data_path is None else {"data_path": data_path}
        options = FinetuneOptions.parse(probe | more, where, strict=True)
        found[options.data_path] = data.resolve(options).participants or []
    if len(set(map(tuple, found.values()))) > 1:
        raise InputError(
            f"{where}: {' and '.join(found)} have different participants: a fold would be another"
            " person in each; name them in 'fixed'"
        )
    return next(iter(found.values()))


def _fold(text: str, participants: list[str]) -> int:
    if text in participants:
        return participants.index(text)
    if text.isdecimal() and int(text) < len(participants):
        return int(text)
    raise InputError(
        f"--folds: {text!r} is neither a participant{nearest(text, participants)} nor a number from"
        f" 0 to {len(participants) - 1}"
    )
