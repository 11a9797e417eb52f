"""Fake quantisation and codes in plain torch, on any device.

A tensor is taken apart into rows of blocks and worked through in pieces that stay in the cache:
on a CPU a pass over a piece costs a tenth of a pass over memory.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from mpq.formats.block import ROW, TENSOR
from mpq.formats.element import (
    Element,
    FloatElement,
    has_negative_zero,
    reach,
)
from mpq.formats.format import NAMED_FLOATS, Format
from mpq.formats.scale import FloatScale, NestedScale, StaticScale
from mpq.kernels.bits import largest_held
from mpq.kernels.layout import Layout
from mpq.kernels.rounding import fits_float32, round_to_element, truncate_to_element
from mpq.kernels.scaling import (
    Scales,
    choose_scales,
    divisor,
    largest_magnitudes,
    scale_above,
)

PIECE = 1 << 17
"""Values of a piece: 512 KiB of float32, so that a piece and its scratch stay in the L2 cache."""

CASTS = {NAMED_FLOATS["bf16"]: torch.bfloat16, NAMED_FLOATS["fp16"]: torch.float16}
"""Elements to which torch itself rounds from float32, nearest and ties to even."""


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fake_quantize(x: Tensor, format: Format, axis: int) -> Tensor:
    """The values of `x` in the format, in its shape and dtype. `x` is not empty."""
    if format.block is None:
        return quantize_alone(x, format)
    layout = Layout.of(tuple(x.shape), axis, format.block)
    blocks = layout.split(x)
    above = scales_above(x, blocks, format, layout, axis)
    out = torch.empty_like(blocks, memory_format=torch.contiguous_format)
    arithmetic = arithmetic_dtype(x.dtype)
    is_calibrated = isinstance(format.scale, FloatScale) and format.scale.absmax is not None
    rows = max(1, PIECE // blocks.shape[1])
    for start in range(0, blocks.shape[0], rows):
        part = slice(start, start + rows)
        piece = blocks[part].to(arithmetic)
        scales = choose_scales(piece, format, x.dtype, None if above is None else above[part])
        for columns in _column_pieces(piece):
            values = round_blocks(piece[:, columns], format.element, scales)
            _write(out[part, columns], values, format.element, scales)
            if is_calibrated:
                # No block's own maximum carries a value that is not finite into the result.
                out[part, columns].add_(piece[:, columns], alpha=0)
    del blocks, piece  # a copy where the axis is not the last, as what `join` makes is
    return layout.join(out, tuple(x.shape))


def _column_pieces(piece: Tensor) -> Iterator[slice]:
    width = piece.shape[1]
    for start in range(0, width, PIECE):
        yield slice(start, min(start + PIECE, width))


def round_blocks(blocks: Tensor, element: Element, scales: Scales) -> Tensor:
    """Values in units of the element."""
    blocks = blocks.to(scales.unit.dtype)
    if scales.inverse is not None:
        scaled = blocks * scales.inverse
    else:
        scaled = blocks / divisor(scales.unit)
    return round_to_element(scaled, element, scales.zero_point)


def _write(out: Tensor, values: Tensor, element: Element, scales: Scales) -> None:
    """Values in units of the element, scaled back, saturated at what the dtype holds, cast."""
    unit = scales.unit
    if scales.may_overflow:
        saturate(values, element, unit, out.dtype)
    product = scale_back(values, unit, element, out=out if out.dtype == unit.dtype else values)
    if product is not out:
        # float64 stood in for float32: round to that first, as float32 arithmetic would have.
        out.copy_(product.float() if out.dtype != torch.float32 else product)


def scale_back(
    values: Tensor, unit: Tensor, element: Element, *, out: Tensor | None = None
) -> Tensor:
    """The values, in units of the element, times their unit, written to `out` if it is there.

    Where the element has no negative zero, every product that is zero is +0.
    """
    product = torch.mul(values, unit, out=out)
    # A value below 0 times a unit of 0 is -0, as 0 times a unit below 0: adding 0 takes it away.
    return product if has_negative_zero(element) else product.add_(0.0)


def saturate(values: Tensor, element: Element, unit: Tensor, dtype: torch.dtype) -> None:
    """Bounds values, in place, to the largest whose product with the unit the dtype holds."""
    bounds = (largest_held(dtype) / unit.double().abs()).nan_to_num_(nan=math.inf)
    largest = truncate_to_element(bounds, element).to(values.dtype)
    if has_negative_zero(element):
        # Of two zeros torch's clamp gives one or the other, as the strides happen to be.
        torch.copysign(torch.minimum(values.abs(), largest), values, out=values)
    else:
        lowest = truncate_to_element(bounds, element, negative=True).neg_().to(values.dtype)
        values.clamp_(lowest, largest).add_(0.0)


def quantize_alone(x: Tensor, format: Format) -> Tensor:
    """The values of a tensor in a format without stored scales: each by itself."""
    if format.is_identity and x.dtype != torch.float64:
        return x
    flat = x.reshape(-1)
    out = torch.empty_like(flat)
    for start in range(0, flat.numel(), PIECE):
        piece = flat[start : start + PIECE]
        values = round_alone(piece, format)
        if isinstance(format.scale, StaticScale):
            values.mul_(2.0**-format.scale.fraction)
        # 0 * x is 0 with the sign of x, or NaN: a value that is not finite poisons itself.
        out[start : start + PIECE] = values.add_(piece, alpha=0)
    return out.view(x.shape)


def round_alone(x: Tensor, format: Format, dtype: torch.dtype | None = None) -> Tensor:
    """The values of `x` in a format without stored scales, in units of the element.

    Args:
        x: A float tensor.
        format: The format.
        dtype: What the values will be cast to, which bounds them; None: the dtype of `x`.
    """
    element = format.element
    dtype = dtype or x.dtype
    fraction = format.scale.fraction if isinstance(format.scale, StaticScale) else 0
    bound = bound_in(dtype, element, fraction)
    cast = CASTS.get(element) if isinstance(element, FloatElement) else None
    if cast is not None and dtype != torch.float64:
        largest = bound or element.largest
        return x.float().clamp(-largest, largest).to(cast).float()
    arithmetic = arithmetic_dtype(dtype) if fits_float32(element) else torch.float64
    return round_to_element(x.to(arithmetic) * 2.0**fraction, element, largest=bound)


@lru_cache(maxsize=1024)
def bound_in(dtype: torch.dtype, element: Element, fraction: int) -> float:
    """The largest value, in units of the element, that the dtype holds; 0 if it holds all."""
    holds = torch.tensor(largest_held(dtype), dtype=torch.float64) * 2.0**fraction
    bound = float(truncate_to_element(holds, element))
    return 0.0 if float(holds) >= reach(element) else bound


def scales_above(
    x: Tensor, blocks: Tensor, format: Format, layout: Layout, axis: int
) -> Tensor | None:
    """The scale above each block, [blocks, 1]; None where the format has none."""
    scale = format.scale
    if not isinstance(scale, NestedScale):
        return None
    rows = Layout.of(tuple(x.shape), axis, ROW if scale.per_row else TENSOR).split(x)
    above = scale_above(_finite_peaks(rows, scale), scale)
    if scale.per_row:
        above = above.repeat_interleave(layout.blocks_per_row, dim=0)
    return above.expand(blocks.shape[0], 1).to(arithmetic_dtype(x.dtype))


def _finite_peaks(rows: Tensor, scale: NestedScale) -> Tensor:
    """The largest finite magnitude of each row, [rows, 1]."""
    if scale.absmax is not None:
        return torch.zeros(rows.shape[0], 1, device=rows.device)
    rows = rows.to(arithmetic_dtype(rows.dtype))
    peaks = largest_magnitudes(rows)
    if bool(peaks.isfinite().all()):
        return peaks
    return largest_magnitudes(torch.where(rows.isfinite(), rows, 0.0))
