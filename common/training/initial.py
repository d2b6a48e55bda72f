"""Weights that base training starts from: a state dict of the user's own, e.g. of self-supervised
pretraining.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from common.artifacts import sha256
from common.data.dataset import UNREADABLE, load_plain
from common.errors import InputError, nearest
from common.paths import Paths
from common.training.networks import Model

NORMALIZATION = ("mean", "sd")  # is of the training data, never taken over


def start(model: Model, paths: Paths, file: str | None) -> dict[str, Any] | None:
    """Take from `file` every entry whose name and shape are those of the network's. Returns what is
    recorded: the entries that were taken, and those of the file and of the network that were not.

    Raises:
        InputError: it is no state dict, or nothing in it fits.
    """
    if file is None:
        return None
    given, state = _read(paths, file), model.state_dict()
    own = {model.own_name(name): name for name in state if name not in NORMALIZATION}
    taken = [name for name in given if name in own and given[name].shape == state[own[name]].shape]
    if not taken:
        raise InputError(f"init_weights: {file}: {_why(given, own, state)}")
    model.load_state_dict(state | {own[name]: given[name] for name in taken})
    return {
        "file": file,
        "sha256": sha256((paths.root / file).read_bytes()),
        "taken": taken,
        "not_taken": [name for name in given if name not in taken],
        "not_in_file": [name for name in own if name not in taken],
    }


def _read(paths: Paths, file: str) -> dict[str, Tensor]:
    try:
        given = load_plain(paths.root / file)
    except UNREADABLE:
        raise InputError(
            f"init_weights: {file}: cannot be read as weights; write it with"
            " torch.save(network.state_dict(), path)"
        ) from None
    if not isinstance(given, dict) or not all(isinstance(v, Tensor) for v in given.values()):
        raise InputError(
            f"init_weights: {file}: holds {type(given).__name__}, not a state dict of tensors;"
            " write it with torch.save(network.state_dict(), path)"
        )
    if broken := [n for n, v in given.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise InputError(f"init_weights: {file}: {broken[0]} holds NaN or infinite values")
    return {str(name).removeprefix("module."): value for name, value in given.items()}


def _why(given: dict[str, Tensor], own: dict[str, str], state: dict[str, Tensor]) -> str:
    for name in given:
        if name in own:
            return (
                f"no entry has the network's name and shape: {name} is {list(given[name].shape)}"
                f" there and {list(state[own[name]].shape)} in the network"
            )
    first = next(iter(given), "nothing")
    return (
        f"no entry has the name of one of the network's: it holds {first}{nearest(first, own)};"
        f" the network has {', '.join(list(own)[:6])}"
    )
