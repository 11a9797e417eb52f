"""The zoo: every family of formats, each one declaration, and the parser of their names.

To add a format, add a `Family`: the head of its text, how that makes a `Format`, and back.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mpq.errors import FormatError
from mpq.formats.block import ROW, Block
from mpq.formats.element import (
    FloatElement,
    IntegerElement,
    LogElement,
    TableElement,
)
from mpq.formats.format import MX_SPECIALS, NAMED_FLOATS, Format
from mpq.formats.heads import (
    INTEGER_SUFFIXES,
    after,
    fixed_head,
    float_head,
    integer_head,
    shared_float_head,
    shared_head,
)
from mpq.formats.options import apply_options, options_text
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent, StaticScale

NF4 = TableElement(
    name="nf4",
    values=(
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
"""Quantiles of the normal distribution, and 0. Source: Dettmers et al. 2023 (QLoRA), App. E."""

E2M1 = FloatElement(exponent=2, mantissa=1)
MXINT8 = IntegerElement(width=8, code="symmetric")
MX_EXPONENT = SharedExponent(microscaling=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Formats that share the head of a name.

    Attributes:
        pattern: A regular expression of the whole head; its groups are `make`'s arguments.
        examples: Text forms, for messages and tables.
        make: The matched groups -> the family's own format, before any option.
        head: A format -> the head that names its element and kind of scale; empty where the
            family has no such formats.
    """

    pattern: str
    examples: tuple[str, ...]
    make: Callable[..., Format]
    head: Callable[[Format], str]


def _integer(width: str, suffix: str) -> Format:
    code = next(code for code, its_own in INTEGER_SUFFIXES.items() if its_own == suffix)
    element = IntegerElement(width=int(width), code=code)
    return Format(element=element, scale=FloatScale(zero_point=suffix == "a"), block=ROW)


def _float(exponent: str, mantissa: str, *, implicit_one: bool = True) -> Format:
    element = FloatElement(
        exponent=int(exponent), mantissa=int(mantissa), implicit_one=implicit_one
    )
    return Format(element=element)


def _block_float(width: str, exponent: str, mantissa: str) -> Format:
    element = FloatElement(exponent=int(exponent), mantissa=int(mantissa))
    _require_width(f"bmf{width}-e{exponent}m{mantissa}", int(width), element)
    return Format(element=element, scale=SharedExponent(), block=Block(columns=16))


def _microscaled_float(width: str, exponent: str, mantissa: str) -> Format:
    size = (int(exponent), int(mantissa))
    specials = MX_SPECIALS.get(size, "none")
    element = FloatElement(exponent=size[0], mantissa=size[1], specials=specials)
    _require_width(f"mxfp{width}-e{exponent}m{mantissa}", int(width), element)
    return Format(element=element, scale=MX_EXPONENT, block=Block(columns=32))


def _require_width(text: str, width: int, element: FloatElement) -> None:
    if width != element.width:
        raise FormatError(
            f"{text!r} says {width} bits, but a sign, {element.exponent} exponent bits and "
            f"{element.mantissa} mantissa bits are {element.width}: correct one of them"
        )


def _named_float(name: str) -> Family:
    return Family(
        pattern=name,
        examples=(name,),
        make=lambda: Format(element=NAMED_FLOATS[name]),
        head=lambda named: (
            name
            if named.element == NAMED_FLOATS[name] and not isinstance(named.scale, SharedExponent)
            else ""
        ),
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        pattern=r"fixed(\d+)\.(-?\d+)",
        examples=("fixed8.4", "fixed4.2", "fixed16.8"),
        make=lambda width, fraction: Format(
            element=IntegerElement(width=int(width), code="two's complement"),
            scale=StaticScale(fraction=int(fraction)),
        ),
        head=fixed_head,
    ),
    Family(
        pattern=r"int(\d+)([af]?)",
        examples=(
            *(f"int{width}" for width in (2, 3, 4, 5, 6, 8)),
            *("int4-g128", "int4-g64", "int3-g128", "int4a", "int4a-g64", "int8-token"),
            *("int8-tensor", "int8-tensor(absmax=3.5)", "int4-g128-sf16", "int4-g128-sf32"),
            *("int2f", "int4f", "int4f-g128", "int4f-g32-sf16", "int3f-g128", "int8f-token"),
            *("int8f-tensor", "int8f-tensor(absmax=3.5)"),
        ),
        make=_integer,
        head=integer_head,
    ),
    Family(
        pattern=r"log(\d+)",
        examples=("log8", "log4", "log8(zero=false)"),
        make=lambda width: Format(element=LogElement(width=int(width))),
        head=lambda named: (
            f"log{named.element.width}"
            if isinstance(named.element, LogElement) and named.scale is None
            else ""
        ),
    ),
    Family(
        pattern=r"minifloat-e(\d+)m(\d+)",
        examples=("minifloat-e4m3", "minifloat-e3m2", "minifloat-e2m1"),
        make=_float,
        head=lambda named: after("minifloat-", float_head(named)),
    ),
    Family(
        pattern=r"dmf-e(\d+)m(\d+)",
        examples=("dmf-e4m3", "dmf-e3m2"),
        make=lambda exponent, mantissa: _float(exponent, mantissa, implicit_one=False),
        head=lambda named: after("dmf-", float_head(named, implicit_one=False)),
    ),
    Family(
        pattern=r"bfp(\d+)",
        examples=(
            *(f"bfp{width}" for width in range(2, 9)),
            *("bfp4-b32", "bfp6(exponent=5,block=4x16)", "bfp4(scale_rule=mse)"),
        ),
        make=lambda width: Format(
            element=IntegerElement(width=int(width), code="sign-magnitude"),
            scale=SharedExponent(),
            block=Block(columns=16),
        ),
        head=lambda named: shared_head(named, IntegerElement, "bfp"),
    ),
    Family(
        pattern=r"bmf(\d+)-e(\d+)m(\d+)",
        examples=("bmf8-e4m3", "bmf6-e2m3", "bmf4-e2m1"),
        make=_block_float,
        head=lambda named: after("bmf", shared_float_head(named, microscaling=False)),
    ),
    Family(
        pattern=r"bl(\d+)",
        examples=("bl8", "bl4"),
        make=lambda width: Format(
            element=LogElement(width=int(width)),
            scale=SharedExponent(),
            block=Block(columns=16),
        ),
        head=lambda named: shared_head(named, LogElement, "bl"),
    ),
    Family(
        pattern="mxint8",
        examples=("mxint8",),
        make=lambda: Format(
            element=IntegerElement(width=8), scale=MX_EXPONENT, block=Block(columns=32)
        ),
        head=lambda named: (
            "mxint8"
            if isinstance(named.element, IntegerElement)
            and isinstance(named.scale, SharedExponent)
            and named.scale.microscaling
            else ""
        ),
    ),
    Family(
        pattern="mxfp4",
        examples=("mxfp4",),
        make=lambda: Format(element=E2M1, scale=MX_EXPONENT, block=Block(columns=32)),
        head=lambda named: (
            "mxfp4"
            if named.element == E2M1 and shared_float_head(named, microscaling=True)
            else ""
        ),
    ),
    Family(
        pattern=r"mxfp(\d+)-e(\d+)m(\d+)",
        examples=("mxfp8-e4m3", "mxfp8-e5m2", "mxfp6-e2m3", "mxfp6-e3m2"),
        make=_microscaled_float,
        head=lambda named: after("mxfp", shared_float_head(named, microscaling=True)),
    ),
    Family(
        pattern="nvfp4",
        examples=("nvfp4", "nvfp4-token", "nvfp4(absmax=3.5)"),
        make=lambda: Format(element=E2M1, scale=NestedScale(), block=Block(columns=16)),
        head=lambda named: "nvfp4" if isinstance(named.scale, NestedScale) else "",
    ),
    Family(
        pattern="nf4",
        examples=("nf4-g64", "nf4"),
        make=lambda: Format(element=NF4, scale=FloatScale(), block=ROW),
        head=lambda named: "nf4" if named.element == NF4 else "",
    ),
    *(_named_float(name) for name in NAMED_FLOATS),
)
"""Every family; a text form's head belongs to exactly one."""


@lru_cache(maxsize=4096)
def parse_format(text: str) -> Format:
    """The format that a text form names, such as `bfp4`, `int4-g128`, `bfp6(exponent=5)`.

    Raises:
        FormatError: No family has this form, or a number in it is impossible.
    """
    match = re.fullmatch(r"([a-z0-9.-]+?)((?:-(?:token|tensor|g\d+|b\d+|sf\d+))*)(\(.*\))?", text)
    head, tail, keys = match.groups() if match else (text, "", None)
    for family in FAMILIES:
        groups = re.fullmatch(family.pattern, head)
        if groups:
            suffixes = [f"-{part}" for part in tail.split("-")[1:]]
            assignments = [key.strip() for key in keys[1:-1].split(",")] if keys else []
            try:
                return apply_options(family.make(*groups.groups()), suffixes, assignments)
            except FormatError as error:
                raise FormatError(f"{text!r} is no format: {error}") from error
    near = difflib.get_close_matches(text, examples(), n=4, cutoff=0.3) or ["bfp4", "int4-g128"]
    raise FormatError(
        f"{text!r} is no format: the nearest are {', '.join(near)}; docs/formats.md has them all"
    )


def examples() -> tuple[str, ...]:
    """Text forms of every family."""
    return tuple(example for family in FAMILIES for example in family.examples)


@lru_cache(maxsize=4096)
def format_text(named: Format) -> str:
    """The canonical text of a format.

    Raises:
        FormatError: No family names it.
    """
    for family in FAMILIES:
        head = family.head(named)
        groups = re.fullmatch(family.pattern, head) if head else None
        if groups:
            text = head + options_text(named, family.make(*groups.groups()))
            if parse_format(text) == named:
                return text
    raise FormatError(f"no family names {named!r}: declare one in mpq/formats/zoo.py")
