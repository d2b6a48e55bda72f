"""An augmentation of your own: turn the sensor, as if it had been worn another way round.

    python3 train_base.py --use_augmentation --augmentation examples/augmentation.py:rotate ...

An augmentation is a function (x, generator) -> x of the same shape, [windows, channels, samples];
it may change x. Draw every random number with the generator, which lives on the device of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_DEGREES = 30.0


def rotate(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate each window by its own random angle about its own random axis; T. T. Um et al., ICMI
    2017. Channels are triples of one sensor's axes (ax, ay, az, gx, gy, gz); what is left over
    stays as it is.
    """
    device = generator.device
    axis = torch.randn(len(x), 3, generator=generator, device=device)
    axis = axis / axis.norm(dim=1, keepdim=True).clamp_min(1e-9)
    angle = torch.rand(len(x), generator=generator, device=device) * 2 - 1
    turn = _matrices(axis, angle * torch.pi * MOST_DEGREES / 180)
    for first in range(0, x.shape[1] - 2, 3):
        x[:, first : first + 3] = turn @ x[:, first : first + 3]
    return x


def _matrices(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations [windows, 3, 3] by Rodrigues' formula. axis: [windows, 3] of length 1; angle:
    [windows], in radians.
    """
    cross = torch.zeros(len(axis), 3, 3, device=axis.device)
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    cross = cross - cross.transpose(1, 2)
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(3, device=axis.device) + sine * cross + (1 - cosine) * (cross @ cross)
