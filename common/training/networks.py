"""The networks, by name.

Each is a stack of blocks: convolution over time, layer norm over channels, ReLU, in some blocks
max-pooling by 2; then the average over time and a head that gives the logit: one linear layer, or
two with a ReLU between them. `Network.forward` computes them with PyTorch's operators: on a GPU, as
the fallback without a compiler, and as the reference of the kernel, which computes them on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError, nearest

EPS = 1e-5  # of the layer norms


@dataclass(frozen=True)
class Block:
    """One block: output channels, dilation of its filters of 3 taps, and whether it pools by 2."""

    channels: int
    dilation: int
    pool: bool


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


def build_network(
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


class Model(nn.Module):
    """What every network has: normalisation of its input, and a head.

    whole_batches: a batch must not be computed in pieces. smallest_batch: of windows, in training.
    """

    mean: Tensor
    sd: Tensor
    whole_batches = False
    smallest_batch = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
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

    def normalize(self, x: Tensor) -> Tensor:
        """x [batch, channels, samples] as the network sees it."""
        return (x - self.mean[:, None]) / self.sd[:, None] if self.normalized else x

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in nn.Module."""
        result = super().load_state_dict(state_dict, strict, assign)
        self.set_normalization(self.mean, self.sd)
        return result

    def own_name(self, name: str) -> str:
        """The name under which a person knows an entry of the state dict."""
        return name

    def head_parameters(self) -> list[nn.Parameter]:
        """The head's, which head_only_fine_tuning trains."""
        raise NotImplementedError

    def trained(self, *, head_only: bool, freeze: Sequence[str]) -> list[nn.Parameter]:
        """The parameters that are trained: those of the head or all, but for those whose name fits
        one of `freeze`. Raises InputError where nothing fits, or none is left.
        """
        names = {self.own_name(name): parameter for name, parameter in self.named_parameters()}
        frozen = set[str]()
        for pattern in freeze:
            fits = {name for name in names if fnmatchcase(name, pattern)}
            if not fits:
                raise InputError(
                    f"freeze: no parameter is called {pattern!r}{nearest(pattern, names)}; there"
                    f" are {', '.join(names)}"
                )
            frozen |= fits
        chosen = {id(parameter) for parameter in self.head_parameters()} if head_only else None
        left = [
            parameter
            for name, parameter in names.items()
            if name not in frozen and (chosen is None or id(parameter) in chosen)
        ]
        if not left:
            raise InputError(f"freeze: {' '.join(freeze)} leaves no parameter to train")
        return left


class Network(Model):
    """[batch, channels, samples] float32, any strides -> logits [batch]."""

    def __init__(self, channels: int, form: Form, dropout: float) -> None:
        super().__init__(channels)
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

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def forward(self, x: Tensor) -> Tensor:
        features = self._features(self.normalize(x))
        logits: Tensor = self.head(self.dropout(features)).squeeze(1)
        return logits

    def _features(self, x: Tensor) -> Tensor:
        """Averages over time of the last block, [batch, channels], computed on a channels-last
        image of height 1. ReLU and pooling commute.
        """
        x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        for block, conv, norm in zip(self.blocks, self.convs, self.norms, strict=True):
            assert isinstance(conv, nn.Conv1d)
            filters, dilation = conv.weight.unsqueeze(2), (1, block.dilation)
            x = F.conv2d(x, filters, conv.bias, padding=(0, block.dilation), dilation=dilation)
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            if block.pool and x.shape[3] > 1:
                x = F.max_pool2d(x, (1, 2))
            x = F.relu(x)
        return x.mean(dim=(2, 3))

    @property
    def hidden(self) -> int:
        """Width of the head's hidden layer; 0 where there is none."""
        first = self.head[0] if isinstance(self.head, nn.Sequential) else None
        return first.out_features if isinstance(first, nn.Linear) else 0

    def ordered_parameters(self) -> list[nn.Parameter]:
        """Weight, bias, gain and shift of each block, then the head's: as the kernel takes them."""
        parts = zip(self.convs, self.norms, strict=True)
        blocks = [
            cast(nn.Parameter, value)
            for conv, norm in parts
            for value in (conv.weight, conv.bias, norm.weight, norm.bias)
        ]
        return [*blocks, *self.head_parameters()]
