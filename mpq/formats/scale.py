"""Scales: what a block of values shares, as plain facts."""

import math
from dataclasses import dataclass
from typing import Literal

from mpq.errors import FormatError

ScaleRule = Literal["floor", "ceil", "mse"]
SCALE_RULES: tuple[ScaleRule, ...] = ("floor", "ceil", "mse")
ScaleDtype = Literal["bf16", "fp16", "fp32"]
SCALE_DTYPES: dict[ScaleDtype, int] = {"bf16": 16, "fp16": 16, "fp32": 32}
"""Bits of a stored float scale, by its dtype."""

TENSOR_SCALE_BITS = 32
"""Bits of the float32 scale above the block scales of NVFP4."""


def _require_absmax(absmax: float | None) -> None:
    if absmax is not None and not (math.isfinite(absmax) and absmax > 0):
        raise FormatError(
            f"a calibrated absmax must be finite and above 0, not {absmax}: calibrate on text "
            f"where the tensor is not all zero"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticScale:
    """A power of two that the format itself names: 2^-fraction. Nothing is stored."""

    fraction: int

    def __post_init__(self) -> None:
        if not -126 <= self.fraction <= 126:
            raise FormatError(
                f"a fraction width must be from -126 to 126 (float32 holds the step), not "
                f"{self.fraction}: choose one in that range"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatScale:
    """A float for each block, rounded to its stored dtype before it is used.

    Over a two's-complement integer it has a sign: that which gives the value of the largest
    magnitude in the block the lowest code, -2^(w-1), and so the codes their full range.

    Attributes:
        dtype: What the scale is stored as.
        zero_point: Whether an asymmetric code's zero is stored too, in the element's width.
        absmax: A calibrated largest magnitude from which the scale follows: the format's text
            holds it, so the tensor stores nothing. None: the tensor's own.
    """

    dtype: ScaleDtype = "bf16"
    zero_point: bool = False
    absmax: float | None = None

    def __post_init__(self) -> None:
        _require_absmax(self.absmax)
        if self.zero_point and self.absmax is not None:
            raise FormatError(
                "one calibrated absmax fixes no zero point: leave absmax out, or use the "
                "symmetric integer"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedExponent:
    """A power of two for each block.

    Attributes:
        width: Bits of the stored exponent; its bias is 2^(width-1) - 1.
        rule: How the exponent follows the block's largest magnitude: `floor` of its log2 (a
            power of two is exact), `ceil` of it (the largest value never saturates by more than
            its rounding), `mse` (of the floor and its neighbours, the least squared error).
        microscaling: True for OCP's E8M0: the stored exponent is the scale's own and the top
            code stands for NaN. False: it is the exponent of the block's largest magnitude.
    """

    width: int = 8
    rule: ScaleRule = "floor"
    microscaling: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.width <= 8:
            raise FormatError(
                f"a shared exponent must have from 2 to 8 bits, not {self.width}: choose one in "
                f"that range"
            )
        if self.microscaling and self.width != 8:
            raise FormatError(
                f"an OCP MX scale is E8M0, 8 bits, not {self.width}: use bfp or bmf for other "
                f"exponent widths"
            )
        if self.rule not in SCALE_RULES:
            raise FormatError(
                f"scale_rule must be one of {', '.join(SCALE_RULES)}, not {self.rule!r}"
            )

    @property
    def bias(self) -> int:
        """What is subtracted from the stored code."""
        return int(2 ** (self.width - 1)) - 1

    @property
    def lowest(self) -> int:
        """The exponent of code 0."""
        return -self.bias

    @property
    def highest(self) -> int:
        """The exponent of the top code that stands for a number."""
        return int(2**self.width) - 1 - self.bias - (1 if self.microscaling else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedScale:
    """An e4m3 float for each block under one float32 for the tensor, or for each row.

    Attributes:
        per_row: Whether the float32 belongs to a row along the axis instead of the tensor.
        absmax: A calibrated largest magnitude from which the float32 follows; then the tensor
            does not store it.
    """

    per_row: bool = False
    absmax: float | None = None

    def __post_init__(self) -> None:
        _require_absmax(self.absmax)
        if self.per_row and self.absmax is not None:
            raise FormatError(
                "a scale is either calibrated (absmax) or per token, not both: leave one out"
            )


Scale = StaticScale | FloatScale | SharedExponent | NestedScale
