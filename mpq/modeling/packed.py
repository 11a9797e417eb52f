"""A weight as a checkpoint stores it: codes, scales, and the order of its columns."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mpq.errors import ModelError
from mpq.formats.block import positive_axis
from mpq.kernels.encoded import Encoded
from mpq.kernels.fake_quant import decode, require_room

_BITS_OF_AN_ENTRY = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedWeight:
    """A weight as its checkpoint stores it.

    Attributes:
        encoded: The codes and scales of the weight, its columns in the stored order.
        order: int64 [K]: entry j says which of the weight's positions along the reduction axis
            column j of `encoded` holds (act-order with groups formed in that order, GPTQ's
            g_idx); None: as they are.

    Raises:
        ModelError: `order` does not hold every position along the axis once.
    """

    encoded: Encoded
    order: Tensor | None = None

    def __post_init__(self) -> None:
        if self.order is None:
            return
        size = self.encoded.shape[positive_axis(self.encoded.shape, self.encoded.axis)]
        order = self.order
        positions = torch.arange(size, device=order.device)
        if order.shape != (size,) or not torch.equal(order.long().sort().values, positions):
            raise ModelError(
                f"an order holds every position along the reduction axis once, 0 to {size - 1} "
                f"in shape ({size},); this one has shape {tuple(order.shape)} and values from "
                f"{_range(order)}. Sort the columns by a permutation"
            )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are stored, by the names of their fields; those that there are."""
        encoded = self.encoded
        fields = {
            "codes": encoded.codes,
            "scales": encoded.scales,
            "zero_points": encoded.zero_points,
            "tensor_scales": encoded.tensor_scales,
            "order": self.order,
        }
        return {name: x for name, x in fields.items() if x is not None}

    @property
    def num_bits(self) -> int:
        """Bits of everything that is stored: an entry of the order takes 32."""
        entries = 0 if self.order is None else self.order.numel()
        return self.encoded.num_bits + _BITS_OF_AN_ENTRY * entries


def unpack_weight(
    packed: PackedWeight, dtype: torch.dtype | None = None, *, out: Tensor | None = None
) -> Tensor:
    """The weight's values, columns back in place.

    Args:
        packed: The weight.
        dtype: Of the result; the one the weight was encoded from if None.
        out: Where the values go, as `decode` takes it; None: a tensor of their own.

    Raises:
        FormatError: As of `decode`.
    """
    if packed.order is None:
        return decode(packed.encoded, dtype, out=out)
    if out is not None:
        require_room(out, packed.encoded, dtype or packed.encoded.dtype)
    values = decode(packed.encoded, dtype)
    order = packed.order.to(device=values.device, dtype=torch.long)
    out = torch.empty_like(values) if out is None else out
    return out.index_copy_(packed.encoded.axis, order, values)


def with_tensors(packed: PackedWeight, transform: Callable[[Tensor], Tensor]) -> PackedWeight:
    """The same packed weight with every tensor replaced by what `transform` makes of it."""
    replaced: dict[str, Any] = {name: transform(x) for name, x in packed.tensors.items()}
    order = replaced.pop("order", None)
    return PackedWeight(encoded=replace(packed.encoded, **replaced), order=order)


def _range(order: Tensor) -> str:
    return f"{int(order.min())} to {int(order.max())}" if order.numel() else "none at all"
