"""Layouts: blocks there and back, tails filled with zeros."""

import pytest
import torch

from mpq.errors import FormatError
from mpq.formats.block import ROW, TENSOR, Block
from mpq.kernels.layout import Layout


@pytest.mark.parametrize("block", [ROW, TENSOR, Block(columns=4), Block(columns=4, rows=3)])
@pytest.mark.parametrize("shape", [(), (7,), (5, 7), (2, 5, 8), (2, 3, 5, 7)])
def test_there_and_back(block, shape):
    x = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    for axis in range(-max(len(shape), 1), max(len(shape), 1)):
        layout = Layout.of(shape, axis, block)
        blocks = layout.split(x)
        assert torch.equal(layout.join(blocks, shape), x)
        assert len(blocks) == block.count(shape, axis)
        assert blocks.count_nonzero() == x.numel()  # all else is filling


def test_what_lies_in_a_block():
    x = torch.arange(24.0).reshape(4, 6)
    assert Layout.of((4, 6), -1, Block(columns=3)).split(x)[1].tolist() == [3, 4, 5]
    assert Layout.of((4, 6), 0, Block(columns=2)).split(x)[1].tolist() == [12, 18]
    tile = Layout.of((4, 6), -1, Block(columns=4, rows=3))
    assert tile.split(x)[0].tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15]
    assert tile.split(x)[3].tolist() == [22, 23] + [0.0] * 10
    assert tile.padding == (2, 2)
    assert tile.blocks_per_row == 2


def test_whole_blocks_of_a_contiguous_tensor_are_a_view():
    x = torch.zeros(4, 32)
    assert Layout.of((4, 32), -1, Block(columns=16)).split(x).data_ptr() == x.data_ptr()


def test_an_axis_that_is_not_there():
    with pytest.raises(FormatError, match="from -2 to 1"):
        Layout.of((4, 32), 2, ROW)
