"""A finished model, opened from its result folder, or from a base model's two files, alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import artifacts
from common.cli import visible
from common.data.dataset import open_split
from common.data.manifest import WindowForm, file_sha256
from common.errors import BaseModelNotFound, CorruptArtifact, InputError
from common.options import WITHOUT_NETWORK, FinetuneOptions
from common.paths import BASE_MODELS, EXPERIMENT_METRICS, Paths, split_file
from common.training import loop, plugins, setup
from common.training.backends import backend_for
from common.training.networks import Model

HASH = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class FinishedModel:
    """A published result, ready to use.

    Attributes:
        name: for legends: the experiment's folder, or the base model's hash.
        network: with its weights, on the CPU.
        input: what a recording must be (see `setup.model_input`); None where it is not
            recorded.
        threshold_tuned: the threshold that maximised macro F1 on its own validation windows.
        scores: of the test windows that it was scored on, by name.
    """

    name: str
    network: Model
    options: FinetuneOptions
    input: Mapping[str, Any] | None
    weights_sha256: str
    base_model_hash: str | None
    threshold_tuned: float | None
    scores: Mapping[str, float | None]
    people: tuple[str, ...]  # whose test windows it was scored on
    fingerprints: Mapping[str, str]

    @property
    def channels(self) -> int:
        return len(self.network.mean)

    def probabilities(self, blocks: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Probability of class 1 of every window of `blocks`, each [some, channels, samples]."""
        backend = backend_for(self.network)
        size = backend.evaluation_batch(self.options.window_size)
        found = [np.zeros(0, np.float32)]
        with torch.inference_mode():
            for x in _batches(blocks, size):
                found.append(torch.sigmoid(backend.logits(x)).numpy())
        return np.concatenate(found)

    def windows(
        self, root: Path, split: str, most: int | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """X and y of its people's windows of `split`, about `most` of them, evenly taken; None
        where the data folder is not below `root`, or no longer that of the model.
        """
        x, y = list[Tensor](), list[Tensor]()
        for person in self.people:
            file = split_file(person, split)
            path = root / self.options.data_path / file
            try:
                same = file_sha256(path) == self.fingerprints.get(file)
            except OSError:
                return None
            if not same:
                return None
            opened = open_split(path.parent, person, split)
            step = 1 if most is None else max(1, len(opened) * len(self.people) // most)
            x.append(opened.x[::step])
            y.append(opened.y[::step])
        return torch.cat(x), torch.cat(y)


def _batches(blocks: Iterable[NDArray[np.float32]], size: int) -> Iterable[Tensor]:
    """Windows `size` at a time, whatever the blocks' sizes."""
    rest: list[Tensor] = []
    waiting = 0
    for block in blocks:
        rest.append(torch.from_numpy(np.ascontiguousarray(block)))
        waiting += len(block)
        while waiting >= size:
            x = torch.cat(rest)
            yield x[:size]
            rest, waiting = [x[size:]], waiting - size
    if waiting:
        yield torch.cat(rest)


def open_model(text: str, paths: Paths) -> FinishedModel:
    """The model that `text` names: an experiment's folder, a base model's hash or its .pt file.

    Raises:
        InputError: nothing is published there. CorruptArtifact: it is damaged.
    """
    path = Path(text)
    if HASH.fullmatch(text) and not path.exists():
        return _base(paths, text)
    if path.suffix == ".pt" and HASH.fullmatch(path.stem):
        return _base(Paths(path.parent.parent), path.stem, path.parent)
    if path.is_dir():
        try:
            return _experiment(path)
        except FileNotFoundError:
            within = sorted(file.parent for file in path.glob(f"*/{EXPERIMENT_METRICS}"))
            hint = f"; did you mean {within[0]}?" if within else ""
            raise InputError(
                f"{path}: no {EXPERIMENT_METRICS} in it, so it is no published experiment{hint}"
            ) from None
    raise InputError(
        f"{text}: neither the folder of an experiment (experiments/PREFIX/foldN_NAME) nor the hash"
        f" of a base model in {BASE_MODELS}/"
    )


def _base(paths: Paths, base_hash: str, folder: Path | None = None) -> FinishedModel:
    if folder is not None and folder.name != BASE_MODELS:
        raise InputError(f"{folder}: base models lie in a folder called {BASE_MODELS}")
    try:
        base = artifacts.open_base_model(paths, base_hash)
    except BaseModelNotFound as error:
        raise InputError(str(error)) from None
    record = base.metadata
    with _read(paths.base_metadata(base_hash)):
        options = _options(record["config"], str(paths.base_metadata(base_hash)))
        network = _network(options, record, base.weights, paths.base_models)
        return FinishedModel(
            base_hash,
            network,
            options,
            _form(record.get("input") or setup.model_input(paths, options), network, options),
            str(record["weights_sha256"]),
            base_hash,
            None,
            {f"test_{name}": value for name, value in record["metrics"].items()},
            tuple(map(str, record["base_participants"])),
            dict(record["data_fingerprints"]),
        )


def _experiment(folder: Path) -> FinishedModel:
    found = artifacts.open_experiment(folder)
    config, metrics = found.config, found.metrics
    root = folder.resolve().parent.parent.parent  # of the project, unless the folder was copied
    with _read(folder):
        options = _options(config["options"], f"{folder}/config.json")
        if options.mode in WITHOUT_NETWORK:
            raise InputError(
                f"{folder}: mode {options.mode} is a baseline for the report and has no network:"
                " give a fine-tune or a base model"
            )
        network = _network(options, config, found.contents["best_model.pt"], folder)
        return FinishedModel(
            visible(folder.resolve().name),
            network,
            options,
            _form(config.get("input") or setup.model_input(Paths(root), options), network, options),
            str(metrics["files"]["best_model.pt"]),
            config.get("base_model_hash"),
            _threshold(metrics.get("threshold_tuned")),
            {name: value for name, value in metrics.items() if name.startswith("test_")},
            (str(config["target_participant"]),),
            dict(config["data_fingerprints"]),
        )


@contextlib.contextmanager
def _read(path: Path) -> Iterator[None]:
    """Raise CorruptArtifact for a record of another form, though its checksum is right."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CorruptArtifact(
            f"{path}: not the record of a finished model ({type(error).__name__}): it is not used"
        ) from error


def _form(given: Any, network: Model, options: FinetuneOptions) -> dict[str, Any] | None:
    """What a recording must be, where the network can take that; None where it is not recorded."""
    if given is None:
        return None
    form = WindowForm.model_validate(given, strict=True)
    if (len(form.channels), form.window_size) != (len(network.mean), options.window_size):
        raise ValueError("not what the network takes")
    return form.model_dump()


def _threshold(given: Any) -> float | None:
    if given is not None and not 0 <= given <= 1:
        raise ValueError("no threshold")
    return given if given is None else float(given)


def _options(values: Mapping[str, Any], where: str) -> FinetuneOptions:
    """As far as today's options know them: what shapes the network and its windows."""
    known = {key: value for key, value in values.items() if key in FinetuneOptions.model_fields}
    return FinetuneOptions.parse(known, where)


def _network(
    options: FinetuneOptions, record: Mapping[str, Any], weights: bytes, folder: Path
) -> Model:
    state = loop.deserialize(weights)
    try:
        own = plugins.Own(model=plugins.kept_network(record.get("own_code") or {}, folder))
        network = setup.network(options, own, len(state["mean"]), seed=0)
        network.load_state_dict(state)
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise CorruptArtifact(
            f"{folder}: its weights are not those of the network that it names: it is not used"
        ) from error
    return network.eval()
