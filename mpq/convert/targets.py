"""What the checkpoints of other tools hold, and the nearest plan that they can: facts alone."""

from collections.abc import Iterable
from functools import cache
from typing import Literal

from mpq.errors import ExportError
from mpq.formats.block import WHOLE, Block
from mpq.formats.element import FloatElement, IntegerElement
from mpq.formats.format import NAMED_FLOATS, Format
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent
from mpq.formats.zoo import parse_format
from mpq.plans.plan import Plan

Target = Literal["compressed-tensors", "gptq"]
Kind = Literal["integer", "fp8", "nvfp4", "mxfp4", "mxfp6", "mxfp8", "dense"]
"""How a target stores a weight: `dense` is unquantised."""

GPTQ_WIDTHS = (2, 3, 4, 8)
GPTQ_GROUPS = (WHOLE, 16, 32, 64, 128, 256, 512, 1024)
"""Bits that every reader of the layout packs alike, and the group sizes that GPTQModel's kernels
name. Source: GPTQModel 7.7, `nn_modules/qlinear/torch.py`."""

INPUTS = {"int8": "int8", "fp8-e4m3-token": "fp8-e4m3"}
"""Formats of a layer's input that compressed-tensors names (its engines scale every token by their
own rule: only the number of bits and the granularity are the plan's), and of the weight beside."""

PACKED_ZEROS = "transformers does not load its packed zero points (8 bits are not packed)"
"""compressed-tensors 0.20 lays a layer out for loading with zero points that are not packed
(`compressors/pack_quantized/base.py`, where the device is meta), and transformers 5.23 then
refuses the checkpoint's for their shape."""

_MICROSCALED: dict[FloatElement, Kind] = {
    FloatElement(exponent=2, mantissa=1): "mxfp4",
    FloatElement(exponent=2, mantissa=3): "mxfp6",
    FloatElement(exponent=4, mantissa=3, specials="nan"): "mxfp8",
}
_DENSE = tuple(NAMED_FLOATS[name] for name in ("bf16", "fp16", "fp32"))


def kind_of(named: Format) -> Kind | None:
    """How an engine's checkpoint holds a weight in this format exactly; None where none does.

    A shared exponent or a fixed point's step is a power of two, which any float scale holds, so
    block floating point and fixed point are integers under such scales.
    """
    element, scale, block = named.element, named.scale, named.block
    match element:
        case IntegerElement(width=width):
            return "integer" if width <= 8 and scale is not None else None
        case FloatElement() if scale is None and element in _DENSE:
            return "dense"
        case FloatElement() if element == NAMED_FLOATS["fp8-e4m3"]:
            if scale is None or isinstance(scale, FloatScale):
                return "fp8"
    match scale:
        case SharedExponent(microscaling=True) if block == Block(columns=32):
            return _MICROSCALED.get(element) if isinstance(element, FloatElement) else None
        case NestedScale(per_row=False, absmax=None) if block == Block(columns=16):
            return "nvfp4"
    return None


def misfit(named: Format, target: Target) -> str:
    """Why a target's checkpoint cannot hold a weight in this format; empty where it can."""
    kind = kind_of(named)
    if kind is None:
        return "no layout of it holds such values"
    if target == "compressed-tensors" and getattr(named.scale, "zero_point", False):
        return "" if named.element.width == 8 else PACKED_ZEROS
    if target == "compressed-tensors" or kind == "dense":
        return ""
    if kind != "integer":
        return "it holds integers only"
    if named.element.width not in GPTQ_WIDTHS:
        return f"it packs {', '.join(map(str, GPTQ_WIDTHS))} bits only"
    columns = named.block.columns if named.block else WHOLE
    if columns not in GPTQ_GROUPS:
        return f"its groups are whole rows or {', '.join(map(str, GPTQ_GROUPS[1:]))} columns"
    return ""


def input_misfit(named: Format, target: Target) -> str:
    """Why a target's checkpoint cannot name a format of activations; empty where it can."""
    if target == "compressed-tensors" and str(named) in INPUTS:
        return ""
    names = f", but {' and '.join(INPUTS)} of inputs" if target == "compressed-tensors" else ""
    return f"it names no format of activations{names}"


def nearest_format(named: Format, target: Target) -> Format:
    """The format itself where the target holds it, else the nearest one that it does.

    Of the formats with at least as many bits a value, and a code, the one with the fewest, then
    the one whose blocks are as long, then an integer for an integer and a float for a float, of
    full range for one of full range; where none has as many bits, the widest.
    """
    if not misfit(named, target):
        return named
    wanted = named.bits_per_value
    offered = [parse_format(text) for text in _offered(target)]
    wide = [fmt for fmt in offered if fmt.element.width >= named.element.width]
    enough = [fmt for fmt in wide if fmt.bits_per_value >= wanted]
    if not enough:
        return max(offered, key=lambda fmt: fmt.bits_per_value)
    return min(enough, key=lambda fmt: (fmt.bits_per_value, *_differences(named, fmt)))


def nearest_plan(plan: Plan, target: Target) -> Plan:
    """The plan with every format that the target cannot hold replaced by the nearest that it can.

    A site that is no weight, and whose format the target cannot name, is left out of the plan:
    its tensor stays as it is.
    """
    changes: dict[str, str | Format | None] = {}
    for site, named in plan.formats.items():
        if site.endswith(".weight"):
            changes[site] = nearest_format(named, target)
        elif not is_input(site) or input_misfit(named, target):
            changes[site] = None
    return plan.replace(changes)


def is_input(site: str) -> bool:
    """Whether a site's name is that of a layer's input."""
    return site.endswith(".input")


def refuse(faults: Iterable[tuple[str, Format, str]], target: Target) -> None:
    """Nothing, where there are no faults.

    Args:
        faults: Site, its format, why the target cannot hold it.
        target: The checkpoint's kind.

    Raises:
        ExportError: Lists every fault, and the nearest format that the target holds.
    """
    lines = []
    for site, named, reason in faults:
        near = "left as it is" if not site.endswith(".weight") else nearest_format(named, target)
        hint = f"; nearest: {near}" if str(near) != str(named) else ""
        lines.append(f"  {site} in {named}: {reason}{hint}")
    if lines:
        raise ExportError(
            f"a {target} checkpoint cannot hold {len(lines)} of the plan's tensors:\n"
            + "\n".join(lines)
            + "\ngive these sites the nearest formats (mpq.convert.targets.nearest_plan), or "
            "leave them out of the plan"
        )


def plan_faults(plan: Plan, target: Target) -> list[tuple[str, Format, str]]:
    """Site, format and reason of all that a target cannot hold, as its formats alone tell."""
    faults = []
    for site, named in plan.formats.items():
        if site.endswith(".weight"):
            reason = misfit(named, target)
        elif is_input(site):
            reason = input_misfit(named, target)
        else:
            reason = "it quantises weights and inputs of layers only"
        if reason:
            faults.append((site, named, reason))
    return faults


@cache
def _offered(target: Target) -> tuple[str, ...]:
    widths = GPTQ_WIDTHS if target == "gptq" else tuple(range(2, 9))
    integers = [
        f"int{width}{code}{group}"
        for width in widths
        for group in ("", "-g128", "-g64", "-g32", "-g16")
        for code in ("", "f")
    ]
    floats = ["fp8-e4m3", "nvfp4", "mxfp4", "mxfp6-e2m3", "mxfp8-e4m3"]
    return (*integers, *(floats if target == "compressed-tensors" else ()), "bf16")


def _differences(wanted: Format, offered: Format) -> tuple[bool, bool, bool]:
    columns = [fmt.block.columns if fmt.block else WHOLE for fmt in (wanted, offered)]
    is_integer = [isinstance(fmt.element, IntegerElement) for fmt in (wanted, offered)]
    is_signed = [fmt.has_signed_scale for fmt in (wanted, offered)]
    return columns[0] != columns[1], is_integer[0] != is_integer[1], is_signed[0] != is_signed[1]
