"""Blocks: how many there are, along which axis."""

import pytest

from mpq.errors import FormatError
from mpq.formats.block import ROW, TENSOR, Block, positive_axis


@pytest.mark.parametrize(
    ("block", "shape", "axis", "count"),
    [
        (Block(columns=16), (3, 32), -1, 6),
        (Block(columns=16), (3, 33), -1, 9),  # the short tail of each row is a block
        (Block(columns=16), (33, 3), 0, 9),
        (Block(columns=16), (5,), -1, 1),
        (Block(columns=16), (), -1, 1),
        (Block(columns=16), (0, 16), -1, 0),
        (Block(columns=16), (4, 0), -1, 0),
        (Block(columns=16, rows=4), (9, 33), -1, 9),
        (Block(columns=16, rows=4), (2, 9, 33), -1, 18),
        (Block(columns=16, rows=4), (33, 9), 0, 9),
        (Block(columns=16, rows=4), (33,), -1, 3),
        (ROW, (2, 3, 40), -1, 6),
        (ROW, (2, 3, 40), 0, 120),
        (TENSOR, (2, 3, 40), -1, 1),
    ],
)
def test_count(block, shape, axis, count):
    assert block.count(shape, axis) == count


def test_impossible_blocks():
    with pytest.raises(FormatError, match="at least one row and one column, not 1x-1"):
        Block(columns=-1)
    with pytest.raises(FormatError, match="4 rows needs a number of columns"):
        Block(columns=0, rows=4)


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_that_is_not_there(axis):
    with pytest.raises(FormatError, match=rf"from -2 to 1 for .* \(3, 4\), not {axis}: give"):
        positive_axis((3, 4), axis)
