"""Blocks: which values share a scale, and along which axis."""

import math
from dataclasses import dataclass

from mpq.errors import FormatError

WHOLE = 0
"""A block extent that reaches over everything there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A rectangle of values that share a scale.

    Attributes:
        columns: Values along the format's axis; `WHOLE` for all of them.
        rows: Values along the axis before it; `WHOLE` (only with whole columns): the tensor.
    """

    columns: int
    rows: int = 1

    def __post_init__(self) -> None:
        if self.columns < 0 or self.rows < 0:
            raise FormatError(
                f"a block has at least one row and one column, not {self.rows}x{self.columns}: "
                f"give positive sizes"
            )
        if (self.columns == WHOLE) != (self.rows == WHOLE) and self.rows != 1:
            raise FormatError(
                f"a block of {self.rows} rows needs a number of columns, not {self.columns}: "
                f"give both, as in block=4x16"
            )

    def count(self, shape: tuple[int, ...], axis: int = -1) -> int:
        """The number of blocks of a tensor; short blocks at the tails count as blocks.

        Args:
            shape: The tensor's shape.
            axis: The axis along which the columns lie.

        Raises:
            FormatError: `axis` is not an axis of `shape`.
        """
        axis = positive_axis(shape, axis)
        if math.prod(shape) == 0:
            return 0
        if self.rows == WHOLE:
            return 1
        *outer, columns = (1, *shape[:axis], *shape[axis + 1 :], shape[axis] if shape else 1)
        across = 1 if self.columns == WHOLE else math.ceil(columns / self.columns)
        return math.prod(outer[:-1]) * math.ceil(outer[-1] / self.rows) * across


TENSOR = Block(columns=WHOLE, rows=WHOLE)
"""All values of the tensor."""

ROW = Block(columns=WHOLE)
"""All values along the axis: an output channel of a weight, a token of an activation."""


def positive_axis(shape: tuple[int, ...], axis: int) -> int:
    """The axis counted from the front; a tensor without axes counts as one of one value.

    Raises:
        FormatError: The shape has no such axis.
    """
    rank = max(len(shape), 1)
    if not -rank <= axis < rank:
        raise FormatError(
            f"the block axis must be from {-rank} to {rank - 1} for a tensor of shape "
            f"{tuple(shape)}, not {axis}: give the axis that the matmul reduces"
        )
    return axis % rank
