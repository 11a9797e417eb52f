"""Floats as the integers of their bits: exponents and powers of two, exactly."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatBits:
    """The IEEE 754 layout of an arithmetic dtype.

    Attributes:
        dtype: The float dtype.
        integer: The integer dtype of the same size.
        mantissa: Bits of the mantissa field.
        bias: What is subtracted from the exponent field.
        infinity: The bits of +inf; larger magnitudes are NaN.
        magnitude: A mask of all but the sign.
    """

    dtype: torch.dtype
    integer: torch.dtype
    mantissa: int
    bias: int
    infinity: int
    magnitude: int

    def power(self, exponent: int) -> int:
        """The bits of 2^exponent, a normal number of the dtype."""
        return exponent + self.bias << self.mantissa


FLOAT32 = FloatBits(
    dtype=torch.float32,
    integer=torch.int32,
    mantissa=23,
    bias=127,
    infinity=0xFF << 23,
    magnitude=0x7FFFFFFF,
)
FLOAT64 = FloatBits(
    dtype=torch.float64,
    integer=torch.int64,
    mantissa=52,
    bias=1023,
    infinity=0x7FF << 52,
    magnitude=0x7FFFFFFFFFFFFFFF,
)


def largest_held(dtype: torch.dtype) -> float:
    """The largest float64 that stays finite, rounded to float32 and then to `dtype`."""
    if dtype == torch.float64:
        return torch.finfo(dtype).max
    overflow = 2.0**128 - 2.0**103  # half a unit in the last place above float32's largest
    if dtype == torch.bfloat16:
        overflow = 2.0**128 - 2.0**119 - 2.0**103
    if dtype == torch.float16:
        overflow = 2.0**16 - 2.0**4 - 2.0**-9
    return math.nextafter(overflow, 0.0)


def bits_of(x: Tensor) -> FloatBits:
    """The layout of a float32 or float64 tensor."""
    return FLOAT64 if x.dtype == torch.float64 else FLOAT32


def bits_of_integer(bits: Tensor) -> FloatBits:
    """The layout of which an int32 or int64 tensor holds the bits."""
    return FLOAT64 if bits.dtype == torch.int64 else FLOAT32


def powers_of_two(exponents: Tensor, layout: FloatBits) -> Tensor:
    """2^exponent of each, exactly; exponents must be those of normal numbers of the dtype."""
    return ((exponents + layout.bias) << layout.mantissa).to(layout.integer).view(layout.dtype)


def exponents_of(magnitudes: Tensor) -> Tensor:
    """floor(log2) of each magnitude, as integers; -bias for zeros and subnormals."""
    layout = bits_of(magnitudes)
    return (magnitudes.view(layout.integer) >> layout.mantissa) - layout.bias
