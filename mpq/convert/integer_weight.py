"""A packed weight as unsigned integers, scales and zeros: the view that engines' layouts share.

Codes, scales and zero points come from what is stored; nothing is rounded anew. A symmetric code
of b bits, -(2^(b-1)-1) to 2^(b-1)-1, becomes an unsigned one by adding 2^(b-1), which is its zero;
so does one of full range, which reaches -2^(b-1), and whose scale may lie below 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mpq.convert.words import unpack_words
from mpq.formats.block import TENSOR, WHOLE, positive_axis
from mpq.formats.element import IntegerElement
from mpq.kernels.codes import values_of
from mpq.kernels.encoded import Encoded, block_units
from mpq.modeling.packed import PackedWeight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegerWeight:
    """A weight [out, in] whose value is (code - zero) * scale.

    Attributes:
        width: Bits of a code.
        codes: Unsigned codes in the weight's own order of columns, int16 [out, in].
        scales: float64 [out, groups], exactly what is stored.
        zeros: int16 [out, groups], or None: 2^(width-1) everywhere.
        group: Columns that share a scale; 0: a whole row.
        group_of_column: int32 [in], of which group each column is; None: the groups follow one
            another.
    """

    width: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int
    group_of_column: Tensor | None

    @property
    def zeros_in_full(self) -> Tensor:
        """The zeros, int16 [out, groups], those of symmetric codes too."""
        if self.zeros is not None:
            return self.zeros
        return torch.full(self.scales.shape, 1 << self.width - 1, dtype=torch.int16)


def integer_weight(packed: PackedWeight) -> IntegerWeight:
    """The integers, scales and zeros of a weight whose element is an integer of up to 8 bits.

    Raises:
        TypeError: The element is none, or the weight is no matrix.
    """
    encoded, element = packed.encoded, packed.encoded.format.element
    if not isinstance(element, IntegerElement) or element.width > 8 or len(encoded.shape) != 2:
        raise TypeError(f"{encoded.format} of shape {encoded.shape} is no matrix of integers")
    codes = stored_codes(encoded)
    if element.code != "asymmetric":
        codes = values_of(codes, element).long() + (1 << element.width - 1)
    by_row = _by_row(codes.to(torch.int16), encoded)
    group = group_size(encoded)
    zeros = None
    if encoded.zero_points is not None:
        packed_zeros = _unpacked(encoded.zero_points, element.width, encoded.num_blocks)
        zeros = by_group(packed_zeros, encoded).to(torch.int16)
    return IntegerWeight(
        width=element.width,
        codes=in_place(by_row, packed.order),
        scales=by_group(block_units(encoded).cpu(), encoded),
        zeros=zeros,
        group=group,
        group_of_column=group_of_column(packed),
    )


def stored_codes(encoded: Encoded) -> Tensor:
    """The codes as stored, int64 in the weight's shape, on the CPU."""
    count = encoded.codes.new_empty(encoded.shape, device="meta").numel()
    return _unpacked(encoded.codes, encoded.format.element.width, count).reshape(encoded.shape)


def group_size(encoded: Encoded) -> int:
    """Columns that share a scale; 0 where a row has just one."""
    block = encoded.format.block
    columns = encoded.shape[positive_axis(encoded.shape, encoded.axis)]
    if block is None or block.columns == WHOLE or block.columns >= columns:
        return 0
    return block.columns


def group_of_column(packed: PackedWeight) -> Tensor | None:
    """int32 [in], of which group each column of the weight is; None: they follow one another."""
    group = group_size(packed.encoded)
    if packed.order is None or not group:
        return None
    order = packed.order.long().cpu()
    natural = torch.arange(order.numel(), dtype=torch.int32) // group
    groups = torch.empty_like(natural)
    groups[order] = natural
    return None if torch.equal(groups, natural) else groups


def in_place(stored: Tensor, order: Tensor | None) -> Tensor:
    """Columns [out, in] that were stored in an order, back in their own places."""
    if order is None:
        return stored
    return torch.empty_like(stored).index_copy_(1, order.long().cpu(), stored)


def by_group(per_block: Tensor, encoded: Encoded) -> Tensor:
    """Entries of the blocks, one each (or one for all) -> one for each group, [out, groups]."""
    at = positive_axis(encoded.shape, encoded.axis)
    rows = encoded.shape[1 - at]
    block = encoded.format.block
    if block is None or block == TENSOR:
        return per_block.reshape(1, 1).expand(rows, 1).contiguous()
    if per_block.numel() == 1 < encoded.num_blocks:  # named by the format, the same everywhere
        per_block = per_block.expand(encoded.num_blocks)
    across = -(-encoded.shape[at] // (block.columns or encoded.shape[at]))
    tall = per_block.reshape(-1, across)
    return tall.repeat_interleave(max(block.rows, 1), dim=0)[:rows].contiguous()


def _by_row(codes: Tensor, encoded: Encoded) -> Tensor:
    """[out, in], whatever axis of the stored weight is the reduction's."""
    last = positive_axis(encoded.shape, encoded.axis) == 1
    return (codes if last else codes.T).contiguous()


def _unpacked(packed: Tensor, width: int, count: int) -> Tensor:
    """Codes of `mpq.formats.packing`, whose bytes are one row of words cut short."""
    raw = packed.cpu()
    words = torch.nn.functional.pad(raw, (0, -raw.numel() % 4)).view(torch.int32)[None]
    return unpack_words(words, width, count)[0]
