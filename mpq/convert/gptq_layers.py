"""One weight as the GPTQ layout stores it, and back.

`qweight` int32 [in * bits / 32, out] packs codes along the input, `qzeros` int32
[groups, out * bits / 32] zeros along the output, both as `mpq.convert.words`; `scales` float16
[groups, out]; `g_idx` int32 [in] is the group of each input. Source: GPTQModel 7.7,
`nn_modules/qlinear/` (a value is `scales[g_idx] * (code - zero[g_idx])`).
"""

from typing import Any, Literal

import torch
from torch import Tensor

from mpq.convert.compressed_layers import exactly
from mpq.convert.integer_weight import IntegerWeight, group_of_column, group_size, integer_weight
from mpq.convert.targets import misfit
from mpq.convert.words import WORD, pack_words, unpack_words
from mpq.modeling.packed import PackedWeight

Version = Literal["gptq_v2", "gptq"]
"""`gptq` (v1) stores every zero less 1, in the code's bits: a zero of 0 becomes 2^bits - 1, which
readers that add 1 to whole words carry into the neighbour (GPTQModel 7.7 does, but for 3 bits)."""


def gptq_layer(packed: PackedWeight, version: Version = "gptq_v2") -> dict[str, Tensor] | str:
    """The four tensors of a weight, or why the GPTQ layout cannot hold it exactly."""
    reason = misfit(packed.encoded.format, "gptq") or _shape_fault(packed)
    if reason:
        return reason
    weight = integer_weight(packed)
    scales = exactly(weight.scales, torch.float16)
    if scales is None:
        lost = int((weight.scales.half().double() != weight.scales).sum())
        return f"its scales are stored in float16, which does not hold {lost} of them"
    zeros = weight.zeros_in_full.long()
    if version == "gptq":
        zeros = zeros - 1 & (1 << weight.width) - 1
    return {
        "qweight": pack_words(weight.codes, weight.width).T.contiguous(),
        "qzeros": pack_words(zeros.T, weight.width),
        "scales": scales.T.contiguous(),
        "g_idx": _groups(weight),
    }


def gptq_scheme(packed: PackedWeight) -> dict[str, Any]:
    """Bits, group size (-1: whole rows), symmetry and act-order, in GPTQModel's words."""
    return {
        "bits": packed.encoded.format.element.width,
        "group_size": group_size(packed.encoded) or -1,
        "sym": packed.encoded.zero_points is None,
        "desc_act": group_of_column(packed) is not None,
    }


def read_gptq_layer(
    tensors: dict[str, Tensor], bits: int, version: Version = "gptq_v2"
) -> IntegerWeight:
    """The codes, scales and zeros of a layer's four tensors: the inverse of `gptq_layer`."""
    groups = tensors["g_idx"]
    columns, rows = groups.numel(), tensors["scales"].shape[1]
    codes = unpack_words(tensors["qweight"].T, bits, columns)
    zeros = unpack_words(tensors["qzeros"], bits, rows).T
    if version == "gptq":
        zeros = zeros + 1 & (1 << bits) - 1
    return IntegerWeight(
        width=bits,
        codes=codes.to(torch.int16),
        scales=tensors["scales"].T.double(),
        zeros=zeros.to(torch.int16).contiguous(),
        group=0,
        group_of_column=groups,
    )


def gptq_values(weight: IntegerWeight) -> Tensor:
    """The values of what `read_gptq_layer` returns, float64 [out, in]: exact."""
    groups = _groups(weight).long()
    steps = weight.codes.double() - weight.zeros_in_full.double()[:, groups]
    return steps * weight.scales[:, groups]


def _groups(weight: IntegerWeight) -> Tensor:
    if weight.group_of_column is not None:
        return weight.group_of_column
    columns = weight.codes.shape[1]
    return (torch.arange(columns) // (weight.group or columns)).to(torch.int32)


def _shape_fault(packed: PackedWeight) -> str:
    shape = packed.encoded.shape
    if len(shape) != 2:
        return f"it holds matrices, not a shape of {shape}"
    if shape[0] % WORD or shape[1] % WORD:
        return f"it packs {WORD} values along either axis, and {shape} are no multiples of that"
    return ""
