"""Tensors as rows of blocks: each row one block, short blocks filled up with zeros.

Zeros never raise a block's largest magnitude, so that a filled block is scaled as the short block
that it stands for.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from mpq.formats.block import TENSOR, WHOLE, Block, positive_axis


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a tensor's blocks lie.

    Attributes:
        shape: The tensor's shape with the block axis last; at least two axes.
        axis: The block axis in the tensor, counted from the front.
        rank: The tensor's number of axes.
        rows: Rows of a block.
        columns: Columns of a block.
    """

    shape: tuple[int, ...]
    axis: int
    rank: int
    rows: int
    columns: int

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, shape: tuple[int, ...], axis: int, block: Block) -> Self:
        """The layout of a tensor of this shape, with values.

        Raises:
            FormatError: The shape has no such axis.
        """
        at = positive_axis(shape, axis)
        outer = (*shape[:at], *shape[at + 1 :]) or (1,)
        columns = shape[at] if shape else 1
        if block == TENSOR:
            rows, width = 1, math.prod(outer) * columns
            return cls(shape=(1, width), axis=at, rank=len(shape), rows=rows, columns=width)
        width = columns if block.columns == WHOLE else block.columns
        return cls(
            shape=(*outer, columns), axis=at, rank=len(shape), rows=block.rows, columns=width
        )

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros that fill up the short blocks."""
        return -self.shape[-2] % self.rows, -self.shape[-1] % self.columns

    @property
    def blocks_per_row(self) -> int:
        """The number of blocks side by side."""
        return math.ceil(self.shape[-1] / self.columns)

    def split(self, x: Tensor) -> Tensor:
        """The tensor's blocks, [blocks, values of a block]; a view where memory allows it."""
        if self.rank > 1:
            x = x.movedim(self.axis, -1)
        x = x.reshape(self.shape)
        down, right = self.padding
        if down or right:
            x = torch.nn.functional.pad(x, (0, right, 0, down))
        if self.rows > 1:
            tall, wide = x.shape[-2] // self.rows, x.shape[-1] // self.columns
            x = x.reshape(-1, tall, self.rows, wide, self.columns).transpose(2, 3)
        return x.reshape(-1, self.rows * self.columns)

    def join(self, blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor of this shape whose blocks these are: the inverse of `split`."""
        *outer, tall, wide = self.shape
        down, right = self.padding
        is_last = self.axis == max(self.rank, 1) - 1
        if is_last and self.rows == 1 and not right:
            return blocks.reshape(shape)
        if self.rows > 1:
            blocks = blocks.reshape(
                -1,
                (tall + down) // self.rows,
                (wide + right) // self.columns,
                self.rows,
                self.columns,
            ).transpose(2, 3)
        x = blocks.reshape(*outer, tall + down, wide + right)[..., :tall, :wide]
        if is_last:
            return x.reshape(shape)
        moved = (*shape[: self.axis], *shape[self.axis + 1 :], shape[self.axis])
        return x.reshape(moved).movedim(-1, self.axis).contiguous()
