"""The tensors that stand for a packed weight in a file, and the facts that give them a meaning.

A shard tells of its own packed weights (the `mpq` entry of its safetensors header), so that one
file can be decoded without the others; `config.json` holds what concerns them all.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from mpq.errors import FormatError
from mpq.formats.block import ROW, TENSOR, positive_axis
from mpq.formats.format import Format
from mpq.formats.packing import packed_bytes
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent
from mpq.formats.zoo import parse_format
from mpq.kernels.encoded import Encoded
from mpq.modeling.packed import PackedWeight

METHOD = "mpq"
"""`quant_method` of a packed checkpoint."""

VERSION = 1
"""Version of the layout that this mpq writes, and the newest that it reads."""

HEADER = "mpq"
"""The entry of a shard's safetensors metadata that describes its packed weights."""

PARTS = ("codes", "scales", "zero_points", "tensor_scales", "order")
"""What a packed weight may consist of; in a file `<site>.<part>`."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
}
_SCALE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFacts:
    """What the tensors of a packed weight mean.

    Attributes:
        format: The format.
        shape: The weight's shape.
        axis: The axis along which its blocks lie.
        dtype: The dtype of the values that were encoded, and to which they decode.
        ordered: True where the columns lie in an order of their own.
    """

    format: Format
    shape: tuple[int, ...]
    axis: int
    dtype: torch.dtype
    ordered: bool

    @classmethod
    def of(cls, packed: PackedWeight) -> Self:
        """The facts of a packed weight."""
        encoded = packed.encoded
        return cls(
            format=encoded.format,
            shape=tuple(encoded.shape),
            axis=encoded.axis,
            dtype=encoded.dtype,
            ordered=packed.order is not None,
        )

    def part_sizes(self) -> dict[str, tuple[torch.dtype, int]]:
        """The dtype and number of entries of every part that the weight consists of."""
        scale, width = self.format.scale, self.format.element.width
        sizes = {"codes": (torch.uint8, packed_bytes(width, math.prod(self.shape)))}
        if self.ordered:
            columns = self.shape[positive_axis(self.shape, self.axis)]
            sizes["order"] = (torch.int32, columns)
        if 0 in self.shape:
            return sizes
        if self.format.block is not None:
            sizes |= self._of_blocks(self.format.block.count(self.shape, self.axis))
        if isinstance(scale, NestedScale) and scale.absmax is None:
            above = ROW if scale.per_row else TENSOR
            sizes["tensor_scales"] = (torch.float32, above.count(self.shape, self.axis))
        return sizes

    def _of_blocks(self, count: int) -> dict[str, tuple[torch.dtype, int]]:
        match self.format.scale:
            case SharedExponent(width=width):
                return {"scales": (torch.uint8, packed_bytes(width, count))}
            case NestedScale():
                return {"scales": (torch.uint8, count)}
            case FloatScale(absmax=None, dtype=dtype, zero_point=zero_point):
                parts = {"scales": (_SCALE_DTYPES[dtype], count)}
                if zero_point:
                    size = packed_bytes(self.format.element.width, count)
                    parts["zero_points"] = (torch.uint8, size)
                return parts
        return {}


def parts_of(packed: PackedWeight) -> dict[str, Tensor]:
    """The tensors that stand for a packed weight, by part; the order as int32."""
    tensors = {name: getattr(packed.encoded, name) for name in PARTS[:-1]}
    if packed.order is not None:
        tensors["order"] = packed.order.to(torch.int32)
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def packed_from(facts: PackedFacts, parts: Mapping[str, Tensor]) -> PackedWeight:
    """The packed weight that these tensors stand for: the inverse of `parts_of`."""
    order = parts.get("order")
    encoded = Encoded(
        format=facts.format,
        axis=facts.axis,
        shape=facts.shape,
        dtype=facts.dtype,
        **{name: parts.get(name) for name in PARTS[1:-1]},
        codes=parts["codes"],
    )
    return PackedWeight(encoded=encoded, order=None if order is None else order.long())


def header_of(facts: Mapping[str, PackedFacts]) -> str:
    """The text that a shard's header holds about its packed weights."""
    sites = {
        name: {
            "format": str(one.format),
            "shape": list(one.shape),
            "axis": one.axis,
            "dtype": str(one.dtype).removeprefix("torch."),
            "ordered": one.ordered,
        }
        for name, one in facts.items()
    }
    return json.dumps({"version": VERSION, "sites": sites}, ensure_ascii=False)


def facts_from(header: str) -> dict[str, PackedFacts]:
    """The facts of the packed weights that a shard's header tells of, by site.

    Raises:
        FormatError: The header is none that `header_of` writes.
    """
    try:
        table: dict[str, dict[str, Any]] = json.loads(header)["sites"]
        return {
            name: PackedFacts(
                format=parse_format(one["format"]),
                shape=tuple(one["shape"]),
                axis=one["axis"],
                dtype=_DTYPES[one["dtype"]],
                ordered=one["ordered"],
            )
            for name, one in table.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise FormatError(f"this header describes no packed weights: {error!r}") from error
