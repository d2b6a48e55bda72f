"""Validate node messages: the facts of a probe, messages of workers, the records beside results.

A node is trusted with its own work only. Its messages may be wrong in every way: another type,
another job's name, no number, control characters for a terminal. What is not needed is dropped,
what is needed is checked. No torch, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from common.artifacts import Json, sha256
from common.cli import one_line
from common.errors import CorruptArtifact, InputError
from common.jobs import identity
from common.jobs.job_files import Job
from common.options import BaseOptions, FinetuneOptions, O, Options
from common.validation import first_problem

MAX_TEXT = 2_000
MAX_LOG = 64 << 10
MAX_TIME = 1e11  # seconds since 1970 that are a date
MAX_SPEED = 1e15  # bytes of windows per second
CAUSES = (
    "error",
    "cancelled",
    "base_missing",
    "out_of_memory",
    "out_of_gpu_memory",
    "gpu_gone",
    "disk",
)
CURVES = ("train_loss", "val_loss", "val_macro_f1")  # of the epoch that a worker reports

Text = Annotated[str, AfterValidator(lambda text: one_line(text)[:MAX_TEXT])]
Number = Annotated[float, Field(allow_inf_nan=False)]
WholeNumber = Annotated[int, Field(ge=0, le=2**62)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _GpuFacts(_Checked):
    id: Text
    name: Text
    used_by: Text


class _Facts(_Checked):
    python: Text
    versions: dict[str, Text | None]
    cores: Annotated[int, Field(ge=1, le=65536)]
    gpus: Annotated[list[_GpuFacts], Field(max_length=1024)]
    kernel: Text = ""
    driver: Text | None = None
    free_bytes: WholeNumber
    clock: Number
    code: dict[str, str | None]
    data: list[str | None] = []


def node_facts(answer: object) -> Json:
    """The facts of a probe. Raises ValueError where they are not of that form."""
    return _Facts.model_validate(answer).model_dump()


# -- messages of workers


def message(said: object, given: Collection[str]) -> Json:
    """One message of a worker that was given these jobs, with known keys of known types only; empty
    where nothing of it is of use.

    Raises:
        ValueError: it is malformed, or names a job that the worker was not given.
    """
    if not isinstance(said, dict):
        raise ValueError("not an object")
    if "hello" in said:
        return {"hello": _hello(said["hello"])}
    if "waiting" in said:
        return {"waiting": _waiting(said["waiting"])}
    for what, read in (("progress", _progress), ("done", _done), ("failed", _failed)):
        if what in said:
            job = said[what]
            if not isinstance(job, str) or job not in given:
                raise ValueError(
                    f"it reported a job that it was not given: {one_line(repr(job))[:200]}"
                )
            return {what: job, **read(said)}
    return {"yields": True} if said.get("yields") is True else {}


def _hello(hello: object) -> Json:
    if not isinstance(hello, dict):
        raise ValueError("malformed hello")
    speed = _number(hello.get("speed"))
    known: Json = {key: _text(hello[key]) for key in ("refused", "log") if key in hello}
    if _is_count(hello.get("pid")):
        known["pid"] = hello["pid"]
    return {**known, "speed": speed} if speed is not None and 0 < speed < MAX_SPEED else known


def _waiting(waiting: object) -> Json:
    if not isinstance(waiting, dict):
        raise ValueError("malformed waiting")
    return {
        "holder": _text(waiting.get("holder", "")),
        "since": min(max(0.0, _number(waiting.get("since")) or 0.0), MAX_TIME),
    }


def _progress(said: Mapping[str, Any]) -> Json:
    counts = {key: said[key] if _is_count(said.get(key)) else None for key in ("epoch", "of")}
    return counts | {key: n for key in CURVES if (n := _number(said.get(key))) is not None}


def _done(said: Mapping[str, Any]) -> Json:
    result = said.get("result")
    known: Json = {}
    if isinstance(result, dict):
        known = {key: bool(result.get(key)) for key in ("reused", "resumed")}
        known |= {"remark": _text(result["remark"])} if result.get("remark") else {}
    return {"result": known, **_ending(said)}


def _failed(said: Mapping[str, Any]) -> Json:
    cause = said.get("cause")
    return {
        "cause": cause if cause in CAUSES else "error",
        "error": _text(said.get("error", "")),
        **_ending(said),
    }


def _ending(said: Mapping[str, Any]) -> Json:
    seconds, log = said.get("seconds"), said.get("log")
    return {
        "seconds": min(max(0.0, _number(seconds) or 0.0), 1e9),
        "log": log[-MAX_LOG:] if isinstance(log, str) else "",
        **({"yields": True} if said.get("yields") is True else {}),
    }


def _text(value: object) -> str:
    return one_line(str(value))[:MAX_TEXT]


def _number(value: object) -> float | None:
    """None for what is no finite number, and for a whole number too large to count anything."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    counts = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62
    return float(value) if counts and isinstance(value, int) else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


# -- records beside results

Score = Number | None
Names = dict[str, Text]
HashText = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class _WindowCounts(_Checked):
    windows: WholeNumber
    positives: WholeNumber
    hours: Score = None


class _Counts(_Checked):
    train: _WindowCounts
    selection: _WindowCounts


class _AllCounts(_Counts):
    test: _WindowCounts
    base_train: _WindowCounts | None = None


class _Provenance(_Checked):
    versions: Names
    device: Text
    host: Text
    platform: Text
    git_commit: Text | None
    started: Text
    finished: Text
    train_seconds: Number
    threads: WholeNumber
    compile: Text
    checksum: Text


class _BaseProvenance(_Provenance):
    trained_as: HashText


class _Losses(_Checked):
    train: list[Score]
    val: list[Score]
    val_macro_f1: list[Score]


class _TrainingRecord(_Checked):
    best_epoch: WholeNumber
    epochs: WholeNumber
    updates: WholeNumber
    stopped_by: Literal["patience", "max_epochs", "no_epochs"]
    undefined: Names
    provenance: _Provenance


class _BaseRecord(_TrainingRecord):
    counts: _Counts
    provenance: _BaseProvenance
    channels: Annotated[int, Field(ge=1, le=2**20)]
    metrics: dict[str, Score]
    losses: _Losses
    code_fingerprints: dict[str, str]


class _ExperimentRecord(_TrainingRecord):
    counts: _AllCounts
    base_model_hash: HashText | None


class _ConfigRecord(_Checked):
    base_model_hash: HashText | None
    code_fingerprints: dict[str, str]


def base_record(job: Job, metadata: Mapping[str, Any], data: Mapping[str, str]) -> None:
    """Raises CorruptArtifact where the metadata of a base model from a node do not say what the
    head knows, or are not of their form.
    """
    options = job.base
    expected = {
        "base_model_hash": job.id,
        "base_participants": identity.base_participants(options),
        "target_participant": identity.target(options),
        "data_fingerprints": dict(data),
    }
    _compare(job, "metadata", metadata, expected)
    _same_options(job, metadata.get("config"), BaseOptions, identity.hash_fields)
    _own_code(job, options, metadata, data)
    _form(job, _BaseRecord, metadata)


def experiment_record(
    job: Job,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    data: Mapping[str, str],
) -> None:
    """The same for an experiment; `base`: metadata of its base model on the head, or None where it
    starts from none.
    """
    options, base = job.finetune, base or {}
    common: Json = {
        "fold": options.fold,
        "target_participant": identity.target(options),
        "base_weights_sha256": base.get("weights_sha256"),
    }
    fields = identity.experiment_fields(options)
    known = {
        "base_participants": identity.base_participants(options)
        if options.mode == "forest_base"
        else base.get("base_participants", []),
        "training_key": base.get("training_key"),
        "experiment_fields": fields,
    }
    _compare(job, "config.json", config, common | known | {"data_fingerprints": dict(data)})
    _compare(
        job,
        "metrics.json",
        metrics,
        common | {"mode": options.mode, "target_data_pct": options.target_data_pct},
    )
    _same_options(job, config.get("options"), FinetuneOptions, _named_by)
    _compare(job, "options", config["options"], {"prefix": job.values["prefix"]})
    _own_code(job, options, config, data)
    # The hash may be another one of the same training, from a grid with other participants: the
    # weights say what it started from.
    for where, record in (("config.json", config), ("metrics.json", metrics)):
        if (job.needs is None) != (record.get("base_model_hash") is None):
            _compare(job, where, record, {"base_model_hash": job.needs})
    _compare(job, "metrics.json", metrics, {"base_model_hash": config.get("base_model_hash")})
    _form(job, _ExperimentRecord, metrics)
    _form(job, _ConfigRecord, config)
    for name, value in metrics.items():
        scored = name.startswith(("val_", "test_", "base_", "threshold_")) and name not in (
            *common,
            "base_model_hash",
        )
        if scored and value is not None and _number(value) is None:
            raise CorruptArtifact(f"{job.id}: {name} in metrics.json is no number: it is not used")


def _own_code(
    job: Job, options: Options, record: Mapping[str, Any], data: Mapping[str, str]
) -> None:
    """The code that a result keeps is run when the result is used: it must be the head's own."""
    expected, kept = options.own_code, record.get("own_code") or {}
    right = isinstance(kept, dict) and kept.keys() == expected.keys()
    for kind, own in expected.items() if right else ():
        entry = kept[kind]
        source = entry.get("source") if isinstance(entry, dict) else None
        right = right and isinstance(source, str) and (entry.get("file"), entry.get("name")) == own
        right = right and sha256(str(source).encode(errors="replace")) == data.get(f"./{own[0]}")
    if not right:
        raise CorruptArtifact(
            f"{job.id}: the code that its record keeps is not the code here: it is not used"
        )


def _named_by(options: FinetuneOptions) -> Json:
    """What an experiment is named by; the list of people may have grown since."""
    return identity.experiment_fields(options) | {
        "fold": options.fold,
        "target": identity.target(options),
    }


def _compare(job: Job, where: str, record: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if not _same(record.get(name), value):
            raise CorruptArtifact(
                f"{job.id}: {name} in its {where} is {_text(record.get(name))[:100]}, not"
                f" {_text(value)[:100]}: it is not used"
            )


def _same(there: object, value: object) -> bool:
    """Equal, and true is not 1."""
    if isinstance(there, dict) and isinstance(value, dict):
        return there.keys() == value.keys() and all(_same(there[key], value[key]) for key in value)
    if isinstance(there, list) and isinstance(value, list):
        return len(there) == len(value) and all(map(_same, there, value))
    return isinstance(there, bool) == isinstance(value, bool) and there == value


def _same_options(job: Job, there: object, model: type[O], fields: Callable[[O], Json]) -> None:
    """As far as they name a result: what has no meaning in a job may differ."""
    try:
        # the head will read them all
        whole = isinstance(there, dict) and there.keys() >= model.model_fields.keys()
        same = (
            isinstance(there, dict)
            and whole
            and fields(model.parse(there, "its options", strict=True))
            == fields(model.model_construct(**job.values))
        )
    except (InputError, IndexError, TypeError, AssertionError):
        same = False
    if not same:
        raise CorruptArtifact(f"{job.id}: its record names other options: it is not used")


def _form(job: Job, model: type[_Checked], record: Mapping[str, Any]) -> None:
    try:
        model.model_validate(record)
    except ValidationError as error:
        problem = one_line(first_problem(error, record))[:MAX_TEXT]
        raise CorruptArtifact(f"{job.id}: its record: {problem}: it is not used") from None
