"""Job files: read, check, write. A job is a flat JSON object of option names and values. No
torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.artifacts import to_json, write_file
from common.data.data_sets import Data
from common.errors import InputError
from common.jobs import identity
from common.options import FROM_SCRATCH, BaseOptions, FinetuneOptions
from common.paths import experiment_name
from common.validation import kind_of, read_json

Kind = Literal["base", "finetune", "script"]
KINDS: dict[str, Kind] = {"train_base.py": "base", "train_finetune.py": "finetune"}
# What generate_jobs.py adds to a base job for people who read it.
BOOKKEEPING = ("base_model_hash", "training_key", "num_dependent_jobs")


@dataclass(frozen=True)
class Job:
    """One training run. `needs` is the hash of the base model that it starts from."""

    kind: Kind
    id: str
    values: dict[str, Any]
    needs: str | None = None

    @property
    def base(self) -> BaseOptions:
        """Options of a base job."""
        return BaseOptions.model_construct(**self.values)

    @property
    def finetune(self) -> FinetuneOptions:
        """Options of a fine-tune."""
        return FinetuneOptions.model_construct(**self.values)


def read_jobs(path: Path, kind: Kind, data: Data) -> list[Job]:
    """The jobs of a file, each checked.

    Raises:
        InputError: naming file, job and option; also for a hash that does not belong to its
        options.
    """
    entries = read_json(path, "a job file (python3 generate_jobs.py writes one)")
    if not isinstance(entries, list):
        raise InputError(
            f"{path}: a job file is a list of jobs, this is {kind_of(entries)}; python3"
            " generate_jobs.py writes one"
        )
    jobs: dict[str, Job] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: job {number}"
        if not isinstance(entry, dict):
            raise InputError(
                f"{where}: a job is an object of option names and values, this is {kind_of(entry)}"
            )
        if kind == "script":
            job = script_job(entry, where, number)
        else:
            job = (base_job if kind == "base" else finetune_job)(entry, where, data)
        add_job(jobs, job, where)
    return list(jobs.values())


def add_job(
    jobs: dict[str, Job], job: Job, where: str, advice: str = "give it a prefix of its own"
) -> None:
    """Add a job to `jobs`, each once.

    Raises:
        InputError: another one writes to the same place; naming the options that differ.
    """
    there = jobs.setdefault(job.id, job).values
    names = [
        name
        for name in job.values
        if name not in BOOKKEEPING and there.get(name) != job.values[name]
    ]
    different = [f"{name} {there.get(name)} there, {job.values[name]} here" for name in names]
    if different:
        raise InputError(
            f"{where}: writes to the same place as another job ({job.id}) with other options"
            f" ({', '.join(different)}): {advice}"
        )


def base_job(entry: dict[str, Any], where: str, data: Data) -> Job:
    """A base job from its options."""
    options = data.resolve(
        BaseOptions.parse(
            {k: v for k, v in entry.items() if k not in BOOKKEEPING}, where, strict=True
        )
    )
    base_hash = identity.base_hash(options)
    _check_hash(entry.get("base_model_hash"), base_hash, where)
    return Job("base", base_hash, options.model_dump())


def finetune_job(entry: dict[str, Any], where: str, data: Data) -> Job:
    """A fine-tune from its options."""
    options = data.resolve(FinetuneOptions.parse(entry, where, strict=True))
    needs = None
    if options.mode not in FROM_SCRATCH:
        needs = identity.base_hash(options)
        _check_hash(options.base_model_hash, needs, where)
    prefix = options.prefix or identity.experiment_prefix(options)
    values = options.model_dump() | {"base_model_hash": needs, "prefix": prefix}
    return Job(
        "finetune",
        f"{prefix}/{experiment_name(options.fold, identity.target(options))}",
        values,
        needs,
    )


def script_job(entry: dict[str, Any], where: str, number: int) -> Job:
    """A job of a user's own script: its options are passed on as they are."""
    values = {key: value for key, value in entry.items() if not key.startswith("_")}
    for name, value in values.items():
        parts = value if isinstance(value, list) else [value]
        plain = all(part is None or isinstance(part, (str, int, float)) for part in parts)
        if (
            not plain
            or not name.replace("_", "").replace("-", "").isalnum()
            or name.startswith("-")
        ):
            raise InputError(
                f"{where}: {name!r}: an option is a name with a number, text, true, false, null or"
                " a list of these"
            )
    return Job("script", f"job{number}", values)


def _check_hash(claimed: Any, computed: str, where: str) -> None:
    if claimed is not None and claimed != computed:
        raise InputError(
            f"{where}: base_model_hash is {claimed!r}, but its options have {computed}: regenerate"
            " the job files with python3 generate_jobs.py"
        )


def base_entries(
    jobs: Sequence[Job], finetunes: Iterable[Job], keys: dict[str, str | None]
) -> list[dict[str, Any]]:
    """The lines of base_training_jobs.json."""
    dependents = Counter(job.needs for job in finetunes)
    return [
        {
            **job.values,
            "base_model_hash": job.id,
            "training_key": keys.get(job.id),
            "num_dependent_jobs": dependents[job.id],
        }
        for job in jobs
    ]


def write_jobs(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write a job file, atomically."""
    write_file(path, to_json(list(entries)))
