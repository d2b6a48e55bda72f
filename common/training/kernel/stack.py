"""The kernel bound: a stack of blocks and a head as one call. No torch: arrays are given by their
addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

_INT, _ADDRESS = ctypes.c_int64, ctypes.c_void_p


def _addresses(values: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    return (_ADDRESS * len(values))(*values)


def load(path: Path) -> ctypes.CDLL:
    """The library that `build.library` built. Raises OSError."""
    library = ctypes.CDLL(str(path.resolve()))
    library.stack_open.restype = _ADDRESS
    library.stack_open.argtypes = [_INT, _INT, _ADDRESS, _INT, _INT]
    library.stack_close.argtypes = [_ADDRESS]
    library.stack_close.restype = None
    library.stack_logits.argtypes = [*[_ADDRESS] * 3, _INT, *[_ADDRESS] * 4, _INT]
    library.stack_gradient.argtypes = [
        *[_ADDRESS] * 4,
        _INT,
        *[_ADDRESS] * 5,
        ctypes.c_double,
        _ADDRESS,
        _INT,
    ]
    return library


class Stack:
    """A network for windows [channels, samples], bound to its parameters.

    blocks: channels, dilation, pool of each. hidden: width of the head's hidden layer, or 0.
    parameters, gradients: addresses of float32 arrays: weight [outputs, inputs, 3], bias, gain and
    shift of each block, weight and bias of the head's layers; a gradient is None where it is not
    wanted. scaling: addresses of mean and SD by channel, subtracted and divided by, or None. They
    are kept: whoever made them keeps them alive.

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
    ) -> None:
        shape = [int(value) for block in blocks for value in block]
        self._library = library
        self._parameters = _addresses(parameters)
        self._gradients = (_ADDRESS * len(gradients))(*gradients)
        self._handle = library.stack_open(
            channels, samples, (_INT * len(shape))(*shape), len(blocks), hidden
        )
        self._loss, self._strides = ctypes.c_double(), (_INT * 3)()
        self._loss_address = ctypes.byref(self._loss)
        if not self._handle:
            raise MemoryError("no memory for the network's activations")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.stack_close(self._handle)

    def gradient(
        self,
        x: int,
        strides: Sequence[int],
        y: int,
        batch: int,
        *,
        scaling: tuple[int, int] | tuple[None, None] = (None, None),
        dropout: int | None = None,
        pos_weight: float = 1.0,
        threads: int = 1,
    ) -> float:
        """Overwrite the gradients with those of the mean weighted loss; the sum of the unweighted
        losses.

        x: [batch, channels, samples] at `strides` (in floats). y: [batch]. dropout: factors of the
        features before the head, [batch, features].
        """
        self._strides[:] = list(strides)
        if not self._library.stack_gradient(
            self._handle,
            x,
            self._strides,
            y,
            batch,
            self._parameters,
            self._gradients,
            *scaling,
            dropout,
            pos_weight,
            self._loss_address,
            threads,
        ):
            raise MemoryError("no memory or no threads for a training step")
        return self._loss.value

    def logits(
        self,
        x: int,
        strides: Sequence[int],
        batch: int,
        out: int,
        *,
        scaling: tuple[int, int] | tuple[None, None] = (None, None),
        threads: int = 1,
    ) -> None:
        """Write logits [batch] to `out`, without dropout."""
        self._strides[:] = list(strides)
        if not self._library.stack_logits(
            self._handle, x, self._strides, batch, self._parameters, *scaling, out, threads
        ):
            raise MemoryError("no memory or no threads for an evaluation")
