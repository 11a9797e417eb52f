"""Options of a text form: what may follow a family's head, and what each changes.

`bfp6-b32(exponent=5)` is the head `bfp6`, the suffix `-b32` and the key `exponent`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from mpq.errors import FormatError
from mpq.formats.block import ROW, TENSOR, WHOLE, Block
from mpq.formats.element import FloatElement, LogElement
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale, NestedScale, ScaleRule, SharedExponent


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    r"""One suffix or key.

    Attributes:
        pattern: A regular expression of the whole suffix (`-g(\d+)`), or of `key=value`.
        example: How it looks.
        is_key: True for what stands in brackets.
        change: (format, value) -> the changed format, or None where the option does not apply.
        show: (format, format without the option) -> the option's text, or empty.
    """

    pattern: str
    example: str
    is_key: bool = False
    change: Callable[[Format, str], Format | None]
    show: Callable[[Format, Format], str]


def apply_options(start: Format, suffixes: list[str], keys: list[str]) -> Format:
    """The format that suffixes and keys make of a family's own.

    Raises:
        FormatError: An option that does not exist, does not apply here, or stands twice.
    """
    changed = start
    used: set[str] = set()
    for text in (*suffixes, *keys):
        option, value = _find(text, is_key=text in keys)
        after = option.change(changed, value)
        if after is None or option.pattern in used:
            why = "stands twice" if option.pattern in used else f"does not apply to {start}"
            raise FormatError(f"the option {text!r} {why}: leave it out")
        used.add(option.pattern)
        changed = after
    return changed


def options_text(changed: Format, start: Format) -> str:
    """The suffixes and keys that make `changed` of `start`."""
    suffixes = "".join(o.show(changed, start) for o in OPTIONS if not o.is_key)
    keys = [text for o in OPTIONS if o.is_key and (text := o.show(changed, start))]
    return suffixes + (f"({','.join(keys)})" if keys else "")


def _find(text: str, *, is_key: bool) -> tuple[Option, str]:
    for option in OPTIONS:
        match = re.fullmatch(option.pattern, text) if option.is_key == is_key else None
        if match:
            return option, match.group(1) if match.groups() else ""
    known = ", ".join(option.example for option in OPTIONS if option.is_key == is_key)
    raise FormatError(
        f"{text!r} is no {'key' if is_key else 'suffix'} of a format: use one of {known}"
    )


def _set_block(changed: Format, block: Block) -> Format | None:
    if isinstance(changed.element, FloatElement) and changed.scale is None:
        return replace(changed, scale=FloatScale(), block=block)
    if isinstance(changed.scale, FloatScale | SharedExponent):
        return replace(changed, block=block)
    return None


def _set_token(changed: Format, _: str) -> Format | None:
    if isinstance(changed.scale, NestedScale):
        return replace(changed, scale=replace(changed.scale, per_row=True))
    return _set_block(changed, ROW)


def _show_token(changed: Format, start: Format) -> str:
    if isinstance(changed.scale, NestedScale):
        return "-token" if changed.scale.per_row else ""
    return "-token" if changed.block == ROW != start.block else ""


def _set_group(changed: Format, size: str) -> Format | None:
    if isinstance(changed.scale, SharedExponent | NestedScale):
        return None
    return _set_block(changed, Block(columns=_positive(size)))


def _set_columns(changed: Format, size: str) -> Format | None:
    if isinstance(changed.scale, SharedExponent | NestedScale):
        return replace(changed, block=Block(columns=_positive(size)))
    return None


def _show_columns(changed: Format, start: Format) -> str:
    block = changed.block
    if block is None or block == start.block or block.columns == WHOLE or block.rows != 1:
        return ""
    return f"-{'g' if isinstance(changed.scale, FloatScale) else 'b'}{block.columns}"


def _set_tile(changed: Format, size: str) -> Format | None:
    rows, columns = (_positive(part) for part in size.split("x"))
    return _set_block(changed, Block(rows=rows, columns=columns))


def _show_tile(changed: Format, _: Format) -> str:
    block = changed.block
    return f"block={block.rows}x{block.columns}" if block and block.rows > 1 else ""


def _positive(size: str) -> int:
    if int(size) < 1:
        raise FormatError(f"a block holds at least 1 value along each axis, not {size}")
    return int(size)


def _set_dtype(changed: Format, digits: str) -> Format | None:
    if not isinstance(changed.scale, FloatScale):
        return None
    return replace(
        changed, scale=replace(changed.scale, dtype="fp32" if digits == "32" else "fp16")
    )


def _show_dtype(changed: Format, _: Format) -> str:
    dtype = changed.scale.dtype if isinstance(changed.scale, FloatScale) else "bf16"
    return {"bf16": "", "fp16": "-sf16", "fp32": "-sf32"}[dtype]


def _set_exponent(changed: Format, width: str) -> Format | None:
    if not isinstance(changed.scale, SharedExponent):
        return None
    return replace(changed, scale=replace(changed.scale, width=int(width)))


def _show_exponent(changed: Format, _: Format) -> str:
    width = changed.scale.width if isinstance(changed.scale, SharedExponent) else 8
    return f"exponent={width}" if width != 8 else ""


def _set_rule(changed: Format, rule: str) -> Format | None:
    if not isinstance(changed.scale, SharedExponent):
        return None
    return replace(changed, scale=replace(changed.scale, rule=cast(ScaleRule, rule)))


def _show_rule(changed: Format, _: Format) -> str:
    rule = changed.scale.rule if isinstance(changed.scale, SharedExponent) else "floor"
    return f"scale_rule={rule}" if rule != "floor" else ""


def _set_zero(changed: Format, zero: str) -> Format | None:
    if not isinstance(changed.element, LogElement):
        return None
    return replace(changed, element=replace(changed.element, zero=zero == "true"))


def _show_zero(changed: Format, _: Format) -> str:
    keeps_zero = not isinstance(changed.element, LogElement) or changed.element.zero
    return "" if keeps_zero else "zero=false"


def _set_bias(changed: Format, bias: str) -> Format | None:
    if not isinstance(changed.element, FloatElement | LogElement) or changed.scale is not None:
        return None
    return replace(changed, element=replace(changed.element, bias=int(bias)))


def _show_bias(changed: Format, _: Format) -> str:
    bias = getattr(changed.element, "bias", None)
    return "" if bias is None else f"bias={bias}"


def _set_absmax(changed: Format, absmax: str) -> Format | None:
    if not isinstance(changed.scale, FloatScale | NestedScale):
        return None
    return replace(changed, scale=replace(changed.scale, absmax=float(absmax)))


def _show_absmax(changed: Format, _: Format) -> str:
    absmax = getattr(changed.scale, "absmax", None)
    return "" if absmax is None else f"absmax={absmax!r}"


OPTIONS = (
    Option(pattern="-token", example="-token", change=_set_token, show=_show_token),
    Option(
        pattern="-tensor",
        example="-tensor",
        change=lambda changed, _: _set_block(changed, TENSOR),
        show=lambda changed, start: "-tensor" if changed.block == TENSOR != start.block else "",
    ),
    Option(pattern=r"-g(\d+)", example="-g128", change=_set_group, show=_show_columns),
    Option(pattern=r"-b(\d+)", example="-b32", change=_set_columns, show=lambda *_: ""),
    Option(pattern=r"-sf(16|32)", example="-sf32", change=_set_dtype, show=_show_dtype),
    Option(
        pattern=r"exponent=(\d+)",
        example="exponent=5",
        is_key=True,
        change=_set_exponent,
        show=_show_exponent,
    ),
    Option(
        pattern=r"block=(\d+x\d+)",
        example="block=4x16",
        is_key=True,
        change=_set_tile,
        show=_show_tile,
    ),
    Option(
        pattern=r"scale_rule=(\w+)",
        example="scale_rule=mse",
        is_key=True,
        change=_set_rule,
        show=_show_rule,
    ),
    Option(
        pattern=r"zero=(true|false)",
        example="zero=false",
        is_key=True,
        change=_set_zero,
        show=_show_zero,
    ),
    Option(
        pattern=r"bias=(-?\d+)", example="bias=9", is_key=True, change=_set_bias, show=_show_bias
    ),
    Option(
        pattern=r"absmax=([-+.\deE]+|inf|nan)",
        example="absmax=3.5",
        is_key=True,
        change=_set_absmax,
        show=_show_absmax,
    ),
)
"""Suffixes and keys in the order in which the canonical text lists them."""
