"""The code set of every element: each bit pattern decoded on its own, exactly.

Sources: OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0 section 5.3; IEEE
754-2019 section 3.4; Dettmers et al., QLoRA (arXiv 2305.14314), appendix E; design section 3.
"""

import bisect
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

# QLoRA, appendix E: the sixteen values of the 4-bit NormalFloat.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Codes:
    """The values that the codes of an element stand for.

    `values` ascend and are exact (a Python float holds every one of them); `even[i]` says whether
    the code of `values[i]` ends in a 0 bit; `signed_zero` whether there is a code for -0.
    """

    values: tuple[float, ...]
    even: tuple[bool, ...]
    signed_zero: bool

    @property
    def largest(self) -> float:
        return self.values[-1]

    @functools.cached_property
    def magnitudes(self) -> "Codes":
        """What is left of sign-magnitude codes without the sign."""
        kept = [i for i, value in enumerate(self.values) if value >= 0]
        return Codes(tuple(self.values[i] for i in kept), tuple(self.even[i] for i in kept), False)

    @functools.cached_property
    def falling(self) -> tuple[float, ...]:
        """From the largest down to zero."""
        return tuple(value for value in reversed(self.values) if value >= 0)

    @functools.cached_property
    def rising(self) -> tuple[float, ...]:
        """From the lowest up to zero."""
        return tuple(value for value in self.values if value <= 0)

    @functools.cached_property
    def _sums(self) -> tuple[float, ...]:
        """Twice the midpoints between neighbours, exactly."""
        sums = tuple(low + high for low, high in itertools.pairwise(self.values))
        for total, (low, high) in zip(sums, itertools.pairwise(self.values), strict=True):
            assert Fraction(total) == Fraction(low) + Fraction(high)
        return sums

    def nearest(self, x: float | Fraction) -> float:
        """The value nearest to `x`; in a tie the one with the even code; the ends saturate."""
        above = bisect.bisect_left(self.values, x)
        if above == 0:
            return self.values[0]
        if above == len(self.values):
            return self.values[-1]
        low, high, twice = self.values[above - 1], self.values[above], self._sums[above - 1]
        if 2 * x != twice:
            return low if 2 * x < twice else high
        assert self.even[above - 1] != self.even[above], "neighbours of equal parity"
        return low if self.even[above - 1] else high


def from_patterns(
    width: int, decode: Callable[[int], Fraction | float | None], signed_zero: bool
) -> Codes:
    """All `width`-bit patterns through `decode` (None: not a finite number).

    Of several patterns for one value the first counts, so enumerate the one that is stored first.
    """
    even: dict[float, bool] = {}
    for pattern in range(2**width):
        value = decode(pattern)
        if value is not None:
            assert float(value) == value, "every code value must be exact in a Python float"
            even.setdefault(float(value), pattern % 2 == 0)
    values = tuple(sorted(even))
    return Codes(values, tuple(even[value] for value in values), signed_zero)


def _signed(width: int, magnitude: Callable[[int], Fraction | float | None]) -> Codes:
    """A sign bit above a magnitude pattern of `width` - 1 bits."""

    def decode(pattern: int) -> Fraction | float | None:
        sign, rest = divmod(pattern, 2 ** (width - 1))
        value = magnitude(rest)
        return None if value is None else -value if sign else value

    return from_patterns(width, decode, signed_zero=True)


@functools.cache
def minifloat(exponent: int, mantissa: int, bias: int | None = None) -> Codes:
    """IEEE-style float with subnormals that spends no code on infinities or NaN."""
    if bias is None:
        bias = 2 ** (exponent - 1) - 1

    def magnitude(pattern: int) -> Fraction:
        e, m = divmod(pattern, 2**mantissa)
        if e == 0:
            return Fraction(m, 2**mantissa) * Fraction(2) ** (1 - bias)
        return (1 + Fraction(m, 2**mantissa)) * Fraction(2) ** (e - bias)

    return _signed(1 + exponent + mantissa, magnitude)


@functools.cache
def ieee(exponent: int, mantissa: int) -> Codes:
    """IEEE 754: the top exponent holds infinities and NaN (OCP e5m2, fp16, bf16)."""
    codes = minifloat(exponent, mantissa)
    top = 2.0 ** (2 ** (exponent - 1))
    return _within(codes, top * (1 - 2.0 ** -(mantissa + 2)))


@functools.cache
def ocp_e4m3() -> Codes:
    """OCP FP8 e4m3: only S.1111.111 is NaN, so 448 is the largest (OCP FP8 1.0, table 1)."""
    return _within(minifloat(4, 3), 448.0)


def _within(codes: Codes, largest: float) -> Codes:
    kept = [i for i, value in enumerate(codes.values) if abs(value) <= largest]
    return Codes(
        tuple(codes.values[i] for i in kept),
        tuple(codes.even[i] for i in kept),
        codes.signed_zero,
    )


@functools.cache
def denormalised(exponent: int, mantissa: int, bias: int | None = None) -> Codes:
    """Float without an implicit one: m / 2^M * 2^(e - bias), many codes for one value.

    The normalised code has the smallest exponent, so the largest mantissa. Its low bit alternates
    from magnitude to magnitude; with one mantissa bit, where every normalised mantissa is 1, the
    place among the magnitudes takes its part.
    """
    if bias is None:
        bias = 2 ** (exponent - 1) - 1

    def magnitude(pattern: int) -> Fraction:
        e, m = divmod(pattern, 2**mantissa)
        return Fraction(m, 2**mantissa) * Fraction(2) ** (e - bias)

    codes = _signed(1 + exponent + mantissa, magnitude)
    if mantissa > 1:
        return codes
    zero = codes.values.index(0.0)
    places = tuple((place - zero) % 2 == 0 for place in range(len(codes.values)))
    return Codes(codes.values, places, codes.signed_zero)


@functools.cache
def logarithmic(width: int, bias: int | None = None, zero: bool = True) -> Codes:
    """Sign and exponent: 2^(e - bias), where e = 0 is the zero code unless `zero` is False."""
    if bias is None:
        bias = 2 ** (width - 2) - 1

    def magnitude(e: int) -> Fraction:
        return Fraction(0) if zero and e == 0 else Fraction(2) ** (e - bias)

    return _signed(width, magnitude)


@functools.cache
def sign_magnitude(width: int) -> Codes:
    """Sign bit and an integer of `width` - 1 bits."""
    return _signed(width, Fraction)


@functools.cache
def twos_complement(width: int, fraction_bits: int = 0, symmetric: bool = False) -> Codes:
    """Integers -2^(w-1) .. 2^(w-1) - 1 (symmetric: without the lowest), times 2^-fraction_bits."""

    def decode(pattern: int) -> Fraction | None:
        code = pattern - 2**width if pattern >= 2 ** (width - 1) else pattern
        if symmetric and code == -(2 ** (width - 1)):
            return None
        return code / Fraction(2) ** fraction_bits

    return from_patterns(width, decode, signed_zero=False)


@functools.cache
def normal_float() -> Codes:
    """NF4 as float32 holds it; the parity is that of the table index."""
    return Codes(
        tuple(float(np.float32(value)) for value in NF4),
        tuple(index % 2 == 0 for index in range(16)),
        signed_zero=False,
    )
