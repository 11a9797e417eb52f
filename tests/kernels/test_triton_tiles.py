"""Where blocks lie: every value in one block, through its strides."""

import pytest
import torch

from mpq.formats.block import ROW, TENSOR, Block
from mpq.kernels.triton_tiles import TILE, Grid, block_size, is_seen, is_strided


def grid(x: torch.Tensor, axis: int | None, rows: int = 1, columns: int = 0) -> Grid:
    return Grid.of(x, torch.empty(x.shape), axis, rows, columns)


def test_a_contiguous_tensor_is_one_row_where_nothing_is_shared():
    got = grid(torch.empty(3, 4, 5), None)
    assert got.extents == (1, 1, 1, 1, 60)
    assert (got.strides[-1], got.count, got.programs, got.rows_in_all) == (1, 1, 1, 1)


def test_axes_merge_on_each_side_of_the_block_axis():
    got = grid(torch.empty(2, 3, 40, 5, 7), 2, columns=16)
    assert got.extents == (3, 35, 6, 35, 40)  # blocks across, blocks down, inner, rows, columns
    assert got.strides == (0, 40 * 35, 1, 35)
    assert got.count == 2 * 3 * 35 * 3
    assert not got.tile.along_columns


def test_heads_are_seen_without_a_copy():
    heads = torch.empty(2, 9, 4, 8).transpose(1, 2)
    got = grid(heads, 3, columns=8)
    assert got.strides == (9 * 32, 8, 32, 1)
    assert got.out_strides == (9 * 32, 9 * 8, 8, 1)
    assert got.tile.along_columns


def test_rows_of_a_block_are_not_merged_away():
    got = grid(torch.empty(2, 6, 20), 2, 4, 8)
    assert (got.tile.rows, got.tile.columns, got.tile.values) == (4, 8, 32)
    assert got.extents == (3, 2, 2, 6, 20)
    assert got.count == 2 * 2 * 3
    assert grid(torch.empty(20), 0, 4, 8).tile.rows == 1


def test_tiles_hold_whole_blocks():
    assert grid(torch.empty(64, 4096), 1, columns=16).tile.blocks == TILE // 16
    assert grid(torch.empty(64, 4096), 1, columns=4096).tile.blocks == 1
    assert grid(torch.empty(64, 16384), 1, columns=16384).warps == 8
    assert grid(torch.empty(2, 20), 1, columns=16).tile.blocks == 4
    tile = grid(torch.empty(64, 70), 1, columns=7).tile
    assert (tile.values, tile.halvings) == (8, 3)


def test_what_four_axes_do_not_reach():
    x = torch.empty(2, 3, 2, 3, 2, 3)
    assert is_seen(x, 3)
    assert not is_seen(x.permute(4, 2, 0, 3, 1, 5)[..., 1:], None)


def test_which_axis_is_closer_in_memory():
    x = torch.empty(6, 8)
    assert not is_strided(x, 1)
    assert is_strided(x, 0)
    assert not is_strided(x[:, :1], 0)
    assert not is_strided(torch.empty(()), 0)


@pytest.mark.parametrize(
    ("block", "size"),
    [(ROW, (1, 8)), (TENSOR, (1, 48)), (Block(columns=3), (1, 3)), (Block(columns=99), (1, 8))],
)
def test_the_size_of_a_block(block, size):
    assert block_size(block, (6, 8), -1) == size
