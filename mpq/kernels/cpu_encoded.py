"""Decoding on CPUs in compiled loops: each packed byte is read once, each value written once.

A code of few bits has few values: tables hold them, made by eager's own functions. The tiles are
those of `mpq.kernels.cpu`. A tensor of which a block is not ordinary (its values might not all be
finite in the result's dtype) is eager's. So the bits are those of `mpq.kernels.encoded`.
"""

import numpy as np
import torch
from torch import Tensor

from mpq.formats.block import TENSOR, WHOLE, positive_axis
from mpq.formats.format import Format
from mpq.formats.scale import SharedExponent
from mpq.kernels import encoded as eager
from mpq.kernels.cpu_stored import (
    WIDEST,
    Scratch,
    element_codes,
    products_of,
    result_codes,
    units_of,
)
from mpq.kernels.cpu_threads import STORED, in_shares, memory_of
from mpq.kernels.cpu_tiles import LARGEST_BLOCK, Place, place_of
from mpq.kernels.encoded import Encoded
from mpq.kernels.rounding import fits_float32


def covers(format: Format, x: Tensor, axis: int) -> bool:
    """Whether this path decodes such a tensor in the format; what it does not is eager's.

    Not: float64, codes past `WIDEST` bits, blocks of several rows or too large for any cache, and
    elements under a shared exponent that float32 does not hold.

    Args:
        format: The format.
        x: A tensor of the shape, in the wider of the dtypes that was encoded and that is wanted.
        axis: The axis along which blocks lie.
    """
    block = format.block
    if x.dtype not in STORED or format.element.width > WIDEST:
        return False
    if block is None or block == TENSOR:
        return True
    if isinstance(format.scale, SharedExponent) and not fits_float32(format.element):
        return False
    length = x.shape[positive_axis(tuple(x.shape), axis)] if x.dim() else 1
    size = length if block.columns == WHOLE else min(block.columns, length)
    return block.rows == 1 and size <= LARGEST_BLOCK


def decode_blocks(encoded: Encoded, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The values of a covered tensor that is not empty, bit for bit those of eager.

    Args:
        encoded: What is stored.
        dtype: Of the values.
        out: Where they go: contiguous, of the shape and the dtype; None: a tensor of their own.

    Raises:
        FormatError: What is stored is not as many bytes and scales as the shape takes.
        TypeError: A part that the format stores is missing.
    """
    given, out = out, torch.empty(encoded.shape, dtype=dtype) if out is None else out
    if encoded.format.block is None or encoded.format.block == TENSOR:
        _decode_alone(encoded, out)
        return out
    if not _decode_tiles(
        encoded, out, place_of(encoded.shape, encoded.axis, encoded.format.block)
    ):
        del out  # eager's own stands in its place
        return eager.decode_blocks(encoded, dtype, given)
    return out


def _decode_alone(encoded: Encoded, out: Tensor) -> None:
    from mpq.kernels.cpu_decoding import decode_alone

    codes, target = result_codes(encoded, out.dtype), memory_of(out)
    in_shares(out.numel(), out.numel(), lambda reach: decode_alone(codes, target, reach))


def _decode_tiles(encoded: Encoded, out: Tensor, place: Place) -> bool:
    """Whether all blocks are ordinary; then the values are written."""
    from mpq.kernels.cpu_decoding import decode_tiles

    codes, units, target = element_codes(encoded), units_of(encoded), memory_of(out)
    products = products_of(encoded, out.dtype)

    def take(reach: tuple[int, int]) -> object:
        scratch = Scratch(
            np.empty(place.room, dtype=np.float32),
            np.empty(place.blocks, dtype=np.float64),
            np.empty(place.blocks, dtype=np.float32),
        )
        return decode_tiles(codes, units, products, target, place, scratch, reach)

    return all(in_shares(place.tiles, out.numel(), take))
