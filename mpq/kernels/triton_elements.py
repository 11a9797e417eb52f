"""What the Triton kernels are told of an element: numbers worked out once, on the host.

A kernel is compiled for each of these values (they are its `tl.constexpr` arguments), so they are
plain frozen data: numbers and the bits of floats, no tensor, and nothing of Triton.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from mpq.formats.element import (
    Element,
    FloatElement,
    IntegerElement,
    LogElement,
    has_negative_zero,
    reach,
)
from mpq.kernels.bits import FLOAT32, FLOAT64, largest_held
from mpq.kernels.eager import CASTS
from mpq.kernels.rounding import table_thresholds

Kind = Literal["integer", "asymmetric", "float", "power", "table", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How values in units of an element are rounded to it, in one arithmetic.

    Attributes:
        kind: The rule; `power` is a sign and a power of two, `bfloat16` the float of that name.
        wide: Whether the arithmetic is float64.
        lowest: Values below are taken to it first.
        largest: Values above are taken to it first.
        negative_zero: Whether -0 survives.
        keeps_zero: Of powers of two, whether there is a code for zero.
        mantissa: Bits of the arithmetic's mantissa field.
        infinity: The bits of its +inf, which are also the mask of its exponent field.
        whole: Its least power of two from which on every value is a whole number.
        lowest_binade: The bits of the element's lowest normalised power of two.
        turn: From which the bits of a power of two are taken for those of its inverse.
        step_below: What the bits of a binade's step lie below those of the binade.
        zero_below: Of powers of two, the bits up to which a magnitude becomes zero.
        first_code: Of powers of two, the exponent field of the magnitude whose code is zero.
        below_tie: Of powers of two, what takes all above a midpoint into the next binade.
        table: Of tables, (least value of the arithmetic that is rounded to an entry, the entry)
            of every entry but the first.
        first: Of tables, the first entry.
    """

    kind: Kind
    wide: bool
    lowest: float
    largest: float
    negative_zero: bool
    keeps_zero: bool
    mantissa: int
    infinity: int
    whole: float
    lowest_binade: int
    turn: int
    step_below: int
    zero_below: int
    first_code: int
    below_tie: int
    table: tuple[tuple[float, float], ...]
    first: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How far values go that a dtype holds once they are scaled back.

    Attributes:
        kind: That of the element's `Rounding`.
        bound: The largest float64 that the dtype holds.
        threshold: What a scale times the element's reach must pass for it to matter.
        largest: The element's largest value.
        reach: The largest magnitude of its values.
        lowest_binade: The bits, in float64, of its lowest normalised power of two.
        step: A step as a share of its binade.
        positive: Of tables, the entries from zero upwards.
        negative: Of tables, the magnitudes of the entries from zero downwards.
        negative_zero: Whether -0 survives.
    """

    kind: Kind
    bound: float
    threshold: float
    largest: float
    reach: float
    lowest_binade: int
    step: float
    positive: tuple[float, ...]
    negative: tuple[float, ...]
    negative_zero: bool


@lru_cache(maxsize=1024)
def rounding_facts(element: Element, *, wide: bool = False, bound: float = 0.0) -> Rounding:
    """How an element rounds in float64 (`wide`) or float32, below a bound of its own if not 0."""
    layout = FLOAT64 if wide else FLOAT32
    most = torch.finfo(layout.dtype).max
    lowest = getattr(element, "min_exponent", 0)
    digits = element.fraction if isinstance(element, FloatElement) else 0
    keeps_zero = getattr(element, "zero", True)
    values = getattr(element, "values", ())
    thresholds = table_thresholds(element, layout) if values else ()
    return Rounding(
        kind=_kind(element, wide=wide),
        wide=wide,
        lowest=-(bound or min(reach(element), most)),
        largest=bound or min(element.largest, most),
        negative_zero=has_negative_zero(element),
        keeps_zero=keeps_zero,
        mantissa=layout.mantissa,
        infinity=layout.infinity,
        whole=2.0**layout.mantissa,
        lowest_binade=lowest + layout.bias << layout.mantissa,
        turn=2 * layout.bias << layout.mantissa,
        step_below=digits << layout.mantissa,
        zero_below=lowest - 1 + layout.bias << layout.mantissa,
        first_code=layout.bias + lowest - (1 if keeps_zero else 0),
        below_tie=(1 << layout.mantissa - 1) - 1,
        table=tuple(zip(thresholds, values[1:], strict=True)),
        first=values[0] if values else 0.0,
    )


@lru_cache(maxsize=1024)
def held_facts(element: Element, dtype: torch.dtype) -> Held:
    """How far an element's values go under a scale, where the dtype holds the result."""
    values = getattr(element, "values", ())
    digits = element.fraction if isinstance(element, FloatElement) else 0
    return Held(
        kind=_kind(element, wide=True),
        bound=largest_held(dtype),
        threshold=torch.finfo(dtype).max,
        largest=element.largest,
        reach=reach(element),
        lowest_binade=FLOAT64.power(getattr(element, "min_exponent", 0)),
        step=2.0**-digits,
        positive=tuple(value for value in values if value >= 0),
        negative=tuple(-value for value in reversed(values) if value <= 0),
        negative_zero=has_negative_zero(element),
    )


def _kind(element: Element, *, wide: bool) -> Kind:
    match element:
        case IntegerElement(code=code):
            return "asymmetric" if code == "asymmetric" else "integer"
        case FloatElement() if not wide and CASTS.get(element) == torch.bfloat16:
            return "bfloat16"
        case FloatElement(fraction=fraction):
            return "float" if fraction > 0 else "power"
        case LogElement():
            return "power"
    return "table"
