"""The networks' blocks, and their gradients, as few and fast passes over memory on a CPU; and as
stock operators.

A block is convolution over time, layer norm over channels, max-pooling by 2 in some, ReLU (ReLU and
pooling commute). Four forms of one mathematics:

    stock    PyTorch's operators on a channels-last image of height 1; on a GPU
    fusible  the same, norm and pooling in plain sums: what torch.compile makes the fastest code of
    narrow   few channels, short windows: activations [channels, batch * samples], convolution as
        one matrix product. The fewest operators, since here
             their fixed cost is what one pays for
    wide     all else: activations [batch, samples, channels], oneDNN's convolution

Layer norm subtracts the mean over channels; subtracting it from the filters gives the same without
a pass over the activations, so that only the standard deviation remains to be computed. Which form
runs depends on network, window size and device alone, never on timing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-5
NARROW_CHANNELS, NARROW_SAMPLES = 16, 512

_relu_backward = torch.ops.aten.threshold_backward.default
_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_conv_backward = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class Block:
    """One block: output channels, dilation of its filters of 3 taps, and whether it pools by 2."""

    channels: int
    dilation: int
    pool: bool


def features(x: Tensor, blocks: Sequence[Block], parameters: Sequence[Tensor]) -> Tensor:
    """Averages over time of the last block, [batch, channels], of windows x [batch, channels,
    samples].

    parameters: for each block the convolution's weight [channels, channels before, 3] and bias, the
    norm's gain and shift.
    """
    if torch.compiler.is_compiling():
        return _fusible(x, blocks, parameters)
    if x.is_cuda:
        return _stock(x, blocks, parameters)
    narrow = (
        max(block.channels for block in blocks) <= NARROW_CHANNELS and x.shape[2] <= NARROW_SAMPLES
    )
    form = _Narrow if narrow else _Wide
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
        result: Tensor = _Body.apply(x, blocks, form, *parameters)  # type: ignore[no-untyped-call]
        return result
    return form.forward(x, blocks, parameters, None)


def _by_four(parameters: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    return list(
        zip(parameters[0::4], parameters[1::4], parameters[2::4], parameters[3::4], strict=True)
    )


def _stock(x: Tensor, blocks: Sequence[Block], parameters: Sequence[Tensor]) -> Tensor:
    x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    for block, (weight, bias, gain, shift) in zip(blocks, _by_four(parameters), strict=True):
        x = F.conv2d(
            x, weight.unsqueeze(2), bias, padding=(0, block.dilation), dilation=(1, block.dilation)
        )
        x = F.layer_norm(x.permute(0, 2, 3, 1), list(gain.shape), gain, shift, EPS).permute(
            0, 3, 1, 2
        )
        if block.pool and x.shape[3] > 1:
            x = F.max_pool2d(x, (1, 2))
        x = F.relu(x)
    return x.mean(dim=(2, 3))


def _fusible(x: Tensor, blocks: Sequence[Block], parameters: Sequence[Tensor]) -> Tensor:
    x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    for block, (weight, bias, gain, shift) in zip(blocks, _by_four(parameters), strict=True):
        filters = (weight - weight.mean(0)).unsqueeze(2)
        x = F.conv2d(
            x,
            filters,
            bias - bias.mean(),
            padding=(0, block.dilation),
            dilation=(1, block.dilation),
        )
        rstd = torch.rsqrt((x * x).mean(1, keepdim=True) + EPS)
        x = x * rstd * gain[:, None, None] + shift[:, None, None]
        if block.pool and x.shape[3] > 1:
            out = x.shape[3] // 2
            # Equal neighbours share the gradient, where max-pooling gives it to the first: its
            # backward pass would cost as much as the rest.
            x = torch.maximum(x[..., 0 : 2 * out : 2], x[..., 1 : 2 * out : 2])
        x = F.relu(x)
    return x.mean(dim=(2, 3))


class _Body(torch.autograd.Function):
    """A form's forward pass, and the derivative of each of its lines in reverse."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        blocks: Sequence[Block],
        form: type[_Narrow] | type[_Wide],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.blocks, ctx.form, ctx.kept = blocks, form, []
        return form.forward(x, blocks, parameters, ctx.kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        g = ctx.form.mean_backward(gradient, ctx.kept[-1][-1])
        found: list[Tensor] = []
        for number in reversed(range(len(ctx.blocks))):
            g, *of_block = ctx.form.backward(
                g, ctx.blocks[number], *ctx.kept.pop(), need_input=number > 0
            )
            found = [*of_block, *found]
        return None, None, None, *found


class _Narrow:
    """Activations [channels, batch * samples]: sums over channels and factors per window position
    are long, contiguous rows.
    """

    @staticmethod
    def forward(
        x: Tensor,
        blocks: Sequence[Block],
        parameters: Sequence[Tensor],
        kept: list[tuple[Any, ...]] | None,
    ) -> Tensor:
        padded = F.pad(x.transpose(0, 1), (blocks[0].dilation, blocks[0].dilation)).contiguous()
        for number, (block, (weight, bias, gain, shift)) in enumerate(
            zip(blocks, _by_four(parameters), strict=True)
        ):
            taps, samples = _taps(padded, block.dilation)
            centre, average = _constants(block.channels)
            filters = centre @ torch.cat((weight.flatten(1), bias.unsqueeze(1)), 1)
            h = filters @ taps
            rstd = (average @ (h * h)).add_(EPS).rsqrt_()
            n = h.mul_(rstd)
            gain = gain.unsqueeze(1)
            z = (n * gain).add_(shift.unsqueeze(1)).view(block.channels, -1, samples)
            padding = blocks[number + 1].dilation if number + 1 < len(blocks) else 0
            padded, y, difference = _pooled(
                z, block.pool and samples > 1, padding, kept is not None
            )
            if kept is not None:
                kept.append((taps, filters, n, rstd, gain, difference, y))
        return y.mean(2).t()

    @staticmethod
    def mean_backward(gradient: Tensor, y: Tensor) -> Tensor:
        """gradient [batch, channels] of the average over time of y."""
        return (gradient.t() / y.shape[2]).unsqueeze(2).expand(y.shape)

    @staticmethod
    def backward(
        g: Tensor,
        block: Block,
        taps: Tensor,
        filters: Tensor,
        n: Tensor,
        rstd: Tensor,
        gain: Tensor,
        difference: Tensor | None,
        y: Tensor,
        *,
        need_input: bool,
    ) -> tuple[Any, ...]:
        """Gradients of one block: of its input (or None), weight, bias, gain and shift. g: gradient
        of its output y [channels, batch, samples].
        """
        channels, batch, _ = y.shape
        centre, average = _constants(channels)
        g = _relu_backward(g, y, 0)
        if difference is not None:
            g = _unpooled(g, difference, n.shape[1] // batch)
        g = g.reshape(channels, -1)
        product, dshift = g * n, g.sum(1)
        inner = (average * gain.t()) @ product
        dh = g.mul_(gain).addcmul_(n, inner, value=-1).mul_(rstd)
        filters_and_bias = centre @ (dh @ taps.t())
        weight, bias = filters_and_bias[:, :-1].unflatten(1, (-1, 3)), filters_and_bias[:, -1]  # type: ignore[no-untyped-call]
        dx = (
            _folded(
                (filters[:, :-1].t() @ dh).view(-1, 3, batch, n.shape[1] // batch), block.dilation
            )
            if need_input
            else None
        )
        return dx, weight, bias, product.sum(1), dshift


def _taps(padded: Tensor, dilation: int) -> tuple[Tensor, int]:
    """The three inputs of every filter position, and a 1 for the bias: ([channels * 3 + 1, batch *
    samples], samples).
    """
    channels, batch, length = padded.shape
    samples = length - 2 * dilation
    taps = padded.new_empty(channels * 3 + 1, batch * samples)
    shifted = padded.as_strided(
        (channels, 3, batch, samples), (batch * length, dilation, length, 1)
    )
    taps[:-1].view(channels, 3, batch, samples).copy_(shifted)
    taps[-1] = 1
    return taps, samples


@lru_cache(maxsize=64)
def _constants(channels: int) -> tuple[Tensor, Tensor]:
    """Matrices that subtract the mean over channels, [channels, channels], and that take it, [1,
    channels].
    """
    average = torch.full((1, channels), 1 / channels)
    return torch.eye(channels) - average, average


def _pooled(
    z: Tensor, pool: bool, padding: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """ReLU, after the larger of each pair where `pool`, inside a buffer padded with zeros: (buffer,
    its inner part, second - first of each pair).
    """
    channels, batch, samples = z.shape
    out = samples // 2 if pool else samples
    padded = (
        z.new_zeros(channels, batch, out + 2 * padding)
        if padding
        else z.new_empty(channels, batch, out)
    )
    y = padded[..., padding : padding + out]
    if not pool:
        return padded, torch.clamp_min(z, 0, out=y), None
    first, second = z[..., 0 : 2 * out : 2], z[..., 1 : 2 * out : 2]
    torch.maximum(first, second, out=y).relu_()
    return padded, y, second - first if keep else None


def _unpooled(g: Tensor, difference: Tensor, samples: int) -> Tensor:
    """The gradient goes to the larger of each pair, to the first where they are equal."""
    out = g.shape[2]
    both = g.new_empty(g.shape[0], g.shape[1], samples)
    second = _relu_backward(g, difference, 0)
    both[..., 1 : 2 * out : 2] = second
    torch.sub(g, second, out=both[..., 0 : 2 * out : 2])
    if samples % 2:
        both[..., -1] = 0
    return both


def _folded(taps: Tensor, dilation: int) -> Tensor:
    """The three shifted copies [channels, 3, batch, samples] of an activation summed back into one
    [channels, batch, samples].
    """
    total = taps[:, 1].clone()
    total[..., :-dilation] += taps[:, 0][..., dilation:]
    total[..., dilation:] += taps[:, 2][..., :-dilation]
    return total


class _Wide:
    """Activations [batch, samples, channels]."""

    @staticmethod
    def forward(
        x: Tensor,
        blocks: Sequence[Block],
        parameters: Sequence[Tensor],
        kept: list[tuple[Any, ...]] | None,
    ) -> Tensor:
        x = x.transpose(1, 2).contiguous()
        for block, (weight, bias, gain, shift) in zip(blocks, _by_four(parameters), strict=True):
            filters = (weight - weight.mean(0)).unsqueeze(2)
            padding, dilation = (0, block.dilation), (1, block.dilation)
            h = torch.convolution(
                _image(x), filters, bias - bias.mean(), (1, 1), padding, dilation, False, (0, 0), 1
            )
            h = h.squeeze(2).transpose(1, 2).contiguous()
            rstd, z = _normed(h, gain, shift)
            difference = None
            if block.pool and z.shape[1] > 1:
                out = z.shape[1] // 2
                pairs = z[:, : 2 * out].view(len(z), out, 2, -1)
                y = torch.maximum(pairs[:, :, 0], pairs[:, :, 1]).relu_()
                difference = pairs[:, :, 1] - pairs[:, :, 0] if kept is not None else None
            else:
                y = z.relu_()
            if kept is not None:
                kept.append((x, filters, h, rstd, gain, shift, difference, y))
            x = y
        return x.mean(1)

    @staticmethod
    def mean_backward(gradient: Tensor, y: Tensor) -> Tensor:
        """gradient [batch, channels] of the average over time of y."""
        return (gradient / y.shape[1]).unsqueeze(1).expand(y.shape)

    @staticmethod
    def backward(
        g: Tensor,
        block: Block,
        x: Tensor,
        filters: Tensor,
        h: Tensor,
        rstd: Tensor,
        gain: Tensor,
        shift: Tensor,
        difference: Tensor | None,
        y: Tensor,
        *,
        need_input: bool,
    ) -> tuple[Any, ...]:
        """As `_Narrow.backward`; g, y: [batch, samples, channels]."""
        g = _relu_backward(g, y, 0)
        if difference is not None:
            second = _relu_backward(g, difference, 0)
            g = torch.stack((g - second, second), dim=2).flatten(1, 2)
            if g.shape[1] < h.shape[1]:
                g = F.pad(g, (0, 0, 0, 1))
        dh, dgain, dshift = _norm_backward(
            g, h, list(gain.shape), torch.zeros_like(rstd), rstd, gain, shift, [True, True, True]
        )
        padding, dilation = [0, block.dilation], [1, block.dilation]
        dx, dfilters, _ = _conv_backward(
            _image(dh),
            _image(x),
            filters,
            None,
            [1, 1],
            padding,
            dilation,
            False,
            [0, 0],
            1,
            [need_input, True, False],
        )
        dbias = dh.flatten(0, 1).sum(0)
        dweight = dfilters.squeeze(2)
        dx = dx.squeeze(2).transpose(1, 2).contiguous() if need_input else None
        return dx, dweight - dweight.mean(0), dbias - dbias.mean(), dgain, dshift


def _normed(h: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """h [batch, samples, channels] with mean 0 over channels: (1 / SD [batch, samples, 1], layer
    norm).
    """
    batch, samples, channels = h.shape
    if channels >= 32:
        rstd = (
            torch.linalg.vector_norm(h, dim=2, keepdim=True)
            .square_()
            .div_(channels)
            .add_(EPS)
            .rsqrt_()
        )
        z = h * rstd
        return rstd, torch.addcmul(shift, z, gain, out=z)
    # Rows of few channels are too short for the vector units: reduce by a matrix product, scale by
    # factors repeated along time.
    z = h * h
    rstd = (
        torch.mv(z.view(-1, channels), h.new_full((channels,), 1 / channels))
        .view(batch, samples, 1)
        .add_(EPS)
        .rsqrt_()
    )
    rows = torch.mul(h, rstd, out=z).view(batch, -1)
    torch.addcmul(shift.repeat(samples), rows, gain.repeat(samples), out=rows)
    return rstd, z


def _image(x: Tensor) -> Tensor:
    """[batch, samples, channels] as [batch, channels, 1, samples], channels last in memory."""
    return x.transpose(1, 2).unsqueeze(2)
