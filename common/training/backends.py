"""How a network's outputs and gradients are computed: the interface between the loop and the
networks.

`backend_for` chooses. The loop asks a backend for gradients and logits and knows nothing else of
the network.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CACHED_BYTES = 12 << 20  # activations of one block up to this size are fastest on a CPU


class Backend(Protocol):
    """`name` is recorded in the provenance; a checkpoint of another backend is not resumed."""

    @property
    def name(self) -> str: ...

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Put the gradient of the mean, weighted loss of x [batch, channels, samples] and y [batch]
        into `.grad` of the trained parameters, overwriting what is there.

        Returns the sum of the unweighted losses: a detached scalar on the device.
        """
        ...

    def logits(self, x: Tensor) -> Tensor:
        """[batch], without dropout and without gradients."""
        ...

    def evaluation_batch(self, samples: int) -> int:
        """How many windows of `samples` to evaluate at once, from shapes alone."""
        ...


def backend_for(
    model: nn.Module, *, pos_weight: float = 1.0, compiled_batch: int | None = None
) -> Backend:
    """The backend for `model` on its device. compiled_batch: batches of this size go through
    torch.compile.
    """
    return AutogradBackend(model, pos_weight, compiled_batch)


class AutogradBackend:
    """PyTorch's own operators and autograd, for any module whose output is [batch] or [batch, 1].

    On a CPU a batch passes in pieces that stay in its caches and their gradients add up. Only
    batches of `compiled_batch` are compiled, on a GPU replayed as CUDA graphs; the odd last batch
    of an epoch is not worth a compilation of its own.
    """

    def __init__(
        self, model: nn.Module, pos_weight: float = 1.0, compiled_batch: int | None = None
    ) -> None:
        self.model, self.compiled_batch = model, compiled_batch
        self.device = next(model.parameters()).device
        self.name = f"autograd {'compiled' if compiled_batch else 'eager'} {self.device.type}"
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self._weight = None if pos_weight == 1.0 else torch.tensor(pos_weight, device=self.device)
        self._captured, self._forward = self._losses, model.__call__
        if compiled_batch is not None:
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            self._captured = torch.compile(self._losses, mode=mode, dynamic=False)
            self._forward = torch.compile(model, dynamic=False)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """As in Backend."""
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

    def logits(self, x: Tensor) -> Tensor:
        """As in Backend."""
        self.model.eval()
        with torch.inference_mode():
            forward = self._forward if len(x) == self.compiled_batch else self.model
            logits: Tensor = forward(x).reshape(len(x))
            return logits

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
