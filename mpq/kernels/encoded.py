"""Tensors as the packed codes and scales that a checkpoint would store, and back."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq.formats.element import TableElement
from mpq.formats.format import Format
from mpq.formats.packing import pack, unpack
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent, StaticScale
from mpq.kernels.bits import FLOAT64, exponents_of, powers_of_two
from mpq.kernels.codes import codes_of, values_of
from mpq.kernels.eager import (
    arithmetic_dtype,
    bound_in,
    round_alone,
    round_blocks,
    saturate,
    scale_back,
    scales_above,
)
from mpq.kernels.layout import Layout
from mpq.kernels.scaling import (
    BLOCK_SCALE,
    Scales,
    calibrated_unit,
    choose_scales,
    exponent_offset,
    scale_above,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A tensor in a format, as stored.

    Attributes:
        format: The format.
        axis: The axis along which its blocks lie.
        shape: The tensor's shape.
        dtype: The dtype in which the tensor was, and to which `decode` returns by default.
        codes: One code for each value in row-major order, packed to the format's width, uint8.
        scales: One for each block: shared exponents and e4m3 scales packed, uint8; float scales
            in their own dtype; None where the format stores none.
        zero_points: One for each block, packed to the element's width, uint8, or None.
        tensor_scales: float32, above the block scales: one for the tensor, or for each row.
    """

    format: Format
    axis: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    codes: Tensor
    scales: Tensor | None = None
    zero_points: Tensor | None = None
    tensor_scales: Tensor | None = None

    @property
    def num_blocks(self) -> int:
        """The number of blocks, short ones included; 0 where the format has no blocks."""
        return self.format.block.count(self.shape, self.axis) if self.format.block else 0

    @property
    def num_bits(self) -> int:
        """Bits of everything that is stored, without the padding of packed bytes."""
        total = math.prod(self.shape) * self.format.element.width
        if self.scales is not None:
            packed = self.num_blocks * self.format.block_bits
            is_float = self.scales.is_floating_point()
            total += self.scales.numel() * self.scales.itemsize * 8 if is_float else packed
        if self.zero_points is not None:
            total += self.num_blocks * self.format.element.width
        if self.tensor_scales is not None:
            total += self.tensor_scales.numel() * self.tensor_scales.itemsize * 8
        return total


def encode_blocks(x: Tensor, format: Format, axis: int) -> Encoded:
    """The packed codes and scales of a finite tensor that is not empty."""
    if format.block is None:
        return encode_values(round_alone(x, format), format, axis, x.dtype)
    layout = Layout.of(tuple(x.shape), axis, format.block)
    blocks = layout.split(x).to(computing_dtype(format, x.dtype))
    above = scales_above(x, blocks, format, layout, axis)
    scales = choose_scales(blocks, format, x.dtype, above)
    values = layout.join(round_blocks(blocks, format.element, scales), tuple(x.shape))
    return encode_values(values, format, axis, x.dtype, scales=scales, above=above)


def computing_dtype(format: Format, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the blocks of a tensor of this dtype are encoded."""
    # Shared exponents are exact in float64, and there even those of blocks of zeros.
    return torch.float64 if isinstance(format.scale, SharedExponent) else arithmetic_dtype(dtype)


def encode_values(
    values: Tensor,
    format: Format,
    axis: int,
    dtype: torch.dtype,
    *,
    scales: Scales | None = None,
    above: Tensor | None = None,
) -> Encoded:
    """The packed codes and scales of a tensor whose values and scales are chosen already.

    Args:
        values: The tensor in units of the element: values that the element has.
        format: The format.
        axis: The axis along which blocks lie.
        dtype: The dtype of the tensor that the values stand for.
        scales: One for each block, in the order of `Layout.split`; None without blocks.
        above: The scale above each block's, [blocks, 1], of a nested scale.
    """
    shape, element = tuple(values.shape), format.element
    if format.block is None or scales is None:
        packed = _packed(codes_of(values, element), element.width)
        return Encoded(format=format, axis=axis, shape=shape, dtype=dtype, codes=packed)
    layout = Layout.of(shape, axis, format.block)
    zero_point = scales.zero_point
    blocks = layout.split(values).contiguous()
    codes = layout.join(codes_of(blocks, element, zero_point), shape)
    return Encoded(
        format=format,
        axis=axis,
        shape=shape,
        dtype=dtype,
        codes=_packed(codes, element.width),
        scales=_stored_scales(scales, format),
        zero_points=None if zero_point is None else _packed(zero_point, element.width),
        tensor_scales=_stored_above(above, format, layout),
    )


def decode_blocks(encoded: Encoded, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The values of a tensor that is not empty, in the dtype; in `out`, where it is given."""
    values = _decoded(encoded, dtype)
    return values if out is None else out.copy_(values)


def _decoded(encoded: Encoded, dtype: torch.dtype) -> Tensor:
    format, element = encoded.format, encoded.format.element
    codes = _unpacked(encoded.codes, element.width, math.prod(encoded.shape))
    arithmetic = arithmetic_dtype(encoded.dtype)
    if format.block is None:
        values = values_of(codes, element)
        bound = bound_in(dtype, element, _fraction(format))
        if bound:
            values.clamp_(-bound, bound)
        return values.mul_(2.0 ** -_fraction(format)).to(dtype).reshape(encoded.shape)
    layout = Layout.of(encoded.shape, encoded.axis, format.block)
    zero_point = None
    if encoded.zero_points is not None:
        zero_point = _unpacked(encoded.zero_points, element.width, encoded.num_blocks)[:, None]
    unit = _stored_units(encoded, layout)
    values = values_of(layout.split(codes.reshape(encoded.shape)), element, zero_point)
    values = values.to(unit.dtype)
    saturate(values, element, unit, dtype)
    product = scale_back(values, unit, element, out=values)
    return layout.join(product.to(arithmetic).to(dtype), encoded.shape)


def block_units(encoded: Encoded) -> Tensor:
    """What one step of the element is worth in each block, [blocks] in `Layout.split`'s order.

    float64, and exactly the number by which `decode` multiplies an element's value. One entry
    stands for the whole tensor where the format itself names the scale, or has none.
    """
    if encoded.format.block is None:
        return torch.tensor([2.0 ** -_fraction(encoded.format)], dtype=torch.float64)
    layout = Layout.of(encoded.shape, encoded.axis, encoded.format.block)
    return _stored_units(encoded, layout).double().flatten()


def _fraction(format: Format) -> int:
    return format.scale.fraction if isinstance(format.scale, StaticScale) else 0


def _stored_scales(scales: Scales, format: Format) -> Tensor | None:
    match format.scale:
        case SharedExponent(width=width):
            stored = exponents_of(scales.unit) - unit_exponent(format)
            return _packed(stored, width)
        case NestedScale() if scales.stored is not None:
            return _packed(codes_of(scales.stored, BLOCK_SCALE), BLOCK_SCALE.width)
    return None if scales.stored is None else scales.stored.flatten()


def _stored_units(encoded: Encoded, layout: Layout) -> Tensor:
    """The unit of each block, [blocks, 1] (or one for all), as `choose_scales` had it."""
    element, scale = encoded.format.element, encoded.format.scale
    dtype = arithmetic_dtype(encoded.dtype)
    if isinstance(scale, FloatScale) and scale.absmax is not None:
        return calibrated_unit(
            element, scale, torch.empty(0, dtype=dtype, device=encoded.codes.device)
        )
    scales = part_of(encoded, "scales")
    if isinstance(scale, FloatScale):
        return scales.to(dtype)[:, None]
    stored = _unpacked(scales, encoded.format.block_bits, encoded.num_blocks)[:, None]
    if isinstance(scale, SharedExponent):
        return powers_of_two(stored + unit_exponent(encoded.format), FLOAT64)
    return values_of(stored, BLOCK_SCALE).to(dtype) * _tensor_scales(encoded, layout, dtype)


def part_of(encoded: Encoded, name: str) -> Tensor:
    """The scales, zero points or tensor scales, which the format stores.

    Raises:
        TypeError: They are missing.
    """
    part: Tensor | None = getattr(encoded, name)
    if part is None:
        raise TypeError(f"{encoded.format} stores {name}, and this has none")
    return part


def unit_exponent(format: Format) -> int:
    """The exponent of a block's unit whose stored exponent is code 0."""
    element, scale = format.element, format.scale
    if not isinstance(scale, SharedExponent) or isinstance(element, TableElement):
        raise TypeError(f"{format} has no shared exponent")
    return scale.lowest + exponent_offset(element, scale) - element.max_exponent


def _tensor_scales(encoded: Encoded, layout: Layout, dtype: torch.dtype) -> Tensor:
    scale = encoded.format.scale
    if isinstance(scale, NestedScale) and scale.absmax is not None:
        above = scale_above(torch.zeros(1, device=encoded.codes.device), scale)
    else:
        above = part_of(encoded, "tensor_scales")
    if above.numel() > 1:
        above = above.repeat_interleave(layout.blocks_per_row)
    return above.to(dtype)[:, None]


def _stored_above(above: Tensor | None, format: Format, layout: Layout) -> Tensor | None:
    scale = format.scale
    if above is None or not isinstance(scale, NestedScale) or scale.absmax is not None:
        return None
    every = layout.blocks_per_row if scale.per_row else above.shape[0]
    return above[::every].flatten().float()


def _packed(codes: Tensor, width: int) -> Tensor:
    return torch.from_numpy(pack(codes.long().cpu().numpy(), width)).to(codes.device)


def _unpacked(packed: Tensor, width: int, count: int) -> Tensor:
    codes = unpack(packed.cpu().numpy(), width, count)
    return torch.from_numpy(codes.astype("int64")).to(packed.device)
