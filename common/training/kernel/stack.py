"""The kernel bound: a stack of blocks and a head as one call. No torch: arrays are given by their
addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_INT, _ADDRESS, _DOUBLE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
_SEED = ctypes.c_uint64


class _Batch(ctypes.Structure):
    _fields_ = [
        ("x", _ADDRESS),
        ("channel", _INT),
        ("sample", _INT),
        ("factors", _ADDRESS),
        ("spreads", _ADDRESS),
        ("seed", _SEED),
        ("y", _ADDRESS),
        ("windows", _INT),
        ("parameters", _ADDRESS),
        ("gradients", _ADDRESS),
        ("mean", _ADDRESS),
        ("sd", _ADDRESS),
        ("dropout", _ADDRESS),
        ("pos_weight", _DOUBLE),
        ("threads", _INT),
    ]


class _Adam(ctypes.Structure):
    _fields_ = [
        *((name, _ADDRESS) for name in ("weights", "gradient", "mean", "square", "step")),
        ("count", _INT),
        ("rate", _DOUBLE),
        ("decay", _DOUBLE),
    ]


@dataclass(frozen=True)
class Given:
    """A batch, all by address. x: addresses of the windows, int64 [windows], each [channels,
    samples] at `strides` (in floats). y: [windows]; dropout: factors of the features before the
    head, [windows, features]; factors [windows], spreads [windows, channels] and seed: of an
    augmentation while windows are read, as in `stack_augment`. All of them float32, or None.
    """

    x: int
    strides: Sequence[int]
    windows: int
    factors: int | None = None
    spreads: int | None = None
    seed: int = 0
    y: int | None = None
    dropout: int | None = None
    pos_weight: float = 1.0
    threads: int = 1


@dataclass(frozen=True)
class AdamState:
    """The trained parameters and their gradients as one vector each of `count`, the two moments,
    and the number of updates so far, all float32, by address; learning rate, decoupled decay.
    """

    weights: int
    gradient: int
    mean: int
    square: int
    step: int
    count: int
    rate: float
    decay: float


def load_kernel(path: Path) -> ctypes.CDLL:
    """The library that `build.built` made. Raises OSError."""
    library = ctypes.CDLL(str(path.resolve()))
    library.stack_open.restype = _ADDRESS
    library.stack_open.argtypes = [_INT, _INT, _ADDRESS, _INT, _INT]
    library.stack_close.argtypes = [_ADDRESS]
    library.stack_close.restype = None
    library.stack_logits.argtypes = [_ADDRESS] * 3
    library.stack_evaluate.argtypes = [_ADDRESS] * 3
    library.stack_gradient.argtypes = [_ADDRESS] * 3
    library.stack_train.argtypes = [_ADDRESS, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _ADDRESS]
    library.stack_augment.argtypes = [_ADDRESS, *[_INT] * 3, *[_ADDRESS] * 2, _SEED]
    library.stack_augment.restype = None
    return library


class Stack:
    """A network for windows [channels, samples], bound to its parameters.

    blocks: channels, dilation, pool of each. hidden: width of the head's hidden layer, or 0.
    parameters, gradients: addresses of float32 arrays: weight [outputs, inputs, 3], bias, gain and
    shift of each block, weight and bias of the head's layers; a gradient is None where it is not
    wanted. scaling: addresses of mean and SD by channel, or None. The caller keeps the arrays.

    Raises MemoryError, here and in the calls.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        channels: int,
        samples: int,
        blocks: Sequence[tuple[int, int, bool]],
        hidden: int,
        parameters: Sequence[int],
        gradients: Sequence[int | None],
        scaling: tuple[int, int] | None = None,
    ) -> None:
        self._library, shape = library, [int(value) for block in blocks for value in block]
        self._arrays = [(_ADDRESS * len(a))(*a) for a in (parameters, gradients)]
        self._batch, self._loss = _Batch(), _DOUBLE()
        self._batch.parameters, self._batch.gradients = map(ctypes.addressof, self._arrays)
        self._batch.mean, self._batch.sd = scaling or (None, None)
        self._handle = library.stack_open(
            channels, samples, (_INT * len(shape))(*shape), len(blocks), hidden
        )
        if not self._handle:
            raise MemoryError("no memory for the network's activations")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.stack_close(self._handle)

    def logits(self, given: Given, out: int) -> None:
        """Write logits [windows] to the address `out`, without dropout."""
        self._check(self._library.stack_logits(self._handle, self._take(given), out))

    def evaluate(self, given: Given, out: int) -> None:
        """Write the sum of the losses and the counts [tn, fp, fn, tp] at probability 0.5, float64
        [5], to the address `out`.
        """
        self._check(self._library.stack_evaluate(self._handle, self._take(given), out))

    def gradient(self, given: Given) -> float:
        """Overwrite the gradients with those of the mean weighted loss; the sum of the unweighted
        losses.
        """
        batch, loss = self._take(given), ctypes.byref(self._loss)
        self._check(self._library.stack_gradient(self._handle, batch, loss))
        return self._loss.value

    def train(self, given: Given, sizes: Sequence[int], adam: AdamState) -> float:
        """`gradient` and an update for one batch after the other, of the given sizes."""
        values = vars(adam).values()  # in the order of _Adam
        self._check(
            self._library.stack_train(
                self._handle,
                self._take(given),
                (_INT * len(sizes))(*sizes),
                len(sizes),
                ctypes.byref(_Adam(*values)),
                ctypes.byref(self._loss),
            )
        )
        return self._loss.value

    def _take(self, given: Given) -> ctypes._Pointer[_Batch] | object:
        batch = self._batch
        batch.x, (batch.channel, batch.sample) = given.x, given.strides
        batch.factors, batch.spreads, batch.seed = given.factors, given.spreads, given.seed
        batch.y, batch.dropout, batch.windows = given.y, given.dropout, given.windows
        batch.pos_weight, batch.threads = given.pos_weight, given.threads
        return ctypes.byref(batch)

    @staticmethod
    def _check(done: int) -> None:
        if not done:
            raise MemoryError("no memory or no threads for a training step")
