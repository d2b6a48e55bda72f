"""How a network's outputs and gradients are computed: the interface between the loop and the
networks.

`backend_for` chooses. The loop uses a network through its backend only: gradients and logits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.dataset import IN_PLACE_BYTES, Windows, addresses_in
from common.training import scattered
from common.training.adam import Adam
from common.training.kernel.build import kernel
from common.training.kernel.stack import AdamState, Given, Stack
from common.training.networks import Network
from common.training.scattered import Scattered

EVALUATED_BYTES = 8 << 20  # windows that the kernel evaluates in one call
CACHED_BYTES = 12 << 20  # activations of one block up to this size are fastest on a CPU


class Backend(Protocol):
    """`name` is recorded in the provenance; a checkpoint of another backend is not resumed.

    x: windows [batch, channels, samples], a tensor, or where they lie in memory.
    """

    @property
    def name(self) -> str: ...

    def batches(self, windows: Windows) -> Iterator[tuple[Any, Tensor]]:
        """All windows in their order, as (x, y) for `evaluate` and `logits`."""
        ...

    def gradient(self, x: Any, y: Tensor) -> Tensor:
        """Put the gradient of the mean, weighted loss of x [batch, channels, samples] and y [batch]
        into `.grad` of the trained parameters, overwriting what is there.

        Returns the sum of the unweighted losses: a detached scalar on the device.
        """
        ...

    def train(self, x: Any, y: Tensor, sizes: Sequence[int], adam: Adam) -> Tensor:
        """`gradient` and an update for one batch after the other, of the given sizes; x and y hold
        them all. Returns the sum of the unweighted losses.
        """
        ...

    def logits(self, x: Any) -> Tensor:
        """[batch], without dropout and without gradients."""
        ...

    def evaluate(self, x: Any, y: Tensor) -> Tensor:
        """float64 [5] on the device: the sum of the unweighted losses, and counts [tn, fp, fn, tp]
        at probability 0.5.
        """
        ...

    def evaluation_batch(self, samples: int) -> int:
        """How many windows of `samples` to evaluate at once, from shapes alone."""
        ...


def backend_for(
    model: nn.Module, *, pos_weight: float = 1.0, compiled_batch: int | None = None
) -> Backend:
    """The backend for `model` on its device: the kernel for the built-in networks on a CPU, where a
    compiler is; else PyTorch.

    Call it when parameters, gradients and normalisation are where and what they stay.
    compiled_batch: batches of this size go through torch.compile, where the kernel does not run.
    """
    if isinstance(model, Network) and next(model.parameters()).device.type == "cpu":
        found = kernel()
        if found.library is not None:
            return KernelBackend(model, found.library, found.name, pos_weight)
    return AutogradBackend(model, pos_weight, compiled_batch)


class AutogradBackend:
    """PyTorch's own operators and autograd, for any module whose output is [batch] or [batch, 1].

    On a CPU a batch passes in pieces that stay in its caches and their gradients add up. Only
    training batches of `compiled_batch` are compiled, on a GPU replayed as CUDA graphs; the odd
    last batch of an epoch is not worth a compilation of its own.
    """

    def __init__(
        self, model: nn.Module, pos_weight: float = 1.0, compiled_batch: int | None = None
    ) -> None:
        self.model, self.compiled_batch = model, compiled_batch
        self.device = next(model.parameters()).device
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self._weight = None if pos_weight == 1.0 else torch.tensor(pos_weight, device=self.device)
        self._captured = self._losses

    @property
    def name(self) -> str:
        """As in Backend."""
        return f"autograd {'compiled' if self.compiled_batch else 'eager'} {self.device.type}"

    def compile(self, channels: int, samples: int) -> str:
        """Compile now, on made windows, so that a checkpoint's backend is known before the first
        epoch. Returns '' or why the network cannot be compiled: then all of it is eager.
        """
        if self.compiled_batch is None:
            return ""
        try:
            self._try_compiled(self.compiled_batch, channels, samples)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        # The network has run: whatever this is comes from its compilation or its capture.
        except Exception as error:  # noqa: BLE001
            torch.compiler.reset()
            self.compiled_batch = None
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        return ""

    def _try_compiled(self, batch: int, channels: int, samples: int) -> None:
        from torch._dynamo.exc import FailOnRecompileLimitHit

        mode = "reduce-overhead" if self.device.type == "cuda" else None
        x = torch.randn(batch, channels, samples, device=self.device)
        y = (torch.arange(batch, device=self.device) % 2).float()
        # All of the network in one piece, or nothing. A CUDA graph is made at the second call and
        # replayed at the third.
        self._captured = torch.compile(self._losses, mode=mode, dynamic=False, fullgraph=True)
        for _ in range(3 if self.device.type == "cuda" else 1):
            try:
                self.gradient(x, y)
            except FailOnRecompileLimitHit:  # earlier trainings of this process count
                torch.compiler.reset()
                self.gradient(x, y)
        # Takes what was compiled; a compilation that fails in mid-training is eager, no error.
        self._captured = torch.compile(self._losses, mode=mode, dynamic=False)

    def batches(self, windows: Windows) -> Iterator[tuple[Tensor, Tensor]]:
        return windows.batches(self.evaluation_batch(windows.samples))

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        self.model.train()
        for parameter in self.trained:
            if parameter.grad is not None:
                parameter.grad.zero_()
        losses, piece = self._losses, self._piece(x)
        if len(x) == self.compiled_batch:
            losses, piece = self._captured, len(x)
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        total = torch.zeros((), device=self.device)
        for xb, yb in zip(torch.split(x, piece), torch.split(y, piece), strict=True):
            loss, unweighted = losses(xb, yb)
            (loss / len(x)).backward()  # type: ignore[no-untyped-call]
            total += unweighted.detach()
        return total

    def train(self, x: Tensor, y: Tensor, sizes: Sequence[int], adam: Adam) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for xb, yb in zip(torch.split(x, list(sizes)), torch.split(y, list(sizes)), strict=True):
            total += self.gradient(xb, yb)
            adam.step()
        return total

    def logits(self, x: Tensor) -> Tensor:
        self.model.eval()
        with torch.inference_mode():
            logits: Tensor = self.model(x).reshape(len(x))
            return logits

    def evaluate(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = self.logits(x)
            loss = F.binary_cross_entropy_with_logits(logits, y, reduction="sum")
            return torch.cat((loss.double()[None], confusion(logits, y)))

    def evaluation_batch(self, samples: int) -> int:
        """What a CPU's caches hold; eight times that on a GPU."""
        piece = self._cached_batch(samples)
        return piece if self.device.type == "cpu" else 8 * piece

    def _losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(x).reshape(len(x))
        loss = F.binary_cross_entropy_with_logits(
            logits, y, pos_weight=self._weight, reduction="sum"
        )
        if self._weight is None:
            return loss, loss
        return loss, F.binary_cross_entropy_with_logits(logits.detach(), y, reduction="sum")

    def _piece(self, x: Tensor) -> int:
        whole = self.device.type != "cpu" or getattr(self.model, "whole_batches", False)
        return len(x) if whole else self._cached_batch(x.shape[2])

    def _cached_batch(self, samples: int) -> int:
        widest = max((p.shape[0] for p in self.model.parameters() if p.ndim == 3), default=64)
        return max(1, CACHED_BYTES // (4 * samples * widest))


class KernelBackend:
    """The fused kernel, for the built-in networks on a CPU. Its bytes depend on the number of
    vector lanes, and not on threads or on how windows are batched. It takes as many threads as
    PyTorch has when it is made.
    """

    def __init__(
        self, model: Network, library: ctypes.CDLL, name: str, pos_weight: float = 1.0
    ) -> None:
        self.model, self.name = model, name
        self._library, self._pos_weight = library, pos_weight
        self.threads = torch.get_num_threads()
        self._stacks: dict[int, Stack] = {}

    def batches(self, windows: Windows) -> Iterator[tuple[Tensor | Scattered, Tensor]]:
        # in pieces: Python hears of Ctrl-C between two calls
        found = scattered.all_in_order(windows, max(1, IN_PLACE_BYTES // windows.window_bytes))
        size = self.evaluation_batch(windows.samples)
        return windows.batches(size) if found is None else found

    def gradient(self, x: Tensor | Scattered, y: Tensor) -> Tensor:
        given, _kept = self._training(x, y)
        return _double(self._stack(x).gradient(given))

    def train(self, x: Tensor | Scattered, y: Tensor, sizes: Sequence[int], adam: Adam) -> Tensor:
        given, _kept = self._training(x, y)
        step, mean, square = (value.data_ptr() for value in adam.state.values())
        weights, gradient = adam.weights.data_ptr(), adam.gradient.data_ptr()
        count, rate, decay = len(adam.weights), adam.lr, adam.weight_decay
        state = AdamState(weights, gradient, mean, square, step, count, rate, decay)
        return _double(self._stack(x).train(given, sizes, state))

    def logits(self, x: Tensor | Scattered) -> Tensor:
        out = torch.empty(len(x))
        given, _kept = self._given(x)
        self._stack(x).logits(given, out.data_ptr())
        return out

    def evaluate(self, x: Tensor | Scattered, y: Tensor) -> Tensor:
        out, labels = torch.empty(5, dtype=torch.float64), y.contiguous()
        given, _kept = self._given(x)
        self._stack(x).evaluate(replace(given, y=labels.data_ptr()), out.data_ptr())
        return out

    def _training(self, x: Tensor | Scattered, y: Tensor) -> tuple[Given, list[Any]]:
        """A batch for the kernel, and what must live until its call is over."""
        given, kept = self._given(x)
        y, mask, dropout = y.contiguous(), None, self.model.dropout.p
        if dropout > 0:
            mask = F.dropout(torch.ones(len(x), self.model.blocks[-1].channels), dropout)
        place = None if mask is None else mask.data_ptr()
        given = replace(given, y=y.data_ptr(), dropout=place, pos_weight=self._pos_weight)
        return given, [*kept, y, mask]

    def _given(self, x: Tensor | Scattered) -> tuple[Given, list[Any]]:
        threads = self.threads
        if isinstance(x, Scattered):
            place, strides, distortion = x.addresses.data_ptr(), (x.samples, 1), x.distortion
            given = Given(place, strides, len(x), threads=threads)
            if distortion is not None:
                places = distortion.factors.data_ptr(), distortion.spreads.data_ptr()
                given = replace(given, factors=places[0], spreads=places[1], seed=distortion.seed)
            return given, [x]
        x = x.float()
        addresses = addresses_in(x)
        _, channel, sample = x.stride()
        given = Given(addresses.data_ptr(), (channel, sample), len(x), threads=threads)
        return given, [x, addresses]

    def evaluation_batch(self, samples: int) -> int:
        """Few calls, and not much memory where windows have to be gathered."""
        return max(1, EVALUATED_BYTES // (4 * samples * len(self.model.mean)))

    def _stack(self, x: Tensor | Scattered) -> Stack:
        samples = x.samples if isinstance(x, Scattered) else x.shape[2]
        model = self.model
        if samples not in self._stacks:
            parameters = model.ordered_parameters()
            trained = [p.grad if p.requires_grad else None for p in parameters]
            self._stacks[samples] = Stack(
                self._library,
                len(model.mean),
                samples,
                [(block.channels, block.dilation, block.pool) for block in model.blocks],
                model.hidden,
                [p.data_ptr() for p in parameters],
                [gradient.data_ptr() if gradient is not None else None for gradient in trained],
                (model.mean.data_ptr(), model.sd.data_ptr()) if model.normalized else None,
            )
        return self._stacks[samples]


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def confusion(logits: Tensor, y: Tensor) -> Tensor:
    """Counts [tn, fp, fn, tp] at probability 0.5, float64, on the device of the logits. logits, y:
    [windows].
    """
    cell = 2 * y + (torch.sigmoid(logits) >= 0.5)
    return (cell[:, None] == torch.arange(4, device=y.device)).sum(dim=0).double()
