"""Reads a project folder after a trial and says what is wrong with it. It imports nothing of the
product: hashes, checksums and identities are computed anew from what the documents say, so that a
mistake in the product is not repeated here.

    problems = Checker(folder).check(planned)      # an empty list is a folder that can be trusted

What must hold: what stands under a final name and has its JSON is whole; every planned result is
there once, or its job is told as failed or blocked; nothing else is there; each belongs to the data
and to the base model that stand beside it; scores are those of the predictions.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]
TEMPORARY = ".writing."
EXPERIMENT = ("best_model.pt", "config.json", "losses.json", "predictions.csv")
# Options that are always in the base model hash; those that are with augmentation; those that are
# when they differ from this.
ALWAYS = (
    "fold",
    "n_base_participants",
    "model",
    "data_path",
    "window_size",
    "batch_size",
    "lr",
    "early_stopping_patience",
    "use_augmentation",
    "participants",
)
AUGMENTED = ("jitter_std", "magnitude_range", "aug_prob")
UNLESS: Json = {
    "seed": 0,
    "max_epochs": 500,
    "early_stopping_metric": "loss",
    "normalization": "none",
    "pos_weight": 1.0,
    "dropout": 0.0,
    "min_steps_per_epoch": 0,
    "base_order_seed": None,
    "base_channels": None,
    "num_blocks": None,
}
NOT_IN_TRAINING = ("fold", "participants", "n_base_participants", "data_path", "base_order_seed")


def sha256(content: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(content).hexdigest()


def sha16(value: Any) -> str:
    """How the documents hash a JSON value."""
    return sha256(json.dumps(value, sort_keys=True).encode())[:16]


def base_fields(options: Mapping[str, Any]) -> Json:
    """What enters the base model hash."""
    fields = {name: options[name] for name in ALWAYS}
    fields |= {name: options[name] for name in AUGMENTED if options["use_augmentation"]}
    fields |= {name: options[name] for name, default in UNLESS.items() if options[name] != default}
    if options["use_augmentation"] and options["time_warp_std"] != 0.2:
        fields["time_warp_std"] = options["time_warp_std"]
    return fields


def base_hash(options: Mapping[str, Any]) -> str:
    """The name of a base model."""
    return sha16(base_fields(options))


def base_people(options: Mapping[str, Any]) -> list[str]:
    """The first n participants without the target. Trials leave `base_order_seed` unset."""
    target = options["participants"][options["fold"]]
    return [name for name in options["participants"] if name != target][
        : options["n_base_participants"]
    ]


def training_key(options: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """The name of a distinct training."""
    fields = {
        name: value for name, value in base_fields(options).items() if name not in NOT_IN_TRAINING
    }
    return sha16({**fields, "base_participants": base_people(options), "data": dict(data)})


def sealed(path: Path) -> Json:
    """A JSON document whose checksum is right; ValueError otherwise."""
    raw = path.read_bytes()
    record = json.loads(raw)
    body = {
        **record,
        "provenance": {
            key: value for key, value in record["provenance"].items() if key != "checksum"
        },
    }
    if sha256(_canonical(body)) != record["provenance"]["checksum"]:
        raise ValueError("its checksum is not that of its content")
    if _canonical(record) != raw:
        raise ValueError("it is not in the one form in which JSON is written")
    return dict(record)


def _canonical(record: Any) -> bytes:
    return (json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def base_bytes(place: Path, name: str) -> Iterator[str]:
    """What is wrong with the bytes of a base model whose metadata stand under their final name."""
    record = sealed(place / f"{name}_metadata.json")
    yield from _unequal("base_model_hash", record["base_model_hash"], name)
    yield from _unequal(
        "weights_sha256", record["weights_sha256"], sha256((place / f"{name}.pt").read_bytes())
    )


def experiment_bytes(place: Path) -> Iterator[str]:
    """What is wrong with the bytes of an experiment whose metrics stand under their final name."""
    yield from _unequal(
        "files",
        sealed(place / "metrics.json")["files"],
        {file: sha256((place / file).read_bytes()) for file in EXPERIMENT},
    )


def broken(folder: Path) -> list[str]:
    """Everything that counts as published in a folder and whose bytes are not whole. Nothing is
    asked about its meaning.
    """
    checker = Checker(folder)
    bases, experiments = checker.published()
    for name in bases:
        checker._look(
            f"base_models/{name}", lambda name=name: base_bytes(folder / "base_models", name)
        )
    for name in experiments:
        checker._look(
            f"experiments/{name}", lambda name=name: experiment_bytes(folder / "experiments" / name)
        )
    return checker.problems


@dataclass(frozen=True)
class Planned:
    """What a trial asked for, read from its job files, and what was told to have failed or been
    blocked.
    """

    bases: Mapping[str, Json]  # by hash
    experiments: Mapping[str, Json]  # by folder below experiments/
    excused: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def read(cls, folder: Path, excused: Iterable[str] = ()) -> Planned:
        """From base_training_jobs.json and finetune_jobs.json."""
        bases = json.loads((folder / "base_training_jobs.json").read_bytes())
        tunes = json.loads((folder / "finetune_jobs.json").read_bytes())
        named = {
            f"{job['prefix']}/fold{job['fold']}_{job['participants'][job['fold']]}": job
            for job in tunes
        }
        return cls({base_hash(job): job for job in bases}, named, frozenset(excused))


class Checker:
    """One project folder, looked at without changing it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.problems = folder, list[str]()

    def check(self, planned: Planned | None = None, *, complete: bool = True) -> list[str]:
        """All that is wrong. `complete`: every planned result must be there; else only what is
        there is judged.
        """
        self.problems = []
        bases, experiments = self.published()
        for name in bases:
            self._look(f"base_models/{name}", lambda name=name: self.base(name))
        for name in experiments:
            self._look(f"experiments/{name}", lambda name=name: self.experiment(name, bases))
        if planned:
            self._compare("base model", set(bases), planned.bases, planned.excused, complete)
            self._compare(
                "experiment", set(experiments), planned.experiments, planned.excused, complete
            )
            self._options(planned, bases, experiments)
        if complete:
            self._leftovers()
        return self.problems

    def published(self) -> tuple[list[str], list[str]]:
        """What counts as published: base models whose metadata, experiments whose metrics stand
        under their final names.
        """
        bases = [
            path.name.removesuffix("_metadata.json")
            for path in sorted(self.folder.glob("base_models/*_metadata.json"))
        ]
        experiments = [
            str(path.parent.relative_to(self.folder / "experiments"))
            for path in sorted(self.folder.glob("experiments/*/*/metrics.json"))
        ]
        return [name for name in bases if not name.startswith(".")], experiments

    def base(self, name: str) -> Iterator[str]:
        """What is wrong with one base model."""
        place = self.folder / "base_models"
        yield from base_bytes(place, name)
        record = sealed(place / f"{name}_metadata.json")
        config = record["config"]
        yield from _unequal("the hash of its configuration", base_hash(config), name)
        people = base_people(config)
        yield from _unequal("base_participants", record["base_participants"], people)
        yield from _unequal(
            "target_participant",
            record["target_participant"],
            config["participants"][config["fold"]],
        )
        data = self.data(
            config["data_path"],
            [f"{person}_{split}.pt" for person in people for split in ("train", "val", "test")],
        )
        yield from _unequal("data_fingerprints", record["data_fingerprints"], data)
        yield from _unequal("training_key", record["training_key"], training_key(config, data))
        for other in self.folder.glob("base_models/*_metadata.json"):
            twin = json.loads(other.read_bytes())
            if (
                twin["training_key"] == record["training_key"]
                and twin["weights_sha256"] != record["weights_sha256"]
            ):
                yield (
                    f"has other weights than {other.name}, which says that it is the same training"
                )

    def experiment(self, name: str, bases: Sequence[str]) -> Iterator[str]:
        """What is wrong with one experiment."""
        place = self.folder / "experiments" / name
        yield from experiment_bytes(place)
        metrics = sealed(place / "metrics.json")
        config = json.loads((place / "config.json").read_bytes())
        options = config["options"]
        target = options["participants"][options["fold"]]
        yield from _unequal(
            "its folder", name, f"{options['prefix']}/fold{options['fold']}_{target}"
        )
        files = [f"{target}_{split}.pt" for split in ("train", "val", "test")]
        if options["mode"] == "full_fine_tuning":
            files += [
                f"{person}_{split}.pt"
                for person in config["base_participants"]
                for split in ("train", "val")
            ]
        yield from _unequal(
            "data_fingerprints", config["data_fingerprints"], self.data(options["data_path"], files)
        )
        for key in ("mode", "target_data_pct", "fold"):
            yield from _unequal(f"{key} in metrics.json", metrics[key], options[key])
        yield from _unequal(
            "base_weights_sha256 in metrics.json",
            metrics["base_weights_sha256"],
            config["base_weights_sha256"],
        )
        if options["mode"] != "target_only":
            yield from self._its_base(config, bases)
        yield from self._predictions(place, metrics)

    def _its_base(self, config: Json, bases: Sequence[str]) -> Iterator[str]:
        used = config["base_model_hash"]
        if used not in bases:
            yield f"base model {used}, from which it starts, is not published"
            return
        record = json.loads((self.folder / f"base_models/{used}_metadata.json").read_bytes())
        for key, there in (
            ("base_weights_sha256", "weights_sha256"),
            ("training_key", "training_key"),
            ("base_participants", "base_participants"),
        ):
            yield from _unequal(f"{key}, against its base model,", config[key], record[there])
        if config["target_participant"] in record["base_participants"]:
            yield "its target trained its base model"

    def _predictions(self, place: Path, metrics: Json) -> Iterator[str]:
        with (place / "predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
        yield from _unequal(
            "the number of test predictions", len(rows), metrics["counts"]["test"]["windows"]
        )
        for column, key in (("p_finetuned", "test_macro_f1"), ("p_base", "base_test_macro_f1")):
            if metrics[key] is not None:
                score = _macro_f1([(int(row["label"]), float(row[column])) for row in rows])
                if score is None or abs(score - metrics[key]) > 1e-9:
                    yield f"{key} is {metrics[key]}, its predictions say {score}"

    def data(self, data_path: str, files: Iterable[str]) -> dict[str, str]:
        """Fingerprints of the data as they are now."""
        return {name: sha256((self.folder / data_path / name).read_bytes()) for name in files}

    # -- the folder as a whole

    def _look(self, what: str, problems: Any) -> None:
        try:
            self.problems += [f"{what}: {problem}" for problem in problems()]
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            self.problems.append(f"{what}: {type(error).__name__}: {error}")

    def _compare(
        self,
        what: str,
        there: set[str],
        planned: Mapping[str, Json],
        excused: frozenset[str],
        complete: bool,
    ) -> None:
        self.problems += [
            f"{what} {name} is there, nobody asked for it" for name in sorted(there - set(planned))
        ]
        if complete:
            self.problems += [
                f"{what} {name} is missing, and not told as failed or blocked"
                for name in sorted(set(planned) - there - excused)
            ]
            self.problems += [
                f"{what} {name} is there, and told as failed or blocked"
                for name in sorted(there & excused)
            ]

    def _options(self, planned: Planned, bases: Sequence[str], experiments: Sequence[str]) -> None:
        """Each result is of the options that were asked for."""
        for names, jobs, file, key in (
            (bases, planned.bases, "base_models/{}_metadata.json", "config"),
            (experiments, planned.experiments, "experiments/{}/config.json", "options"),
        ):
            for name in set(names) & set(jobs):
                try:
                    options = json.loads((self.folder / file.format(name)).read_bytes())[key]
                except (OSError, ValueError, KeyError, TypeError):  # told already
                    continue
                different = [
                    key
                    for key, value in jobs[name].items()
                    if key in options and key not in _FREE and options[key] != value
                ]
                if different:
                    self.problems.append(
                        f"{name}: has other options than were asked for: {', '.join(different)}"
                    )

    def _leftovers(self) -> None:
        """Nothing that is neither a result nor asked for."""
        for place in ("base_models", "experiments", "incoming"):
            for path in (self.folder / place).rglob("*"):
                if path.name.startswith(TEMPORARY) or (place == "incoming" and path.is_file()):
                    self.problems.append(f"{path.relative_to(self.folder)}: left over")
        for path in (self.folder / "base_models").glob("*.pt"):
            if not path.with_name(f"{path.stem}_metadata.json").exists():
                self.problems.append(f"{path.relative_to(self.folder)}: weights without metadata")


# What a job says and its result records in another way.
_FREE = ("device", "prefix", "seed_finetune", "overwrite", "base_model_hash", "threads", "compile")


def _unequal(what: str, there: object, expected: object) -> Iterator[str]:
    if there != expected:
        yield f"{what} is {there}, {expected} is right"


def _macro_f1(rows: Sequence[tuple[int, float]]) -> float | None:
    """Mean F1 of both classes at probability 0.5; None where a class has neither labels nor
    predictions.
    """
    scores = []
    for value in (0, 1):
        hit = sum(label == value and (p >= 0.5) == bool(value) for label, p in rows)
        wrong = sum((label == value) != ((p >= 0.5) == bool(value)) for label, p in rows)
        if hit + wrong == 0:
            return None
        scores.append(2 * hit / (2 * hit + wrong))
    return sum(scores) / 2


def contents(folder: Path, *, provenance: bool = False) -> dict[str, bytes]:
    """Every published file: as far as two runs must agree on it, or (`provenance`) every byte, so
    that a result made twice is noticed.
    """
    found = {}
    for top in ("base_models", "experiments"):
        for path in sorted((folder / top).rglob("*")):
            if (
                not path.is_file()
                or path.name.startswith(".")
                or (path.name == "train.log" and not provenance)
            ):
                continue
            raw = path.read_bytes()
            if not provenance and (
                path.name == "metrics.json" or path.name.endswith("_metadata.json")
            ):
                raw = _canonical(
                    {key: value for key, value in json.loads(raw).items() if key != "provenance"}
                )
            found[str(path.relative_to(folder))] = raw
    return found


def whole(folder: Path) -> dict[str, bytes]:
    """Every byte of what is published and whole."""
    checker = Checker(folder)
    bases, experiments = checker.published()
    found = contents(folder, provenance=True)
    kept: dict[str, bytes] = {}
    for name in bases:
        if not _problems(checker, f"base_models/{name}", lambda name=name: checker.base(name)):
            kept |= {
                file: found[file]
                for file in (f"base_models/{name}.pt", f"base_models/{name}_metadata.json")
            }
    for name in experiments:
        if not _problems(
            checker, f"experiments/{name}", lambda name=name: checker.experiment(name, bases)
        ):
            kept |= {
                file: content
                for file, content in found.items()
                if file.startswith(f"experiments/{name}/")
            }
    return kept


def _problems(checker: Checker, what: str, problems: Any) -> list[str]:
    checker.problems = []
    checker._look(what, problems)
    return checker.problems
