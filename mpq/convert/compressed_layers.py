"""One weight as compressed-tensors stores it: its tensors, and the scheme that says how.

Source: compressed-tensors 0.20, `compressors/` (layouts) and `quantization/lifecycle/forward.py`
(a value is `(code - zero) * scale` in the scale's dtype).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpq.convert.integer_weight import (
    IntegerWeight,
    by_group,
    group_of_column,
    group_size,
    in_place,
    integer_weight,
)
from mpq.convert.targets import INPUTS, kind_of, misfit
from mpq.convert.words import pack_words
from mpq.formats.format import Format
from mpq.kernels.encoded import block_units, part_of
from mpq.modeling.packed import PackedWeight, unpack_weight

E2M1_MAGNITUDES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NEIGHBOURS = 16
"""float32 numbers on either side of a reciprocal that are tried in its place."""

_MICROSCALED = {
    "mxfp4": (4, "mxfp4-pack-quantized"),
    "mxfp6": (6, "mxfp6-pack-quantized"),
    "mxfp8": (8, "mxfp8-quantized"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompressedLayer:
    """What stands in a checkpoint for one weight.

    Attributes:
        tensors: Name within the layer (`weight_packed`, …) -> tensor.
        scheme: A config group without its targets; None for a weight that is not quantised.
    """

    tensors: dict[str, Tensor]
    scheme: dict[str, Any] | None


def compressed_layer(
    packed: PackedWeight, dtype: torch.dtype, inputs: Format | None = None
) -> CompressedLayer | str:
    """A weight's tensors and scheme, or why compressed-tensors cannot hold it exactly.

    Args:
        packed: The weight.
        dtype: In which the model is loaded; float scales are stored in it.
        inputs: The format of the layer's input, if it has one.
    """
    named = packed.encoded.format
    kind = kind_of(named)
    reason = misfit(named, "compressed-tensors") or _shape_fault(packed)
    reason = reason or _input_fault(kind, inputs)
    if kind is None or reason:
        return reason
    if kind == "dense":
        return _dense(packed, dtype)
    if kind == "integer":
        return _integers(integer_weight(packed), dtype, inputs)
    if kind == "fp8":
        return _fp8(packed, dtype, inputs)
    if dtype != torch.bfloat16:
        return f"it reads such weights back in bfloat16, and the model is loaded in {dtype}"
    return _nvfp4(packed) if kind == "nvfp4" else _microscaled(packed, kind)


def exactly(values: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The values in a dtype, where every one of them survives; else None."""
    stored = values.to(dtype)
    return stored if torch.equal(stored.to(values.dtype), values) else None


def _shape_fault(packed: PackedWeight) -> str:
    encoded = packed.encoded
    if len(encoded.shape) != 2:
        return f"it holds matrices, not a shape of {encoded.shape}"
    if encoded.axis not in (-1, 1):
        return "it quantises Linear and Embedding; this weight lies [in, out] (Conv1D)"
    columns = encoded.shape[1]
    block = encoded.format.block
    width = block.columns if block and kind_of(encoded.format) not in ("integer", "fp8") else 0
    group = width or group_size(encoded)
    if group and columns % group:
        return f"its groups of {group} leave a short one at the end of {columns} columns"
    if group_of_column(packed) is not None:
        return "it has no act-order with groups formed in that order (use static groups)"
    return ""


def _input_fault(kind: str | None, inputs: Format | None) -> str:
    if inputs is None:
        return ""
    if str(inputs) not in INPUTS:
        return f"it names {' and '.join(INPUTS)} of inputs, not {inputs}"
    wanted = "fp8" if str(inputs).startswith("fp8") else "integer"
    return (
        "" if kind == wanted else f"inputs in {inputs} go with a weight in {INPUTS[str(inputs)]}"
    )


def _dense(packed: PackedWeight, dtype: torch.dtype) -> CompressedLayer | str:
    weight = exactly(unpack_weight(packed, torch.float32), dtype)
    if weight is None:
        return f"unquantised weights are stored in {dtype}, which does not hold all its values"
    return CompressedLayer(tensors={"weight": weight}, scheme=None)


def _integers(
    weight: IntegerWeight, dtype: torch.dtype, inputs: Format | None
) -> CompressedLayer | str:
    scales = exactly(weight.scales, dtype)
    if scales is None:
        return f"its scales are stored in {dtype}, which does not hold all of them"
    args = _weight_args(weight.width, "int", weight.group, symmetric=weight.zeros is None)
    signed = {"weight": (weight.codes - 128).to(torch.int8), "weight_scale": scales}
    if weight.zeros is not None:
        signed["weight_zero_point"] = (weight.zeros - 128).to(torch.int8)
        return CompressedLayer(tensors=signed, scheme=_scheme("naive-quantized", args, inputs))
    if inputs is not None and weight.width == 8 and not weight.group:
        return CompressedLayer(tensors=signed, scheme=_scheme("int-quantized", args, inputs))
    tensors = {
        "weight_packed": pack_words(weight.codes, weight.width),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.codes.shape),
    }
    return CompressedLayer(tensors=tensors, scheme=_scheme("pack-quantized", args, inputs))


def _fp8(packed: PackedWeight, dtype: torch.dtype, inputs: Format | None) -> CompressedLayer | str:
    encoded = packed.encoded
    scales = exactly(by_group(block_units(encoded).cpu(), encoded), dtype)
    if scales is None:
        return f"its scales are stored in {dtype}, which does not hold all of them"
    args = _weight_args(8, "float", group_size(encoded))
    return CompressedLayer(
        tensors={"weight": _e4m3(packed), "weight_scale": scales},
        scheme=_scheme("float-quantized" if inputs else "naive-quantized", args, inputs),
    )


def _microscaled(packed: PackedWeight, kind: str) -> CompressedLayer:
    width, layout = _MICROSCALED[kind]
    args = _weight_args(width, "float", 32) | {"scale_dtype": "torch.uint8"}
    scales = part_of(packed.encoded, "scales").cpu().reshape(packed.encoded.shape[0], -1)
    name = "weight" if kind == "mxfp8" else "weight_packed"
    weight = _e4m3(packed) if kind == "mxfp8" else _bytes(packed)
    return CompressedLayer(
        tensors={name: weight, "weight_scale": scales}, scheme=_scheme(layout, args, None)
    )


def _nvfp4(packed: PackedWeight) -> CompressedLayer | str:
    encoded = packed.encoded
    scales = part_of(encoded, "scales").cpu().view(torch.float8_e4m3fn)
    above = reciprocal(part_of(encoded, "tensor_scales").cpu(), torch.unique(scales.float()))
    if above is None:
        return (
            "it divides by the reciprocal of the tensor's scale, and none near it gives the "
            "same bfloat16 values"
        )
    args = _weight_args(4, "float", 16) | {
        "strategy": "tensor_group",
        "scale_dtype": "torch.float8_e4m3fn",
    }
    return CompressedLayer(
        tensors={
            "weight_packed": _bytes(packed),
            "weight_scale": scales.reshape(encoded.shape[0], -1),
            "weight_global_scale": above,
        },
        scheme=_scheme("nvfp4-pack-quantized", args, None),
    )


def reciprocal(above: Tensor, scales: Tensor) -> Tensor | None:
    """What to divide block scales by so that every value equals the product's in bfloat16.

    compressed-tensors stores 1 / the tensor's scale and divides by it, which rounds otherwise
    than a product. Of the reciprocal and its neighbours in float32, the first that gives every
    block scale times every magnitude of e2m1 the same bfloat16 value; None where none does.

    Args:
        above: The tensor's scale, float32 [1].
        scales: The block scales that occur, float32.
    """
    magnitudes = torch.tensor(E2M1_MAGNITUDES)
    wanted = (magnitudes * (scales * above)[:, None]).bfloat16()
    up = down = 1.0 / above
    infinity = torch.tensor(math.inf)
    for _ in range(NEIGHBOURS):
        for found in (up, down):
            if torch.equal((magnitudes * (scales / found)[:, None]).bfloat16(), wanted):
                return found
        up, down = torch.nextafter(up, infinity), torch.nextafter(down, -infinity)
    return None


def _bytes(packed: PackedWeight) -> Tensor:
    # Both pack from the lowest bit of the first byte on, and code elements alike.
    rows = packed.encoded.shape[0]
    if packed.order is None:
        return packed.encoded.codes.cpu().reshape(rows, -1)
    raise TypeError("a float of fewer than 8 bits has no columns in another order")


def _e4m3(packed: PackedWeight) -> Tensor:
    codes = packed.encoded.codes.cpu().reshape(packed.encoded.shape)
    return in_place(codes, packed.order).view(torch.float8_e4m3fn)


def _weight_args(width: int, number: str, group: int, *, symmetric: bool = True) -> dict[str, Any]:
    args: dict[str, Any] = {
        "num_bits": width,
        "type": number,
        "symmetric": symmetric,
        "strategy": "group" if group else "channel",
        "group_size": group or None,
        "dynamic": False,
    }
    return args


def _scheme(layout: str, weights: dict[str, Any], inputs: Format | None) -> dict[str, Any]:
    activations = None
    if inputs is not None:
        activations = {
            "num_bits": 8,
            "type": "float" if str(inputs).startswith("fp8") else "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    return {"format": layout, "weights": weights, "input_activations": activations}
