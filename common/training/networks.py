"""The networks, by name.

Each is a stack of blocks: convolution over time, layer norm over channels, ReLU, in some blocks
max-pooling by 2; then the average over time
and a head that gives the logit: one linear layer, or two with a ReLU between them. How blocks are
computed is in blocks.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.errors import InputError, nearest
from common.training.blocks import EPS, Block, features


@dataclass(frozen=True)
class Form:
    """Blocks, and the width of a hidden layer in the head; 0: the head is one linear layer."""

    blocks: list[Block]
    hidden: int = 0


def _test(base_channels: int | None, num_blocks: int | None) -> Form:
    base, count = base_channels or 8, num_blocks or 4
    return Form([Block(base if i < count - 1 else 2 * base, 1, i < 2) for i in range(count)])


def _cnn64(base_channels: int | None, num_blocks: int | None) -> Form:
    base = base_channels or 64
    return Form(
        [Block(base, 2 ** min(i, 8), i < 2) for i in range(num_blocks or 4)], hidden=2 * base
    )


NETWORKS = {"test": _test, "cnn64": _cnn64}


def build(
    name: str,
    *,
    channels: int,
    base_channels: int | None = None,
    num_blocks: int | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Network:
    """Network `name` for windows of `channels` channels, initialised from `seed` without touching
    the global random state.

    base_channels: channels of the first block (unset: the network's own). Raises InputError for an
    unknown name.
    """
    if name not in NETWORKS:
        raise InputError(
            f"unknown model {name!r}{nearest(name, NETWORKS)}; there are"
            f" {', '.join(sorted(NETWORKS))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(channels, NETWORKS[name](base_channels, num_blocks), dropout)


class Network(nn.Module):
    """[batch, channels, samples] float32, any strides -> logits [batch]."""

    mean: Tensor
    sd: Tensor

    def __init__(self, channels: int, form: Form, dropout: float) -> None:
        super().__init__()
        self.blocks = form.blocks
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        before = channels
        for block in form.blocks:
            self.convs.append(
                nn.Conv1d(
                    before, block.channels, 3, padding=block.dilation, dilation=block.dilation
                )
            )
            self.norms.append(nn.LayerNorm(block.channels, eps=EPS))
            before = block.channels
        self.dropout = nn.Dropout(dropout)
        wide = form.hidden
        self.head = (
            nn.Sequential(nn.Linear(before, wide), nn.ReLU(), nn.Linear(wide, 1))
            if wide
            else nn.Linear(before, 1)
        )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("sd", torch.ones(channels))
        self.normalized = False  # known on the host, so that the identity costs nothing

    def set_normalization(self, mean: Tensor, sd: Tensor) -> None:
        """Channels are shifted by `mean` and divided by `sd`, both [channels], before the first
        block; kept in the state.
        """
        self.mean.copy_(mean)
        self.sd.copy_(sd)
        self.normalized = bool((self.mean != 0).any() or (self.sd != 1).any())

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in nn.Module."""
        result = super().load_state_dict(state_dict, strict, assign)
        self.set_normalization(self.mean, self.sd)
        return result

    def head_parameters(self) -> list[nn.Parameter]:
        """The head's, which head_only_fine_tuning trains."""
        return list(self.head.parameters())

    def forward(self, x: Tensor) -> Tensor:
        if self.normalized:
            x = (x - self.mean[:, None]) / self.sd[:, None]
        logits: Tensor = self.head(
            self.dropout(features(x, self.blocks, self._of_blocks()))
        ).squeeze(1)
        return logits

    def _of_blocks(self) -> list[Tensor]:
        parts = zip(self.convs, self.norms, strict=True)
        return [
            cast(Tensor, value)
            for conv, norm in parts
            for value in (conv.weight, conv.bias, norm.weight, norm.bias)
        ]
