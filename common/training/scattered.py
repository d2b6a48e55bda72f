"""Windows that the kernel reads where they lie in memory: nothing is gathered first, and
augmentation happens while they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.data.dataset import Windows, addresses_in


@dataclass(frozen=True)
class Distortion:
    """Of each window, while it is read: x * factor + spread * white noise. factors: float32
    [windows]; spreads: float32 [windows, channels]; seed: of the noise, 64 bits.
    """

    factors: Tensor
    spreads: Tensor
    seed: int


@dataclass(frozen=True)
class Scattered:
    """Windows `rows` of a set. addresses: where each is read, int64 [windows]; copies: of those
    that are not read in the set itself.
    """

    windows: Windows
    rows: Tensor
    addresses: Tensor
    distortion: Distortion | None = None
    copies: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def samples(self) -> int:
        return self.windows.samples

    def replaced(self, which: Tensor, x: Tensor) -> Scattered:
        """The same with the dense windows `x` in the places `which`."""
        addresses = self.addresses.index_copy(0, which, addresses_in(x))
        return replace(self, addresses=addresses, copies=x)


def pieces(
    windows: Windows, order: Tensor, sizes: Sequence[int]
) -> Iterator[tuple[Scattered, Tensor]] | None:
    """Consecutive pieces of `order` (row numbers) of the given sizes, with their labels [n]; None
    where the set has to be gathered.
    """
    places = windows.addresses()
    if places is None:
        return None
    split = torch.split(order, list(sizes))
    return ((Scattered(windows, rows, places[rows]), windows.y[rows]) for rows in split)


def all_in_order(windows: Windows, size: int) -> Iterator[tuple[Scattered, Tensor]] | None:
    """The same of all windows in their order, `size` at a time."""
    places = windows.addresses()
    if places is None:
        return None
    split = (torch.split(x, size) for x in (torch.arange(len(windows)), places, windows.y))
    return ((Scattered(windows, rows, there), y) for rows, there, y in zip(*split, strict=True))
