"""What compiled loops are told of an encoded tensor: packed codes, and what each stands for.

A code of few bits has few values, so a table of them holds all that an element is.
"""

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpq.formats.element import Element, IntegerElement, TableElement
from mpq.formats.format import Format
from mpq.formats.packing import pack
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent
from mpq.kernels import encoded as eager
from mpq.kernels.bits import FLOAT64, powers_of_two
from mpq.kernels.codes import values_of
from mpq.kernels.cpu_elements import added_zero
from mpq.kernels.cpu_threads import memory_of
from mpq.kernels.eager import saturate
from mpq.kernels.encoded import Encoded, unit_exponent
from mpq.kernels.scaling import BLOCK_SCALE
from mpq.kernels.stored_parts import (
    stored_above,
    stored_codes,
    stored_scales,
    stored_zero_points,
)

WIDEST = 16
"""Bits of the widest codes that have a table: 256 KiB of float32, which the L2 cache holds."""

WORD = 8
"""Bytes that loops read at once: the fewest of packed codes that they are handed."""


class Codes(NamedTuple):
    """Packed codes.

    Attributes:
        packed: Their bytes, `WORD` at least.
        width: Bits of a code.
        values: What each code stands for, [2^width]: float32, or as the result is stored.
    """

    packed: NDArray[np.uint8]
    width: int
    values: NDArray[Any]


class Powers(NamedTuple):
    """Shared exponents.

    Attributes:
        codes: One for each block; their values float64 units.
    """

    codes: Codes


class Scales(NamedTuple):
    """Float scales.

    Attributes:
        stored: One for each block: float32, or the bits of bfloat16 or float16.
    """

    stored: NDArray[Any]


class ScalesAndZeros(NamedTuple):
    """Float scales with zero points.

    Attributes:
        stored: A scale for each block: float32, or the bits of bfloat16 or float16.
        zeros: A zero point for each block.
    """

    stored: NDArray[Any]
    zeros: Codes


class Pairs(NamedTuple):
    """Block scales under float32 scales.

    Attributes:
        codes: One e4m3 scale for each block.
        above: The scale above: of all blocks, or of each row.
    """

    codes: Codes
    above: NDArray[np.float32]


Units = Powers | Scales | ScalesAndZeros | Pairs


class Products(NamedTuple):
    """What is asked of the products of values and units.

    The result's dtype holds every one of an ordinary block.

    Attributes:
        largest: The largest magnitude of the element, float64.
        limit: The dtype's largest value.
        zero: What is added to a product last: 0 takes the sign of -0 away, -0 keeps it.
    """

    largest: float
    limit: float
    zero: np.float32


class Scratch(NamedTuple):
    """Room for one tile at a time.

    Attributes:
        values: Of the tile, in units of the element.
        units: Of each block, float64.
        zeros: Of each block, its zero point.
    """

    values: NDArray[np.float32]
    units: NDArray[np.float64]
    zeros: NDArray[np.float32]


def element_codes(encoded: Encoded) -> Codes:
    """The tensor's codes, each with its value in units of the element."""
    return _codes(stored_codes(encoded), element_values(encoded.format.element))


def result_codes(encoded: Encoded, dtype: torch.dtype) -> Codes:
    """The codes of a tensor without blocks, or of one block, each with the value of the result."""
    packed = stored_codes(encoded)
    if encoded.format.block is None:
        return _codes(packed, _results_alone(encoded.format, encoded.dtype, dtype))
    return _codes(packed, _results(encoded, dtype))


def units_of(encoded: Encoded) -> Units:
    """What is stored for blocks."""
    match encoded.format.scale:
        case SharedExponent(width=width):
            units = powers_of_two(
                torch.arange(1 << width) + unit_exponent(encoded.format), FLOAT64
            )
            return Powers(_codes(stored_scales(encoded), units.numpy()))
        case NestedScale() as scale:
            codes = _codes(stored_scales(encoded), element_values(BLOCK_SCALE, saturates=False))
            return Pairs(codes, stored_above(encoded, scale).numpy())
        case FloatScale(zero_point=True):
            zeros = _codes(stored_zero_points(encoded), element_values(encoded.format.element))
            return ScalesAndZeros(memory_of(stored_scales(encoded)), zeros)
    return Scales(memory_of(stored_scales(encoded)))


def products_of(encoded: Encoded, dtype: torch.dtype) -> Products:
    """What is asked of the products of a tensor's values and units in a result of the dtype."""
    element = encoded.format.element
    largest = float(np.abs(element_values(element)).max())
    # A power of two times a value is zero only where eager rounds it, after all else.
    is_power = isinstance(encoded.format.scale, SharedExponent)
    zero = np.float32(-0.0) if is_power else added_zero(element)
    return Products(largest, torch.finfo(dtype).max, zero)


@lru_cache(maxsize=64)
def element_values(element: Element, *, saturates: bool = True) -> NDArray[np.float32]:
    """The value of each code, [2^width]; of an asymmetric integer the code itself.

    Args:
        element: The element.
        saturates: Whether codes that `encode` never writes stand for the largest value, as they
            do in a tensor's values.
    """
    codes = _every_code(element)
    if isinstance(element, IntegerElement) and element.code == "asymmetric":
        return codes.float().numpy()
    values = values_of(codes, element)
    if saturates:
        saturate(values, element, values.new_tensor(2.0**-500), torch.float32)
    return values.float().numpy()


def _every_code(element: Element) -> Tensor:
    """0 to 2^width - 1; the last code again and again where a table is shorter."""
    codes = torch.arange(1 << element.width)
    return (
        codes.clamp_(max=len(element.values) - 1) if isinstance(element, TableElement) else codes
    )


@lru_cache(maxsize=32)
def _results_alone(format: Format, encoded_as: torch.dtype, dtype: torch.dtype) -> NDArray[Any]:
    empty = torch.empty(0, dtype=torch.uint8)
    encoded = Encoded(format=format, axis=0, shape=(0,), dtype=encoded_as, codes=empty)
    return _results(encoded, dtype)


def _results(encoded: Encoded, dtype: torch.dtype) -> NDArray[Any]:
    """What eager makes of each code, [2^width], as it is stored."""
    element = encoded.format.element
    codes = torch.from_numpy(pack(_every_code(element).numpy(), element.width))
    every = dataclasses.replace(encoded, axis=0, shape=(1 << element.width,), codes=codes)
    return memory_of(eager.decode_blocks(every, dtype))


def _codes(packed: Tensor, values: NDArray[Any]) -> Codes:
    missing = max(0, WORD - packed.numel())
    padded = torch.nn.functional.pad(packed, (0, missing)) if missing else packed
    return Codes(padded.numpy(), len(values).bit_length() - 1, values)
