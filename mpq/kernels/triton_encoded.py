"""Codes on CUDA by Triton kernels: `encode_blocks` and `decode_blocks` of `encoded.py`.

Triton is imported by the first call, not with this module.
"""

import math

import torch
from torch import Tensor

from mpq.formats.block import positive_axis
from mpq.formats.format import Format
from mpq.formats.packing import packed_bytes
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent
from mpq.kernels.encoded import Encoded
from mpq.kernels.scaling import SCALE_TORCH_DTYPES
from mpq.kernels.stored_parts import (
    stored_above,
    stored_codes,
    stored_scales,
    stored_zero_points,
)
from mpq.kernels.triton_given import given
from mpq.kernels.triton_launch import covers, grid_of, in_pieces, launch, on_device, seen
from mpq.kernels.triton_stored import decoding_facts, encoding_facts

__all__ = ["covers", "decode_blocks", "encode_blocks"]

BYTES_AT_ONCE = 1024
"""Bytes that a program packs."""


def encode_blocks(x: Tensor, format: Format, axis: int) -> Encoded:
    """The packed codes and scales of a finite tensor, bit for bit those of eager.

    Beside what comes back, every code takes 8, 16 or 32 bits until it is packed.

    Args:
        x: A tensor that is not empty and that `covers` accepts, on a CUDA device (on any where
            Triton interprets).
        format: A format.
        axis: The axis along which blocks lie.
    """
    from mpq.kernels import triton_encoding

    at = positive_axis(tuple(x.shape), axis)
    x = seen(x, format, at)
    with on_device(x):
        kind, facts, found = given(x, format, at)
        parts = _room(x, format, at)
        beside = () if kind == "alone" else (found,)
        grid = grid_of(x, parts["codes"], format, at)
        told = encoding_facts(format, facts, in_pieces=in_pieces(format, x, at))
        kernel = getattr(triton_encoding, f"encode_{kind}")
        strides = (grid.strides, grid.out_strides)
        launch(kernel, (x, *parts.values(), *beside), grid, strides, told)
        stored = {name: _as_stored(part, name, format) for name, part in parts.items()}
    is_nested = isinstance(format.scale, NestedScale) and format.scale.absmax is None
    return Encoded(
        format=format,
        axis=axis,
        shape=tuple(x.shape),
        dtype=x.dtype,
        codes=stored["codes"],
        scales=None if _is_calibrated(format) else stored.get("scales"),
        zero_points=stored.get("zero_points"),
        tensor_scales=found if is_nested else None,
    )


def decode_blocks(encoded: Encoded, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The values of a tensor that is not empty, in the dtype, bit for bit those of eager.

    Raises:
        FormatError: There are not just the bytes and scales that the shape takes.
        TypeError: Scales are missing.
    """
    from mpq.kernels import triton_decoding

    format = encoded.format
    at = positive_axis(encoded.shape, encoded.axis)
    codes = stored_codes(encoded)
    if out is None:
        out = torch.empty(encoded.shape, dtype=dtype, device=codes.device)
    told = decoding_facts(format, dtype, in_pieces=in_pieces(format, out, at))
    kernel, beside = triton_decoding.decode_alone, list[Tensor]()
    match format.scale:
        case SharedExponent():
            kernel, beside = triton_decoding.decode_powers, [stored_scales(encoded)]
        case FloatScale() | NestedScale():
            kernel = triton_decoding.decode_floats
            beside = [stored_scales(encoded), _beside_scales(encoded)]
    with on_device(out):
        grid = grid_of(out, out, format, at)
        launch(kernel, (out, codes, *beside), grid, (grid.strides,), told)
    return out


def _room(x: Tensor, format: Format, at: int) -> dict[str, Tensor]:
    """Memory for what is stored, by its name, as kernels write it: each code an integer."""
    width = format.element.width
    parts = {"codes": torch.empty(x.shape, dtype=_integer(width), device=x.device)}
    if format.block is None:
        return parts
    blocks = 0 if _is_calibrated(format) else format.block.count(tuple(x.shape), at)
    parts["scales"] = torch.empty(blocks, dtype=_scale_dtype(format), device=x.device)
    if isinstance(format.scale, FloatScale) and format.scale.zero_point:
        parts["zero_points"] = torch.empty(blocks, dtype=_integer(width), device=x.device)
    return parts


def _as_stored(part: Tensor, name: str, format: Format) -> Tensor:
    if name != "scales":
        return _packed(part, format.element.width)
    return part if part.is_floating_point() else _packed(part, format.block_bits)


def _packed(codes: Tensor, width: int) -> Tensor:
    """The bytes that hold codes without padding between them, as `mpq.formats.packing` does."""
    from mpq.kernels.triton_codes import pack

    if width == 8 * codes.itemsize:
        return codes.flatten().view(torch.uint8)
    size = packed_bytes(width, codes.numel())
    packed = torch.empty(size, dtype=torch.uint8, device=codes.device)
    programs = math.ceil(size / BYTES_AT_ONCE)
    pack[(programs,)](codes, packed, codes.numel(), size, width=width, bytes_at_once=BYTES_AT_ONCE)
    return packed


def _beside_scales(encoded: Encoded) -> Tensor:
    """Zero points, or the scales above those of blocks; the codes where there are neither."""
    match encoded.format.scale:
        case FloatScale(zero_point=True):
            return stored_zero_points(encoded)
        case NestedScale() as scale:
            return stored_above(encoded, scale)
    return encoded.codes


def _integer(width: int) -> torch.dtype:
    """The smallest integers that hold codes."""
    return torch.uint8 if width <= 8 else torch.int16 if width <= 16 else torch.int32


def _scale_dtype(format: Format) -> torch.dtype:
    if isinstance(format.scale, FloatScale):
        return SCALE_TORCH_DTYPES[format.scale.dtype]
    return torch.uint8


def _is_calibrated(format: Format) -> bool:
    return isinstance(format.scale, FloatScale) and format.scale.absmax is not None
