"""The networks, by name.

Each is a stack of blocks: convolution over time, layer norm over channels, ReLU, in some blocks max-pooling by 2; then the average over time
and one linear layer that gives the logit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError, nearest

EPS = 1e-5


@dataclass(frozen=True)
class Block:
    """One block: output channels, dilation, and whether it pools by 2."""

    channels: int
    dilation: int
    pool: bool


def _test(base_channels: int | None, num_blocks: int | None) -> list[Block]:
    base, count = base_channels or 8, num_blocks or 4
    return [Block(base if i < count - 1 else 2 * base, 1, i < 2) for i in range(count)]


def _cnn64(base_channels: int | None, num_blocks: int | None) -> list[Block]:
    return [Block(base_channels or 64, 2 ** min(i, 8), i < 2) for i in range(num_blocks or 4)]


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
    """Network `name` for windows of `channels` channels, initialised from `seed` without touching the global random state.

    base_channels: channels of the first block (unset: the network's own). Raises InputError for an unknown name.
    """
    if name not in NETWORKS:
        raise InputError(f"unknown model {name!r}{nearest(name, NETWORKS)}; there are {', '.join(sorted(NETWORKS))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(channels, NETWORKS[name](base_channels, num_blocks), dropout)


class Network(nn.Module):
    """[batch, channels, samples] float32, any strides -> logits [batch]."""

    mean: Tensor
    sd: Tensor

    def __init__(self, channels: int, blocks: list[Block], dropout: float) -> None:
        super().__init__()
        self.blocks = blocks
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        before = channels
        for block in blocks:
            self.convs.append(nn.Conv1d(before, block.channels, 3, padding=block.dilation, dilation=block.dilation))
            self.norms.append(nn.LayerNorm(block.channels, eps=EPS))
            before = block.channels
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, 1)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("sd", torch.ones(channels))

    def set_normalization(self, mean: Tensor, sd: Tensor) -> None:
        """Channels are shifted by `mean` and divided by `sd`, both [channels], before the first block; kept in the state."""
        self.mean.copy_(mean)
        self.sd.copy_(sd)

    def head_parameters(self) -> list[nn.Parameter]:
        """The last layer's, which head_only_fine_tuning trains."""
        return list(self.head.parameters())

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean[:, None]) / self.sd[:, None]
        x = x.unsqueeze(2)  # [batch, channels, 1, samples]: as a channels-last image, convolutions run at full speed
        for block, conv, norm in zip(self.blocks, self.convs, self.norms, strict=True):
            x = F.conv2d(x, conv.weight.unsqueeze(2), conv.bias, padding=(0, block.dilation), dilation=(1, block.dilation))
            x = F.layer_norm(x.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, EPS).permute(0, 3, 1, 2)
            if block.pool and x.shape[3] > 1:
                x = F.max_pool2d(x, (1, 2))
            x = F.relu(x)
        logits: Tensor = self.head(self.dropout(x.mean(dim=(2, 3)))).squeeze(1)
        return logits
