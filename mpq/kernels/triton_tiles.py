"""Where a tensor's blocks lie, for a Triton kernel: whole blocks side by side in a tile.

A tensor is seen as [outer, inner, rows, columns] through its strides, the block axis last, so that
no axis needs a transposed copy. A program takes a tile of neighbouring blocks; neighbours follow
each other along whichever of rows and columns lies closer in memory.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from mpq.formats.block import TENSOR, WHOLE, Block, positive_axis

TILE = 2048
"""Values of a tile whose blocks are not larger: 16 for each thread of four warps."""

STRIDED = 32
"""Values of a row in a tile that runs along the rows because they lie closer in memory."""

LARGEST_BLOCK = 16384
"""Values of a block that a program holds: 64 for each thread of eight warps."""

DTYPE_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """The shape of a tile, for which a kernel is compiled.

    Attributes:
        blocks: Blocks of the tile, a power of two.
        values: Room for the values of a block, a power of two.
        rows: Rows of a block.
        columns: Columns of a block.
        along_columns: Whether neighbouring blocks follow each other along the columns.
        dtype: The tensor's dtype: `bf16`, `fp16` or `fp32`.
    """

    blocks: int
    values: int
    rows: int
    columns: int
    along_columns: bool
    dtype: str

    @property
    def halvings(self) -> int:
        """How often a block's values are paired until one is left."""
        return self.values.bit_length() - 1


class Axis(NamedTuple):
    """An axis of a tensor and of its result, strides counted in values."""

    size: int
    stride: int
    out_stride: int


ONE = Axis(1, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A tensor and its result as tiles.

    Attributes:
        tile: The shape of a tile.
        count: Blocks in all.
        extents: Blocks along the columns, blocks along the rows, inner, rows, columns.
        strides: The tensor's, along outer, inner, rows, columns.
        out_strides: The result's.
    """

    tile: Tile
    count: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    out_strides: tuple[int, ...]

    @property
    def programs(self) -> int:
        """The programs that cover every block."""
        return math.ceil(self.count / self.tile.blocks)

    @property
    def warps(self) -> int:
        """The warps of a program."""
        return 4 if self.tile.blocks * self.tile.values <= 2 * TILE else 8

    @property
    def rows_in_all(self) -> int:
        """Rows of the tensor: what lies along all axes but the columns."""
        return self.count // self.extents[0]

    @classmethod
    def of(cls, x: Tensor, out: Tensor, axis: int | None, rows: int = 1, columns: int = 0) -> Self:
        """The tiles of a tensor that `is_seen`.

        Args:
            x: The tensor.
            out: The result, of its shape.
            axis: The axis along which the columns lie; None for any.
            rows: Rows of a block.
            columns: Columns of a block; 0 for as many as suit a tile, where blocks are only
                pieces of a row.
        """
        axes = _axes(x, out, axis, rows)
        outer, inner, down, across = [ONE] * (4 - len(axes)) + axes
        along_columns = down.size == 1 or across.stride <= down.stride
        columns = min(columns or (TILE if along_columns else STRIDED), across.size)
        rows = min(rows, down.size)
        values = 1 << (rows * columns - 1).bit_length()
        extents = (math.ceil(across.size / columns), math.ceil(down.size / rows))
        count = outer.size * inner.size * extents[0] * extents[1]
        tile = Tile(
            blocks=min(max(1, TILE // values), 1 << (count - 1).bit_length()),
            values=values,
            rows=rows,
            columns=columns,
            along_columns=along_columns,
            dtype=DTYPE_NAMES[x.dtype],
        )
        axes = [outer, inner, down, across]
        return cls(
            tile=tile,
            count=count,
            extents=(*extents, inner.size, down.size, across.size),
            strides=tuple(axis.stride for axis in axes),
            out_strides=tuple(axis.out_stride for axis in axes),
        )


def is_seen(x: Tensor, axis: int | None, rows: int = 1) -> bool:
    """Whether strides of four axes reach every value; if not, those of a contiguous copy do."""
    out = torch.empty(x.shape, dtype=x.dtype, device="meta")
    return len(_axes(x, out, axis, rows)) <= 4


def is_strided(x: Tensor, axis: int) -> bool:
    """Whether the values along an axis lie farther apart than those of the axis beside it."""
    *_, down, across = [ONE, *_axes(x, x, axis, 1)]
    return down.size > 1 and across.stride > down.stride


def block_size(block: Block, shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Rows and columns of a block in a tensor of this shape."""
    at = positive_axis(shape, axis)
    width = shape[at] if shape else 1
    if block == TENSOR:
        return 1, math.prod(shape)
    return block.rows, width if block.columns == WHOLE else min(block.columns, width)


def _axes(x: Tensor, out: Tensor, axis: int | None, rows: int) -> list[Axis]:
    """The axes with the columns last, neighbours merged where one stride reaches over both."""
    axes = [Axis(*facts) for facts in zip(x.shape, x.stride(), out.stride(), strict=True)]
    if axis is None:
        return _merged(axes) or [ONE]
    columns = axes.pop(axis) if axes else ONE
    if rows > 1 and axes:
        return [*_merged(axes[:-1]), axes[-1], columns]
    return [*_merged(axes), columns]


def _merged(axes: list[Axis]) -> list[Axis]:
    merged: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        if merged and _reaches_over(merged[-1], axis):
            axis = axis._replace(size=merged.pop().size * axis.size)  # noqa: PLW2901
        merged.append(axis)
    return merged


def _reaches_over(before: Axis, axis: Axis) -> bool:
    return (
        before.stride == axis.stride * axis.size
        and before.out_stride == axis.out_stride * axis.size
    )
