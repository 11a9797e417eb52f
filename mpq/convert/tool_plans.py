"""A plan in the words of other tools that quantise a model themselves: text and tables, no files.

Only what a tool can make is said: a format is mapped where the tool has the same element, width,
granularity and symmetry, however it stores the scale and which of the codes it uses: a symmetric
integer of GPTQModel and auto-round has all 2^b codes, as `int4f`, and stands for `int4` too. What
has no equivalent is listed.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from mpq.errors import ExportError
from mpq.formats.block import WHOLE
from mpq.formats.element import IntegerElement
from mpq.formats.format import Format
from mpq.formats.scale import FloatScale
from mpq.plans.plan import Plan

LLAMA_CPP_TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "mxfp4": "mxfp4"}
LLAMA_CPP_INTEGERS = {
    "int4f-g32-sf16": "q4_0",
    "int5f-g32-sf16": "q5_0",
    "int8-g32-sf16": "q8_0",
}
"""llama.cpp's types that are a format of mpq, under an fp16 scale for 32 values: q8_0 is 8-bit
codes to ±127; q4_0 and q5_0 reach -8 and -16, where the signed maximum lies. (q4_1, q5_1 and the
k-quants store minima or nested scales, which no format of mpq has.) Source: ggml-quants.c,
ggml-common.h."""

LLAMA_CPP_OPTIONS = {
    "model.embed_tokens.weight": "--token-embedding-type ",
    "lm_head.weight": "--output-tensor-type ",
}
LLAMA_CPP_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of a Llama's layers in a GGUF file. Source: gguf-py, `tensor_mapping.py`."""

AUTO_ROUND_FLOATS: dict[str, dict[str, Any]] = {
    "nvfp4": {"bits": 4, "group_size": 16, "data_type": "nv_fp"},
    "mxfp4": {"bits": 4, "group_size": 32, "data_type": "mx_fp"},
    "mxfp8-e4m3": {"bits": 8, "group_size": 32, "data_type": "mx_fp"},
}
LEFT_ALONE: dict[str, Any] = {"bits": 16, "data_type": "float", "act_bits": 16}
"""Source of both: auto-round 0.16, `schemes.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPlan:
    """A plan for one tool.

    Attributes:
        content: What the tool takes: a table for JSON, or lines of text.
        without_equivalent: Site -> format text, of all that the tool cannot make; they are in
            `content` as layers that the tool leaves alone, or, where it has no such word, not.
    """

    content: dict[str, Any] | tuple[str, ...]
    without_equivalent: dict[str, str]


def gptqmodel_dynamic(plan: Plan) -> ToolPlan:
    r"""GPTQModel's arguments: `bits`, `group_size`, `sym` of most layers, and `dynamic`.

    A pattern `+:^model\.layers\.0\.…$` overrides them for one module, `-:` leaves one alone.
    Source: GPTQModel 7.7, `QuantizeConfig`.
    """
    schemes: dict[str, dict[str, Any]] = {}
    missing = {}
    for site, named in plan.formats.items():
        scheme = _integer_scheme(named, widths=(2, 3, 4, 8)) if _is_weight(site) else None
        if scheme is None:
            missing[site] = str(named)
        else:
            schemes[_module(site)] = scheme
    common = Counter(tuple(scheme.items()) for scheme in schemes.values()).most_common(1)
    base = dict(common[0][0]) if common else {}
    rules = {
        f"+:^{re.escape(name)}$": scheme for name, scheme in schemes.items() if scheme != base
    }
    rules |= {f"-:^{re.escape(_module(site))}$": {} for site in missing if _is_weight(site)}
    return ToolPlan(content=base | {"dynamic": rules}, without_equivalent=missing)


def auto_round_layer_config(plan: Plan) -> ToolPlan:
    """auto-round's `layer_config`: module -> bits, group size, symmetry, data type.

    A layer without an equivalent gets 16 bits, which is auto-round's word for leaving it alone.
    Source: auto-round 0.16, `AutoRound(layer_config=…)`.
    """
    layers: dict[str, Any] = {}
    missing = {}
    for site, named in plan.formats.items():
        scheme = _auto_round_scheme(named) if _is_weight(site) else None
        if scheme is None:
            missing[site] = str(named)
            scheme = dict(LEFT_ALONE)
        if _is_weight(site):
            layers[_module(site)] = scheme
    return ToolPlan(content=layers, without_equivalent=missing)


def llama_cpp_tensor_types(plan: Plan) -> ToolPlan:
    """Lines of options for llama-quantize, `--tensor-type <pattern>=<type>`, of a Llama's layers.

    Its nearest type is no equivalent: what it has no type for, and a layer whose name in a GGUF
    file is not known here, is listed and not written. Source: llama.cpp, `tools/quantize`.
    """
    lines = []
    missing = {}
    for site, named in plan.formats.items():
        text, name = str(named), _llama_cpp_option(site)
        kind = LLAMA_CPP_TYPES.get(text) or LLAMA_CPP_INTEGERS.get(text)
        if kind is None or not name:
            missing[site] = text
        else:
            lines.append(f"{name}{kind}")
    return ToolPlan(content=tuple(lines), without_equivalent=missing)


TOOLS = {
    "gptqmodel": gptqmodel_dynamic,
    "auto-round": auto_round_layer_config,
    "llama.cpp": llama_cpp_tensor_types,
}


def tool_plan(plan: Plan, tool: str) -> ToolPlan:
    """The plan in the words of a tool, one of `TOOLS`.

    Raises:
        ExportError: No such tool.
    """
    if tool not in TOOLS:
        raise ExportError(f"a plan is written for {', '.join(TOOLS)}; {tool!r} is none of them")
    return TOOLS[tool](plan)


def _integer_scheme(named: Format, *, widths: tuple[int, ...]) -> dict[str, Any] | None:
    """Bits, group size (-1: rows) and symmetry of an integer under one float scale a group."""
    element, scale, block = named.element, named.scale, named.block
    if not isinstance(element, IntegerElement) or not isinstance(scale, FloatScale):
        return None
    if element.width not in widths or block is None or block.rows != 1:
        return None
    group = -1 if block.columns == WHOLE else block.columns
    return {"bits": element.width, "group_size": group, "sym": not scale.zero_point}


def _auto_round_scheme(named: Format) -> dict[str, Any] | None:
    if str(named) in AUTO_ROUND_FLOATS:
        return AUTO_ROUND_FLOATS[str(named)] | {"sym": True, "act_bits": 16}
    if str(named) == "bf16":
        return dict(LEFT_ALONE)
    scheme = _integer_scheme(named, widths=(2, 3, 4, 5, 6, 7, 8))
    return None if scheme is None else scheme | {"data_type": "int", "act_bits": 16}


def _llama_cpp_option(site: str) -> str:
    """The option of one tensor, up to its type; empty for a tensor that is not known here."""
    if site in LLAMA_CPP_OPTIONS:
        return LLAMA_CPP_OPTIONS[site]
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", site)
    layer = LLAMA_CPP_NAMES.get(found[2]) if found else None
    name = re.escape(f"blk.{found[1]}.{layer}.weight") if found and layer else ""
    return f"--tensor-type {name}=" if name else ""


def _is_weight(site: str) -> bool:
    return site.endswith(".weight")


def _module(site: str) -> str:
    return site.removesuffix(".weight")
