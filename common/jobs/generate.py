"""What generate_jobs.py does: choose a grid, expand it, write the job files, describe them.

The first entry of each job file holds, as `_grid`, the grid that the file came from, so that the
same grid can be expanded again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.artifacts import write_file
from common.cli import number_of
from common.data.data_sets import Data
from common.data.subsets import subset_sizes
from common.errors import InputError
from common.jobs import identity
from common.jobs.grid import DOCUMENTED_GRID, GridSpec, expand, read_grid
from common.jobs.job_files import Job, base_entries, write_jobs
from common.jobs.plan import Plan, code_notice, counted, plan, reasons
from common.options import FinetuneOptions
from common.paths import BASE_JOBS, FINETUNE_JOBS, Paths, experiment_name
from common.validation import read_json

RECORD = "_grid"
DOCUMENTED = "the documented grid"
MAX_REASONS = 10


@dataclass(frozen=True)
class Origin:
    """A grid, and how it was asked for. `file` is None for the documented grid."""

    grid: GridSpec
    file: str | None = None
    folds: list[str] | None = None
    baselines: bool = False

    @property
    def name(self) -> str:
        return self.file or DOCUMENTED

    def record(self) -> dict[str, Any]:
        """What a job file keeps of it."""
        return {
            "file": self.file,
            "folds": self.folds,
            "with_baselines": self.baselines,
            **self.grid.record(),
        }


def choose_grid(
    folder: Path, grid: Path | None, folds: list[str] | None, *, baselines: bool
) -> tuple[Origin, str]:
    """The grid to expand, and a remark on where it comes from: `grid` where it is given; else that
    of the job files in `folder`, from its file where that still exists; else the documented one.

    Raises:
        InputError: the grid cannot be read, or job files are there that do not name theirs.
    """
    if grid is not None:
        return Origin(read_grid(grid), str(grid), folds, baselines), ""
    path = folder / FINETUNE_JOBS
    if not path.exists():
        return Origin(DOCUMENTED_GRID, None, folds, baselines), ""
    before = _recorded(path)
    origin = replace(before, folds=folds or before.folds, baselines=baselines or before.baselines)
    if origin.file is None:
        return origin, _kept_folds(folds, before)
    if Path(origin.file).is_file():
        origin = replace(origin, grid=read_grid(Path(origin.file)))
        return origin, f", as {path} came from it{_kept_folds(folds, before)}"
    gone = f" as recorded in {path}: the file is no longer there"
    return origin, gone + _kept_folds(folds, before, "--folds with every name")


def _kept_folds(folds: list[str] | None, before: Origin, every: str | None = None) -> str:
    """What to say where an earlier --folds still holds."""
    if folds or not before.folds:
        return ""
    every = every or (f"--grid {before.file}" if before.file else "--folds with every name")
    return f"; folds {', '.join(before.folds)} only; all: {every}"


def _recorded(path: Path) -> Origin:
    unknown = "its grid is not known: give it with --grid"
    try:
        entries = read_json(path, "a job file")
    except InputError as error:
        raise InputError(f"{error}; {unknown}") from None
    jobs = entries if isinstance(entries, list) else []
    first = jobs[0] if jobs and isinstance(jobs[0], dict) else {}
    if isinstance(record := first.get(RECORD), dict):
        file, folds = record.get("file"), record.get("folds")
        parts = {name: record.get(name, {}) for name in GridSpec().record()}
        return Origin(
            GridSpec.parse(parts, f"{path}: {RECORD}"),
            file if isinstance(file, str) else None,
            [str(fold) for fold in folds] if isinstance(folds, list) else None,
            bool(record.get("with_baselines")),
        )
    fixed = DOCUMENTED_GRID.fixed
    if jobs and all(
        isinstance(job, dict)
        and all(job.get(name) == fixed[name] for name in ("participants", "data_path"))
        for job in jobs
    ):
        return Origin(DOCUMENTED_GRID)
    raise InputError(f"{path}: {unknown} (the documented grid would replace these jobs)")


def generate(paths: Paths, data: Data, origin: Origin, folder: Path) -> tuple[list[str], list[str]]:
    """Expand a grid and write its job files. Returns lines and warnings for a person.

    Raises:
        InputError: the grid does not fit the options or the data; nothing was written.
    """
    grid = origin.grid.with_baselines() if origin.baselines else origin.grid
    bases, finetunes = expand(grid, origin.name, data, origin.folds)
    made = plan(paths, bases, finetunes, data.sha256)
    keys = dict.fromkeys(made.keys) if made.unseen else made.keys
    lines = _keep_what_is_replaced(folder, finetunes)
    analysis = {"_analysis": grid.analysis} if grid.analysis else {}
    for name, entries in (
        (BASE_JOBS, base_entries(bases, finetunes, keys)),
        (FINETUNE_JOBS, [job.values | analysis for job in finetunes]),
    ):
        recorded = [{**entry, RECORD: origin.record()} for entry in entries[:1]]
        write_jobs(folder / name, [*recorded, *entries[1:]])
    lines += [
        *_sizes(bases, finetunes, made, folder),
        *_reasons(made),
        *_cost_of_a_new_participant(grid, finetunes, made),
        *equal_fractions(data, finetunes),
    ]
    data_paths = dict.fromkeys(job.finetune.data_path for job in finetunes)
    return lines, [remark for path in data_paths if (remark := data.leakage_remark(path))]


def read_analysis(path: Path) -> dict[str, Any]:
    """The `analysis` part of the grid that fine-tune jobs came from: `metric`, `mode`,
    `target_data_pct`, those that were given. Empty where there is none, or no such file.

    Raises:
        InputError: the part was edited by hand into something else.
    """
    try:
        entries = read_json(path, "a job file")
    except InputError:
        return {}
    first = entries[0] if isinstance(entries, list) and entries else None
    found = first.get("_analysis") if isinstance(first, dict) else None
    return GridSpec.parse({"analysis": found or {}}, f"{path}: _analysis").analysis


def _keep_what_is_replaced(folder: Path, finetunes: Sequence[Job]) -> list[str]:
    """Keep job files as .bak, .bak1, ... when the new ones lack a fine-tune of theirs."""
    path = folder / FINETUNE_JOBS
    if not path.exists():
        return []
    try:
        entries = read_json(path, "a job file")
    except InputError:
        entries = None
    before = entries if isinstance(entries, list) else [entries]
    new = {job.id for job in finetunes}
    lost = [entry for entry in before if _id(entry) not in new]
    if not lost:
        return []
    suffix, number = ".bak", 0
    while any((folder / (name + suffix)).exists() for name in (BASE_JOBS, FINETUNE_JOBS)):
        number += 1
        suffix = f".bak{number}"
    kept = []
    for name in (BASE_JOBS, FINETUNE_JOBS):
        if (folder / name).exists():
            write_file(folder / (name + suffix), (folder / name).read_bytes())
            kept.append(str(folder / (name + suffix)))
    record = before[0].get(RECORD) if isinstance(before[0], dict) else None
    of = f" of {record.get('file') or DOCUMENTED}" if isinstance(record, dict) else ""
    return [
        f"replaced: {number_of(len(before), 'fine-tune')}{of}, {len(lost):,} of them not in this"
        f" grid; the old job files are kept as {' and '.join(kept)}"
    ]


def _id(entry: object) -> str | None:
    """The id of a job as it stands in a job file, None where it has none."""
    try:
        options = FinetuneOptions.model_construct(**entry)  # type: ignore[arg-type]
        return f"{options.prefix}/{experiment_name(options.fold, identity.target(options))}"
    except (TypeError, AttributeError, AssertionError, LookupError):
        return None


def _sizes(
    bases: Sequence[Job], finetunes: Sequence[Job], made: Plan, folder: Path
) -> Iterable[str]:
    sizes = sorted(set(Counter(job.needs for job in finetunes if job.needs).values()))
    each = "-".join(map(str, dict.fromkeys(sizes[:1] + sizes[-1:])))
    yield f"{folder / FINETUNE_JOBS}: {number_of(len(finetunes), 'fine-tune')}"
    yield f"{folder / BASE_JOBS}: {number_of(len(bases), 'base model')}" + (
        f", {each} fine-tune{'' if each == '1' else 's'} each" if each else ""
    )
    yield f"distinct trainings: {made.trainings():,}" + (
        f" (by configuration; the data were not looked at: {made.unseen})" if made.unseen else ""
    )
    yield f"base models: {counted(made.bases)}" + (
        f" ({len(made.copies):,} of them only copied from an equal training)" if made.copies else ""
    )
    yield f"fine-tunes:  {counted(made.finetunes)}"


def _reasons(made: Plan) -> Iterable[str]:
    lines = reasons(made)
    yield from lines[:MAX_REASONS]
    if len(lines) > MAX_REASONS:
        yield f"... and {len(lines) - MAX_REASONS:,} more"
    if notice := code_notice(made):
        yield notice


def _cost_of_a_new_participant(
    grid: GridSpec, finetunes: Sequence[Job], made: Plan
) -> Iterable[str]:
    """With n_base_participants 'all' each base model learns from everyone but its target."""
    asked = grid.axes.get("n_base_participants", [grid.fixed.get("n_base_participants", "all")])
    several = [job for job in finetunes if job.needs]
    if "all" not in asked or not several:
        return
    number = len(several[0].values["participants"]) - 1
    depend = [job for job in several if job.values["n_base_participants"] == number]
    trainings = {made.keys[job.needs] for job in depend if job.needs}
    yield (
        "n_base_participants all: one more participant means"
        f" {number_of(len(trainings), 'training')} and {number_of(len(depend), 'fine-tune')} again;"
        f" with a number (n_base_participants {number} is the same today) a"
        " participant added at the end costs only its own"
    )


def equal_fractions(data: Data, finetunes: Sequence[Job]) -> Iterable[str]:
    """Which fractions choose the same training windows, and for whom; where dataset.json has the
    counts.
    """
    asked: dict[tuple[str, str, str], set[float]] = {}
    for job in finetunes:
        options = job.finetune
        key = (options.data_path, options.target_order, identity.target(options))
        asked.setdefault(key, set()).add(options.target_data_pct)
    equal: dict[tuple[str, str], list[str]] = {}
    for (data_path, order, person), fractions in asked.items():
        for windows, same, of in _same_windows(data, data_path, order, person, fractions):
            text = (
                f"target_data_pct {' and '.join(f'{pct:g}' for pct in same)} are the same"
                f" {windows} of {of} windows"
            )
            equal.setdefault((data_path, text), []).append(person)
    for (data_path, text), people in equal.items():
        yield f"{text} for {', '.join(people)} ({data_path})"


def _same_windows(
    data: Data, data_path: str, order: str, person: str, fractions: Iterable[float]
) -> Iterable[tuple[int, list[float], int]]:
    counts = data.counts(data_path, person, "train")
    if counts is None:
        return
    negatives, positives = counts
    sizes: dict[tuple[int, ...], list[float]] = {}
    for fraction in sorted(fractions):
        size = subset_sizes(negatives, positives, fraction, order)
        sizes.setdefault(size, []).append(fraction)
    for size, same in sizes.items():
        if len(same) > 1:
            yield sum(size), same, negatives + positives
