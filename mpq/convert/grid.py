"""Grids: the values that the columns of a weight may take, chosen before they are rounded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq.formats.block import ROW, TENSOR, WHOLE, Block
from mpq.formats.element import reach
from mpq.formats.format import Format
from mpq.formats.scale import NestedScale, SharedExponent, StaticScale
from mpq.kernels.bits import largest_held
from mpq.kernels.eager import (
    arithmetic_dtype,
    round_alone,
    round_blocks,
    saturate,
    scale_back,
    scales_above,
)
from mpq.kernels.encoded import computing_dtype
from mpq.kernels.layout import Layout
from mpq.kernels.rounding import fits_float32, round_to_element
from mpq.kernels.scaling import Scales, choose_scales, divisor

SHRUNK = tuple(1 - step / 40 for step in range(25))
"""Shares of a block's range that the search tries, 1 first, down to 0.4 in steps of 0.025."""

EXPONENT_SHIFTS = (1.0, 0.5, 2.0)
"""What it tries where scales are powers of two: the rule's own, the next below and above."""

FOUR_OF_SIX = 1.5
"""What it tries beside the shares under e4m3 block scales: the maximum becomes e2m1's 4, not 6,
where its steps are finer. Source: Cook et al. 2025, "Four Over Six"."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """The values that the columns of one block each (or of none) may take.

    Attributes:
        format: The format.
        dtype: The weight's dtype, to which values are cast.
        scales: Of the blocks on top of each other, [blocks, 1]; None without blocks.
        unit: The value of an element's 1 in each row, [rows] or [1]; without blocks [1].
        inverse: 1 / unit where that is exact; None: divide.
        zero_point: Of each row, [rows] or [1]; None where the code has none.
        may_overflow: Whether a value could leave the range of the dtype.
    """

    format: Format
    dtype: torch.dtype
    scales: Scales | None
    unit: Tensor
    inverse: Tensor | None = None
    zero_point: Tensor | None = None
    may_overflow: bool = False


def group_size(format: Format, size: int) -> int:
    """The number of columns, of `size`, that take their scales from the same blocks."""
    columns = format.block.columns if format.block else WHOLE
    return size if columns == WHOLE else min(columns, size)


def tensor_scales(weight: Tensor, format: Format) -> Tensor | None:
    """The scale above the block scales of each row, [rows, 1]; None where there is none.

    Args:
        weight: [rows, columns], the original, in its own dtype.
        format: The format.
    """
    layout = Layout.of(tuple(weight.shape), -1, ROW)
    return scales_above(weight, weight, format, layout, -1)


def above_blocks(weight: Tensor, format: Format) -> Tensor | None:
    """The scale above each block, [blocks, 1]; None where there is none.

    Args:
        weight: [rows, columns], the original, in its own dtype.
        format: The format.
    """
    above = tensor_scales(weight, format)
    if above is None or format.block is None:
        return None
    layout = Layout.of(tuple(weight.shape), -1, format.block)
    return above.repeat_interleave(layout.blocks_per_row, dim=0)


def choose_grids(
    columns: Tensor,
    format: Format,
    dtype: torch.dtype,
    *,
    above: Tensor | None = None,
    is_searched: bool = False,
    importance: Tensor | None = None,
) -> list[Grid]:
    """The grid of each group of columns, from left to right.

    Args:
        columns: [rows, K], as many as belong to whole groups (or to the last, short one).
        format: The format.
        dtype: The weight's dtype.
        above: What `tensor_scales` says of the weight.
        is_searched: Whether of shrunk ranges the one with the least squared error is taken.
        importance: [K], what the search weights the squared error of each column with; None: 1.
    """
    if format.block is None:
        fraction = format.scale.fraction if isinstance(format.scale, StaticScale) else 0
        unit = torch.full((1,), 2.0**-fraction, dtype=torch.float64, device=columns.device)
        return [Grid(format=format, dtype=dtype, scales=None, unit=unit)]
    layout = Layout.of(tuple(columns.shape), -1, format.block)
    blocks = layout.split(columns).to(computing_dtype(format, dtype))
    if above is not None:
        above = above.repeat_interleave(layout.blocks_per_row, dim=0)
    if is_searched:
        weights = None if importance is None else layout.split(importance.expand(columns.shape))
        scales = _search(blocks, format, dtype, above, weights)
    else:
        scales = choose_scales(blocks, format, dtype, above)
    return [
        _grid(part, format, dtype, columns.shape[0])
        for part in _per_group(scales, 1 if format.block == TENSOR else layout.blocks_per_row)
    ]


def joined_scales(grids: Sequence[Grid]) -> Scales | None:
    """The scales of the blocks of all groups, in the order in which they are stored."""
    parts = [grid.scales for grid in grids if grid.scales is not None]
    if not parts:
        return None
    stored = [part.stored for part in parts if part.stored is not None]
    zeros = [part.zero_point for part in parts if part.zero_point is not None]
    return Scales(
        unit=_side_by_side([part.unit for part in parts]),
        stored=_side_by_side(stored) if stored else None,
        zero_point=_side_by_side(zeros) if zeros else None,
    )


def round_column(column: Tensor, grid: Grid) -> Tensor:
    """The values, in units of the element, of a column of the weight, float64 [rows]."""
    if grid.scales is None:
        # To the precision of the sum that `fake_quantize` would round.
        exact = arithmetic_dtype(grid.dtype)
        return round_alone(column.to(exact), grid.format, grid.dtype)
    scaled = column.to(grid.unit.dtype)
    scaled = scaled / divisor(grid.unit) if grid.inverse is None else scaled * grid.inverse
    return round_to_element(scaled, grid.format.element, grid.zero_point)


def read_back(values: Tensor, grid: Grid) -> Tensor:
    """What `decode` gives for a column's values, [rows] in the weight's dtype.

    Args:
        values: What `round_column` returned, which stays as it is.
        grid: The same grid.
    """
    if grid.scales is None:
        return (values.double() * grid.unit).to(grid.dtype)
    if grid.may_overflow:
        values = values.clone()
        saturate(values, grid.format.element, grid.unit, grid.dtype)
    product = scale_back(values, grid.unit, grid.format.element)
    return product.to(arithmetic_dtype(grid.dtype)).to(grid.dtype)


def value_dtype(format: Format, dtype: torch.dtype) -> torch.dtype:
    """A dtype that holds what `round_column` returns for a weight of this dtype."""
    if format.block is None and not fits_float32(format.element):
        return torch.float64
    return computing_dtype(format, dtype)


def _grid(scales: Scales, format: Format, dtype: torch.dtype, rows: int) -> Grid:
    block = format.block or ROW
    largest = float(scales.unit.double().abs().amax()) * reach(format.element)
    return Grid(
        format=format,
        dtype=dtype,
        scales=scales,
        unit=_of_rows(scales.unit, block, rows),
        inverse=None if scales.inverse is None else _of_rows(scales.inverse, block, rows),
        zero_point=None if scales.zero_point is None else _of_rows(scales.zero_point, block, rows),
        may_overflow=not largest <= largest_held(dtype),
    )


def _of_rows(of_blocks: Tensor, block: Block, rows: int) -> Tensor:
    """What each block has, [blocks, 1], for each row of the weight, [rows] or [1]."""
    flat = of_blocks.flatten()
    return flat.repeat_interleave(block.rows)[:rows] if block.rows > 1 else flat


def _per_group(scales: Scales, groups: int) -> list[Scales]:
    """The scales of the blocks of each group of columns."""

    def part(of_blocks: Tensor, group: int) -> Tensor:
        if of_blocks.numel() == 1:  # calibrated: one for all
            return of_blocks
        return of_blocks.reshape(-1, groups)[:, group : group + 1].contiguous()

    inverse, stored, zero_point = scales.inverse, scales.stored, scales.zero_point
    return [
        Scales(
            unit=part(scales.unit, group),
            inverse=None if inverse is None else part(inverse, group),
            stored=None if stored is None else part(stored, group),
            zero_point=None if zero_point is None else part(zero_point, group),
        )
        for group in range(groups)
    ]


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=1).reshape(-1, 1)


def _search(
    blocks: Tensor,
    format: Format,
    dtype: torch.dtype,
    above: Tensor | None,
    weights: Tensor | None,
) -> Scales:
    """For each block the scales, of those of its shrunk copies, with the least squared error.

    The first of equals wins, so that a block without importance keeps the format's own.
    """
    best = choose_scales(blocks, format, dtype, above)
    if best.unit.shape[0] != blocks.shape[0]:  # calibrated: no block has a say
        return best
    least = _squared_errors(blocks, format, best, weights)
    for share in tried_shares(format)[1:]:
        other = choose_scales(blocks * share, format, dtype, above)
        error = _squared_errors(blocks, format, other, weights)
        wins = error < least
        least = torch.where(wins, error, least)
        best = _choice(wins, other, best)
    return best


def tried_shares(format: Format) -> tuple[float, ...]:
    """The multiples of a block's range whose scales the search compares, the rule's own first."""
    if isinstance(format.scale, SharedExponent):
        return EXPONENT_SHIFTS
    return (*SHRUNK, FOUR_OF_SIX) if isinstance(format.scale, NestedScale) else SHRUNK


def _squared_errors(
    blocks: Tensor, format: Format, scales: Scales, weights: Tensor | None
) -> Tensor:
    values = round_blocks(blocks, format.element, scales)
    errors = values.mul_(scales.unit).sub_(blocks).double().square_()
    if weights is not None:
        errors.mul_(weights)
    return errors.sum(dim=1, keepdim=True)


def _choice(wins: Tensor, first: Scales, second: Scales) -> Scales:
    """The scales of the first where it wins, else of the second."""

    def part(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        return None if one is None or other is None else torch.where(wins, one, other)

    return Scales(
        unit=torch.where(wins, first.unit, second.unit),
        inverse=part(first.inverse, second.inverse),
        stored=part(first.stored, second.stored),
        zero_point=part(first.zero_point, second.zero_point),
    )
