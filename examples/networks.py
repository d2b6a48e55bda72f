"""Three networks of your own: a residual 1-D CNN with batch normalisation, a GRU, a small
transformer.

    python3 train_base.py --model examples/networks.py:ResNet --model_options '{"width": 32}' ...

A network is a torch.nn.Module built as NAME(channels=C, samples=S, **model_options). It takes
windows [batch, channels, samples] and gives one logit a window, [batch] or [batch, 1]. The
attribute `head` is what `--mode head_only_fine_tuning` trains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResNet(nn.Module):
    """Residual blocks over time, each halving it; after K. He et al., CVPR 2016."""

    def __init__(self, channels: int, samples: int, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv1d(channels, width, 7, padding=3)
        self.body = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean(dim=2))


class Residual(nn.Module):
    """Two convolutions beside a shortcut, then every second sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm1d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))[:, :, ::2]


class GRU(nn.Module):
    """A recurrent network read at the end of the window; `stride` samples are averaged into one
    step first.
    """

    def __init__(
        self, channels: int, samples: int, width: int = 32, stride: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.shorten = nn.AvgPool1d(min(stride, samples))
        self.gru = nn.GRU(channels, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.gru(self.shorten(x).transpose(1, 2))
        return self.head(self.dropout(steps[:, -1]))


class Transformer(nn.Module):
    """Self-attention over patches of `patch` samples; after A. Vaswani et al., NeurIPS 2017."""

    def __init__(
        self,
        channels: int,
        samples: int,
        width: int = 32,
        patch: int = 10,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        patch = min(patch, samples)
        self.patches = nn.Conv1d(channels, width, patch, stride=patch)
        self.place = nn.Parameter(0.02 * torch.randn(samples // patch, width))
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=2 * width, dropout=dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.patches(x).transpose(1, 2) + self.place
        return self.head(self.encoder(steps).mean(dim=1))
