"""Adam on one vector of weights.

Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015; with weight decay Loshchilov &
Hutter, "Decoupled weight decay regularization", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Adam:
    """weights, gradient: one vector each, of which the given parameters and their `.grad` become
    views, so that the optimiser handles one tensor instead of eighteen.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float = 0.0
    ) -> None:
        self.weights = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self.gradient = torch.zeros_like(self.weights)
        self.lr, self.weight_decay = lr, weight_decay
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.data = self.weights[start:stop].view_as(parameter)
            parameter.grad = self.gradient[start:stop].view_as(parameter)
            start = stop
        self.state = {
            "step": torch.zeros((), device=self.weights.device),
            "exp_avg": torch.zeros_like(self.weights),
            "exp_avg_sq": torch.zeros_like(self.weights),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from the state of an earlier one."""
        for name, value in self.state.items():
            value.copy_(state[name])

    @torch.no_grad()
    def step(self) -> None:
        """One update by the gradient as it stands, by PyTorch's function: the class
        torch.optim.Adam imports the compiler, a second before the first step.
        """
        from torch.optim.adam import adam

        step, mean, square = self.state.values()
        adam(
            [self.weights],
            [self.gradient],
            [mean],
            [square],
            [],
            [step],
            fused=True,
            amsgrad=False,
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=self.weight_decay != 0,
            maximize=False,
        )
