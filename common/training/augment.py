"""Augmentation of training windows, batched on the device: jitter, magnitude scaling and a smooth
time warp.

Source: T. T. Um et al., "Data augmentation of wearable sensor data for Parkinson's disease
monitoring using convolutional neural networks", ICMI 2017.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from common.training.kernel.build import kernel
from common.training.scattered import Distortion, Scattered

KNOTS = 4  # inner knots of the time warp, as in Um et al.
SLOWEST = 0.1  # the warp's speed never falls below this, so that time always runs forward


@dataclass(frozen=True)
class _Drawn:
    """What happens to each window: those that are warped (row numbers) and the knots of their
    warps, and the distortion of all.
    """

    warped: Tensor
    knots: Tensor
    distortion: Distortion


@dataclass(frozen=True)
class Augment:
    """Change windows in place; each of the three is applied to a window with probability
    `aug_prob`, independently.

    jitter_std: SD of white noise added to every sample (0: none), in the data's units or, where
    `channel_sd` is given, in SDs of each channel.
    magnitude_range: lowest and highest factor, one factor a window, uniform.
    time_warp_std: SD of the knots around 1 of the warp's speed, a cubic spline; shared by all
    channels, first and last sample stay (0: none).
    """

    jitter_std: float = 0.005
    magnitude_range: tuple[float, float] = (0.98, 1.02)
    aug_prob: float = 0.3
    time_warp_std: float = 0.2
    channel_sd: tuple[float, ...] | None = None

    def relative_to(self, sd: Tensor) -> Augment:
        """The same with noise in units of `sd` [channels], those of a model's normalisation."""
        return replace(self, channel_sd=tuple(sd.tolist()))

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x: float32 [windows, channels, samples] with any strides, changed in place and returned.
        `generator` is a CPU generator.

        Which windows change, and by how much, is drawn on the CPU: the choice needs no transfer
        back from a GPU. Only the noise is drawn on the device; on a CPU by the kernel, ten times
        faster than by PyTorch.
        """
        drawn = self._drawn(len(x), x.shape[1], generator)
        if len(drawn.warped) and x.shape[2] > 1:
            where = drawn.warped.to(x.device, non_blocking=True)
            x.index_copy_(0, where, warped(x.index_select(0, where), drawn.knots))
        library = kernel().library if x.device.type == "cpu" else None
        if library is None:
            _scale_and_jitter(x, drawn.distortion)
        else:
            distortion, dense = drawn.distortion, x.contiguous()
            places = (tensor.data_ptr() for tensor in (distortion.factors, distortion.spreads))
            library.stack_augment(dense.data_ptr(), *x.shape, *places, distortion.seed)
            if dense is not x:
                x.copy_(dense)
        return x

    def while_read(self, x: Scattered, generator: torch.Generator) -> Scattered:
        """The same windows as from a call with them as a tensor, where the kernel reads them: only
        those that are warped are copied.
        """
        drawn = self._drawn(len(x), x.windows.channels, generator)
        if len(drawn.warped) and x.samples > 1:
            copies = x.windows.gather(x.rows[drawn.warped])
            x = x.replaced(drawn.warped, warped(copies, drawn.knots))
        return replace(x, distortion=drawn.distortion)

    def _drawn(self, windows: int, channels: int, generator: torch.Generator) -> _Drawn:
        draws = torch.rand(4, windows, generator=generator)
        chosen, (low, high) = draws[:3] < self.aug_prob, self.magnitude_range
        rows = knots = torch.empty(0)
        if self.time_warp_std > 0:
            rows = chosen[0].nonzero().squeeze(1)
            all_knots = torch.randn(windows, KNOTS + 2, generator=generator)
            knots = all_knots.mul_(self.time_warp_std).add_(1.0)[rows]
        factors = torch.where(chosen[1], draws[3] * (high - low) + low, 1.0)
        seed = int(torch.randint(2**62, (), generator=generator))
        spreads = chosen[2, :, None] * (self.jitter_std * self._units(channels))
        return _Drawn(rows, knots, Distortion(factors, spreads, seed))

    def _units(self, channels: int) -> Tensor:
        """What noise of SD 1 is in each channel, [channels]."""
        return torch.ones(channels) if self.channel_sd is None else torch.tensor(self.channel_sd)


def _scale_and_jitter(x: Tensor, distortion: Distortion) -> None:
    x.mul_(distortion.factors.to(x.device, non_blocking=True)[:, None, None])
    rows = distortion.spreads.any(dim=1).nonzero().squeeze(1)
    if len(rows):
        generator = torch.Generator(x.device).manual_seed(distortion.seed)
        noise = torch.randn(len(rows), *x.shape[1:], generator=generator, device=x.device)
        scale = distortion.spreads[rows].to(x.device, non_blocking=True)[:, :, None]
        x.index_add_(0, rows.to(x.device, non_blocking=True), noise.mul_(scale))


def warped(x: Tensor, knots: Tensor) -> Tensor:
    """x [windows, channels, samples], two samples or more, along the times of `knots` [windows,
    KNOTS + 2].
    """
    samples = x.shape[2]
    time = warp_times(knots.to(x.device, non_blocking=True), samples)
    left = time.floor().clamp_(max=samples - 2)
    part = (time - left).unsqueeze(1)
    index = left.long().unsqueeze(1).expand(-1, x.shape[1], -1)
    return torch.lerp(x.gather(2, index), x.gather(2, index + 1), part)


def warp_times(knots: Tensor, samples: int) -> Tensor:
    """Time of each output sample, in input samples: float32 [windows, samples] from 0 to samples -
    1, increasing. knots: [windows, KNOTS + 2].
    """
    speed = (knots @ _spline(samples).to(knots.device)).clamp_(min=SLOWEST)
    time = speed.cumsum(dim=1)
    time = time - time[:, :1]
    return (time * ((samples - 1) / time[:, -1:])).clamp_(max=samples - 1)


@lru_cache(maxsize=8)
def _spline(samples: int) -> Tensor:
    """[KNOTS + 2, samples]: values of the cubic spline through unit knots at equal distances; a
    spline is linear in its knots.
    """
    import numpy as np
    from scipy.interpolate import CubicSpline

    basis = CubicSpline(np.linspace(0, samples - 1, KNOTS + 2), np.eye(KNOTS + 2))(
        np.arange(samples)
    )
    return torch.from_numpy(np.ascontiguousarray(basis.T, dtype=np.float32))
