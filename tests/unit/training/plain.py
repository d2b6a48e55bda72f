"""The plain form of the networks, as a textbook writes it; the reference of the tests."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.dataset import Split, open_split
from common.training.networks import Network


class PlainNetwork(nn.Module):
    """Conv1d, LayerNorm over channels, ReLU, max-pooling, average, linear; shares the weights of a
    `Network`.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        n = self.network
        x = (x - n.mean[:, None]) / n.sd[:, None]
        for block, conv, norm in zip(n.blocks, n.convs, n.norms, strict=True):
            x = F.relu(norm(conv(x).transpose(1, 2)).transpose(1, 2))
            if block.pool and x.shape[2] > 1:
                x = F.max_pool1d(x, 2)
        return n.head(n.dropout(x.mean(dim=2))).squeeze(1)


def write_split(
    folder: Path,
    participant: str,
    split: str,
    windows: int,
    *,
    channels: int = 2,
    samples: int = 20,
    seed: int = 0,
    shift: float = 1.0,
) -> Split:
    """A small data file whose positive windows are shifted, opened."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(windows) % 3 == 0).long()
    x = torch.randn(windows, channels, samples, generator=generator) + shift * y[:, None, None]
    torch.save((x, y), folder / f"{participant}_{split}.pt")
    return open_split(folder, participant, split)
