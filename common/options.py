"""Every training option, declared once: name, type, bounds, default, help, and whether it enters
the base model hash.

argparse, job files, logs and identities all come from these two models: `BaseOptions`
(train_base.py) and `FinetuneOptions` (train_finetune.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from common.artifacts import to_json
from common.errors import InputError, nearest
from common.validation import first_problem

T = TypeVar("T")
Hashed = Literal[
    "always", "with_augmentation", "with_augmentation_unless_default", "unless_default", "never"
]


def safe_name(name: str) -> str:
    """A name that becomes part of a file name: no separators, no leading '-' or '.', nothing
    unprintable.
    """
    if (
        not name
        or name != name.strip()
        or name[0] in "-."
        or "/" in name
        or "\\" in name
        or ".." in name
        or not name.isprintable()
    ):
        raise ValueError(
            f"{name!r} cannot be part of a file name (no '/', '\\', '..', control characters, outer"
            " blanks, leading '-' or '.')"
        )
    if len(name.encode()) > 100:
        raise ValueError(f"{name[:20]!r}... is longer than 100 bytes")
    return name


def _data_path(text: str) -> str:
    """Normalised, and relative when it lies inside the project folder: it is part of the hash."""
    if not text or text.startswith("-") or not text.isprintable():
        raise ValueError(f"{text!r} is not a folder name")
    path = os.path.normpath(text)
    if os.path.isabs(path):
        path = _inside(Path(path))
    if path.split(os.sep)[0] == "..":
        raise ValueError(
            f"{text!r} leaves the project folder: use a path inside it (a link is fine) or an"
            " absolute one"
        )
    return path


def _inside(path: Path) -> str:
    """An absolute path, relative where it leads through the project folder, by whatever links that
    is reached; links inside it are not followed.
    """
    here = Path.cwd()
    root = next(
        (
            folder
            for folder in (path, *path.parents)
            if folder == here or os.path.realpath(folder) == str(here)
        ),
        None,
    )
    return str(path if root is None else path.relative_to(root))


def _project_file(text: str) -> str:
    """A file, relative when it lies inside the project folder."""
    if not text or text.startswith("-") or not text.isprintable() or text.endswith("/"):
        raise ValueError(f"{text!r} is not a file name")
    return _data_path(text)


def own_code(text: str) -> tuple[str, str] | None:
    """(file, name) of 'FILE.py:NAME', or None for the name of something built in."""
    file, _, name = text.rpartition(":")
    return (file, name) if file.endswith(".py") else None


def _own_code(text: str) -> str:
    """'FILE.py:NAME', the file inside the project folder and its path normalised: it is part of the
    hash.
    """
    own = own_code(text)
    if own is None or not own[1].isidentifier():
        raise ValueError(f"{text!r}: FILE.py:NAME is needed, a name defined in a Python file")
    file = _project_file(own[0])
    if os.path.isabs(file):
        raise ValueError(f"{text!r} lies outside the project folder: copy the file into it")
    return f"{file}:{own[1]}"


def _hash(text: str) -> str:
    if len(text) != 16 or set(text) - set("0123456789abcdef"):
        raise ValueError("16 hex digits are needed, the name of a file in base_models/")
    return text


def _network(text: str) -> str:
    return _own_code(text) if ".py" in text else safe_name(text)


def _json_object(value: object) -> object:
    """On the command line an object is JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=_once)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("a JSON object is needed, as in '{\"width\": 32}'") from None


def _held_by_json(value: T) -> T:
    """What cannot be written into a result is refused before the training, not after it."""
    try:
        to_json(value)
    except (ValueError, RecursionError):
        raise ValueError(
            "holds what JSON cannot (NaN, Infinity, a number beyond 1e308, half a character, deep"
            " nesting): give other values"
        ) from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _unique([name for name, _ in pairs])
    return dict(pairs)


def _unique(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} given twice")
    return names


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _numbers_only(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def _lowest_first(values: list[float]) -> list[float]:
    if values[0] > values[1]:
        raise ValueError("the lowest factor comes first")
    return values


def _device(text: str) -> str:
    if not re.fullmatch("auto|cpu|[0-9]{1,4}", text):
        raise ValueError("auto, cpu or the number of a GPU is needed")
    return text


def _rounded(value: float) -> float:
    """To 12 significant digits."""
    return float(f"{value:.12g}")


SafeName = Annotated[str, AfterValidator(safe_name)]
Participants = Annotated[list[SafeName], Field(min_length=2), AfterValidator(_unique)]
Device = Annotated[str, BeforeValidator(_text), AfterValidator(_device)]
ProjectFile = Annotated[str, AfterValidator(_project_file)]
OwnCode = Annotated[str, AfterValidator(_own_code)]
Keywords = Annotated[dict[str, Any], BeforeValidator(_json_object), AfterValidator(_held_by_json)]
Globs = Annotated[list[str], AfterValidator(_held_by_json)]
DataPath = Annotated[str, AfterValidator(_data_path)]
Hash = Annotated[str, AfterValidator(_hash)]
# 0.1 + 0.2 and 0.3 are one value, with one hash and one prefix
Real = Annotated[float, BeforeValidator(_numbers_only), AfterValidator(_rounded)]
Fraction = Annotated[Real, Field(gt=0, le=1)]
Probability = Annotated[Real, Field(ge=0, le=1)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
Dropout = Annotated[Real, Field(ge=0, lt=1)]
MagnitudeRange = Annotated[
    list[Positive], Field(min_length=2, max_length=2), AfterValidator(_lowest_first)
]
SelectionMetric = Literal["loss", "macro_f1"]
OWN = "_finetune"  # ends the name of a fine-tune's own value


def option(default: Any, text: str, hashed: Hashed, *, shapes: bool = True) -> Any:
    """One option: default, help, its part in the base model hash, and whether a fine-tune's result
    depends on it.
    """
    return Field(
        default,
        description=text,
        json_schema_extra={"hashed": hashed, "shapes": shapes},
        validate_default=True,
    )


class Options(BaseModel):
    """What base training and fine-tuning share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    fold: Count = option(
        0, "which participant is the target: participants[fold]", "always", shapes=False
    )
    device: Device = option(
        "auto", "GPU number, 'cpu', or 'auto': GPU 0 where there is one", "never", shapes=False
    )
    model: Annotated[str, AfterValidator(_network)] = option(
        "test", "network by name: test, cnn64; or your own: FILE.py:NAME", "always"
    )
    model_options: Keywords = option(
        {}, "keyword arguments of your own network, a JSON object", "unless_default"
    )
    base_channels: Annotated[int, Field(ge=1, le=4096)] | None = option(
        None, "channels of the first block (unset: the network's own)", "unless_default"
    )
    num_blocks: Annotated[int, Field(ge=1, le=32)] | None = option(
        None, "number of blocks (unset: the network's own)", "unless_default"
    )
    data_path: DataPath = option(
        "data/001_60s_window",
        "folder of the prepared data set: any folder, relative to the project folder or absolute",
        "always",
    )
    window_size: Annotated[int, Field(ge=1, le=10_000_000)] = option(
        3000, "samples in a window (unset: that of dataset.json; without one the default)", "always"
    )
    participants: Participants | None = option(
        None, "everyone, in order (unset: those of dataset.json)", "always", shapes=False
    )
    n_base_participants: Count | Literal["all"] = option(
        "all",
        "how many participants the base model learns from, or 'all' (then another participant"
        " changes every base model)",
        "always",
    )
    base_order_seed: Seed | None = option(
        None,
        "permutes which base participants come first, per fold (unset: as listed)",
        "unless_default",
    )
    batch_size: BatchSize = option(64, "windows in a batch", "always")
    lr: Positive = option(0.0003, "learning rate of Adam", "always")
    max_epochs: Epochs = option(500, "epochs at most", "unless_default")
    early_stopping_patience: Epochs = option(
        50, "epochs without improvement before base training stops", "always"
    )
    base_selection: Literal["test", "val"] = option(
        "test",
        "the base participants' windows on which base training stops: test (it learns from train"
        " and val), or val (it learns from train alone and never reads their test windows)",
        "unless_default",
    )
    early_stopping_metric: SelectionMetric = option(
        "loss", "what must improve on the selection windows", "unless_default"
    )
    normalization: Literal["none", "train"] = option(
        "none",
        "'train': per-channel mean and SD of the training windows, kept in the model",
        "unless_default",
    )
    pos_weight: Positive | Literal["balanced"] = option(
        1.0, "weight of positive windows in the loss, or 'balanced'", "unless_default"
    )
    dropout: Dropout = option(0.0, "dropout before the last layer", "unless_default")
    min_steps_per_epoch: Count = option(
        0,
        "small sets are reshuffled and repeated up to this many updates an epoch",
        "unless_default",
    )
    use_augmentation: bool = option(False, "augment training windows", "always")
    jitter_std: NonNegative = option(
        0.005,
        "SD of added noise: in the data's units, or with normalization train in each channel's SDs",
        "with_augmentation",
    )
    magnitude_range: MagnitudeRange = option(
        [0.98, 1.02], "lowest and highest factor of magnitude scaling", "with_augmentation"
    )
    aug_prob: Probability = option(
        0.3, "probability of each augmentation, per window", "with_augmentation"
    )
    time_warp_std: Probability = option(
        0.0, "SD of the time warp's knots (0: no warp)", "with_augmentation_unless_default"
    )
    augmentation: OwnCode | None = option(
        None,
        "your own augmentation, FILE.py:NAME, instead of the built-in three (with"
        " --use_augmentation)",
        "with_augmentation_unless_default",
    )
    init_weights: ProjectFile | None = option(
        None, "state dict that base training starts from", "unless_default"
    )
    weight_decay: NonNegative = option(
        0.0, "decoupled weight decay (AdamW) where it is not 0", "unless_default"
    )
    seed: Seed = option(0, "seed of base training", "unless_default")
    threads: Annotated[int, Field(ge=1, le=1024)] = option(1, "CPU threads", "never", shapes=False)
    compile: Literal["off", "on"] = option("off", "'on': torch.compile", "never", shapes=False)

    @model_validator(mode="after")
    def _of_own_code(self) -> Options:
        if own_code(self.model) is None:
            if self.model_options:
                raise ValueError(
                    f"model_options: model {self.model} is built in and takes --base_channels,"
                    " --num_blocks and --dropout; these are for --model FILE.py:NAME"
                )
        else:
            for name in ("base_channels", "num_blocks", "dropout", f"dropout{OWN}"):
                if getattr(self, name, None):
                    raise ValueError(
                        f"{name}: is for the built-in networks; give it to {self.model} in"
                        " --model_options"
                    )
        unused = self.augmentation is not None and not self.use_augmentation
        unused = unused or getattr(self, f"augmentation{OWN}", None) is not None
        if unused and not self.augments:
            raise ValueError("augmentation: is applied only with --use_augmentation: add it")
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Options:
        if self.participants is not None and self.fold >= len(self.participants):
            raise ValueError(
                f"fold: {self.fold} is out of range, there are {len(self.participants)}"
                " participants (folds count from 0)"
            )
        if (
            self.participants is not None
            and self.n_base_participants != "all"
            and self.n_base_participants >= len(self.participants)
        ):
            raise ValueError(
                f"n_base_participants: {self.n_base_participants} asked for, but without the target"
                f" there are {len(self.participants) - 1}: ask for fewer, or for all"
            )
        return self

    @property
    def augments(self) -> bool:
        """Whether this very training augments: a fine-tune may have its own choice."""
        own = getattr(self, f"use_augmentation{OWN}", None)
        return self.use_augmentation if own is None else bool(own)

    @property
    def own_code(self) -> dict[str, tuple[str, str]]:
        """File and name of the user's own code that this training runs, by option."""
        augmentation = getattr(self, f"augmentation{OWN}", None) or self.augmentation
        texts = {"model": self.model, "augmentation": augmentation if self.augments else None}
        return {name: found for name, text in texts.items() if (found := own_code(text or ""))}

    def files_by_option(self) -> dict[str, str]:
        """The user's own files that this training reads, by option: below the project folder
        ('./net.py') or, for initial weights, perhaps absolute.
        """
        names = {option: file for option, (file, _) in self.own_code.items()}
        if getattr(self, f"augmentation{OWN}", None) and "augmentation" in names:
            names[f"augmentation{OWN}"] = names.pop("augmentation")
        if isinstance(self, BaseOptions) and self.init_weights is not None:
            names["init_weights"] = self.init_weights
        return {
            option: name if os.path.isabs(name) else f"./{name}" for option, name in names.items()
        }

    def own_files(self) -> list[str]:
        """Those files, each once."""
        return list(dict.fromkeys(self.files_by_option().values()))

    def resolved(self: O, known: Sequence[str] | None) -> O:
        """A copy with participants filled in (from `known`, those of dataset.json) and 'all' as a
        number: one configuration has one form.

        Raises:
            InputError: the participants are not known, or an option does not fit them.
        """
        participants = self.participants or (list(known) if known else None)
        if participants is None:
            raise InputError(
                f"{self.data_path} has no dataset.json to take the participants from: give"
                " --participants (in a grid: among 'fixed')"
            )
        number = (
            len(participants) - 1 if self.n_base_participants == "all" else self.n_base_participants
        )
        given = self.model_dump(exclude_unset=True) | {
            "participants": participants,
            "n_base_participants": number,
        }
        return type(self).parse(given, "options")

    @classmethod
    def parse(cls: type[O], values: Mapping[str, Any], where: str, *, strict: bool = False) -> O:
        """Validate `values`; keys that begin with '_' are ignored.

        Raises:
            InputError: one line with `where`, the option, what is wrong with it and the nearest
            known name.
        """
        values = {key: value for key, value in values.items() if not key.startswith("_")}
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown:
            raise InputError(
                f"{where}: unknown option {unknown[0]!r}{nearest(unknown[0], cls.model_fields)}"
            )
        try:
            return cls.model_validate(values, strict=strict)
        except ValidationError as error:
            problem = first_problem(error, values, show_value=True)
            raise InputError(f"{where}: {problem}") from None


class BaseOptions(Options):
    """Options of train_base.py."""

    prefix: SafeName | None = option(
        None, "a name for the log; has no other effect", "never", shapes=False
    )

    @model_validator(mode="after")
    def _needs_base_participants(self) -> BaseOptions:
        if self.n_base_participants == 0:
            raise ValueError("n_base_participants: a base model needs at least 1 participant")
        return self


Mode = Literal[
    "full_fine_tuning",
    "target_only_fine_tuning",
    "head_only_fine_tuning",
    "target_only",
    "majority",
    "forest_target_only",
    "forest_base",
]


class ModeWords(NamedTuple):
    """How a mode is called in a sentence or a figure, and as the head of a narrow column."""

    long: str
    short: str


# In the order of the report.
MODE_WORDS = {
    "target_only_fine_tuning": ModeWords("fine-tuned, target only", "fine-tuned"),
    "full_fine_tuning": ModeWords("fine-tuned, with base data", "full"),
    "head_only_fine_tuning": ModeWords("fine-tuned, head only", "head only"),
    "target_only": ModeWords("from scratch", "from scratch"),
    "forest_target_only": ModeWords("random forest, target only", "forest"),
    "forest_base": ModeWords("random forest, base participants", "forest of base"),
    "majority": ModeWords("majority class", "majority"),
}
# Modes without a network, and those that start from no base model.
WITHOUT_NETWORK = frozenset({"majority", "forest_target_only", "forest_base"})
FROM_SCRATCH = WITHOUT_NETWORK | {"target_only"}
# Modes that learn from the target alone.
TARGET_ALONE = FROM_SCRATCH - {"forest_base"}


def own(name: str) -> Any:
    """A fine-tune's own value of an option that its base model has as well."""
    return option(None, f"the fine-tune's own {name} (unset: {name})", "never")


class FinetuneOptions(Options):
    """Options of train_finetune.py. `NAME_finetune` is for jobs, whose NAME is the base model's."""

    base_model_hash: Hash | None = option(
        None, "the base model to start from", "never", shapes=False
    )
    prefix: SafeName | None = option(
        None, "folder below experiments/ (unset: made from the options)", "never", shapes=False
    )
    mode: Mode = option(
        "target_only_fine_tuning",
        "what is learnt, from which data ('target_only': from scratch; 'majority' and the random"
        " forests: baselines without a network)",
        "never",
    )
    target_data_pct: Fraction = option(
        1.0, "fraction of the target's training windows, in (0, 1]", "never"
    )
    early_stopping_patience_target: Epochs = option(
        50, "epochs without improvement before fine-tuning stops", "never"
    )
    target_val: Literal["full", "matched", "none"] = option(
        "full",
        "the target's selection windows: all, the same fraction, or none (exactly max_epochs)",
        "never",
    )
    target_order: Literal["random", "time", "block"] = option(
        "random",
        "'time': the earliest windows; 'block': one stretch of windows at a random place, as real"
        " enrolment gives",
        "never",
    )
    seed_finetune: Seed | None = option(
        None, "seed of subset, order and initialisation of a fine-tune (unset: seed)", "never"
    )
    freeze: Globs = option(
        [], "names of parameters that a fine-tune leaves alone; * stands for anything", "never"
    )
    lr_finetune: Positive | None = own("lr")
    batch_size_finetune: BatchSize | None = own("batch_size")
    max_epochs_finetune: Epochs | None = own("max_epochs")
    min_steps_per_epoch_finetune: Count | None = own("min_steps_per_epoch")
    early_stopping_metric_finetune: SelectionMetric | None = own("early_stopping_metric")
    pos_weight_finetune: Positive | Literal["balanced"] | None = own("pos_weight")
    weight_decay_finetune: NonNegative | None = own("weight_decay")
    dropout_finetune: Dropout | None = own("dropout")
    use_augmentation_finetune: bool | None = own("use_augmentation")
    jitter_std_finetune: NonNegative | None = own("jitter_std")
    magnitude_range_finetune: MagnitudeRange | None = own("magnitude_range")
    aug_prob_finetune: Probability | None = own("aug_prob")
    time_warp_std_finetune: Probability | None = own("time_warp_std")
    augmentation_finetune: OwnCode | None = own("augmentation")
    overwrite: bool = option(
        False, "replace results of another configuration", "never", shapes=False
    )

    @classmethod
    @cache
    def own_names(cls) -> tuple[str, ...]:
        """Options of which a fine-tune may have another value than its base model."""
        return tuple(name for name in cls.model_fields if f"{name}{OWN}" in cls.model_fields)

    def effective(self) -> FinetuneOptions:
        """A copy with the values that hold for the fine-tune itself, not for its base model."""
        values = {name: getattr(self, f"{name}{OWN}") for name in self.own_names()}
        values["seed"] = None  # see identity.effective_seed
        return self.model_copy(
            update={name: value for name, value in values.items() if value is not None}
        )

    @model_validator(mode="after")
    def _base_or_none(self) -> FinetuneOptions:
        if self.mode in FROM_SCRATCH and self.base_model_hash is not None:
            raise ValueError(f"mode: {self.mode} trains from scratch, it takes no base_model_hash")
        if self.mode not in TARGET_ALONE and self.n_base_participants == 0:
            raise ValueError(
                "n_base_participants: 0 is only for mode target_only, majority or"
                " forest_target_only"
            )
        return self


O = TypeVar("O", bound=Options)  # noqa: E741


def hashed(name: str) -> Hashed:
    """How an option enters the base model hash."""
    how: Hashed = _extra(BaseOptions.model_fields[name])["hashed"]
    return how


def shapes_result(name: str) -> bool:
    """Whether a fine-tune's result depends on this option (beyond fold, participants and the base
    model itself).
    """
    return bool(_extra(FinetuneOptions.model_fields[name])["shapes"])


def _extra(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def add_arguments(parser: argparse.ArgumentParser, model: type[Options]) -> None:
    """One flag an option. Nothing has a default here: what was not given stays unset."""
    for name, field in model.model_fields.items():
        default = "" if field.default is None else f" (default: {_shown(field.default)})"
        common: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": f"{field.description}{default}".replace("%", "%%"),
        }
        if field.annotation in (bool, bool | None):
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **common)
        elif _is_list(field.annotation):
            parser.add_argument(
                f"--{name}",
                nargs=2 if name.startswith("magnitude_range") else "+",
                metavar=name.upper(),
                **common,
            )
        else:
            parser.add_argument(
                f"--{name}", metavar=_choices(field.annotation) or name.upper(), **common
            )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(map(_is_list, get_args(annotation)))


def _choices(annotation: Any) -> str | None:
    return (
        "{" + ",".join(map(str, get_args(annotation))) + "}"
        if get_origin(annotation) is Literal
        else None
    )


def from_flags(namespace: argparse.Namespace, model: type[O]) -> O:
    """Options from parsed flags. `--participants a,b` and `a, b` are `--participants a b`: one name
    alone would be refused in any case, and no name begins or ends with a comma.

    Raises:
        InputError: a value is out of bounds or of the wrong kind.
    """
    values = {
        name: getattr(namespace, name) for name in model.model_fields if hasattr(namespace, name)
    }
    people = values.get("participants") or []
    if len(people) == 1 or any(name[:1] == "," or name[-1:] == "," for name in people):
        parts = [part.strip() for name in people for part in name.split(",")]
        values["participants"] = [part for part in parts if part]
    return model.parse(values, "options")


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """The flags that express `values`; None is expressed by leaving the flag out."""
    argv: list[str] = []
    for name, value in values.items():
        if value is None or value == [] or name.startswith("_"):
            continue
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, dict):
            argv.append(f"--{name}={json.dumps(value)}")
        elif isinstance(value, (list, tuple)):
            argv += [f"--{name}", *map(str, value)]
        else:
            argv.append(f"--{name}={value}")
    return argv
