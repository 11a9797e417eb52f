"""Which tensors the kernels take, and as what they see them."""

import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.triton_launch import covers, grid_of, in_pieces, seen


def test_what_is_left_to_eager():
    x = torch.ones(4, 40000)
    for text in ("bfp4", "int4", "int4a", "int8-tensor", "nvfp4-token", "int4(block=128x128)"):
        assert covers(parse_format(text), x, -1)
    assert not covers(parse_format("bfp4"), x.double(), -1)
    assert not covers(parse_format("int4-g32768"), x, -1)
    assert not covers(parse_format("bfp4(block=4x8192)"), x, -1)
    assert not covers(parse_format("bfp4-token(scale_rule=mse)"), x, -1)
    assert covers(parse_format("bfp4-token(scale_rule=mse)"), x, 0)
    assert not covers(parse_format("bfp4-tensor(scale_rule=mse)"), x[:, :4], -1)
    many = torch.empty(2**16, 2**16, dtype=torch.half, device="meta")
    assert covers(parse_format("bfp4"), many, -1)
    assert not covers(parse_format("fp8-e4m3"), many, -1)
    assert not covers(parse_format("int4-g1"), many, -1)


def test_what_32_bits_do_not_number_is_left_to_eager():
    longest = torch.empty(2**31 + 16, dtype=torch.half, device="meta")
    assert not covers(parse_format("bfp4"), longest, -1)
    short = torch.empty(2**30 + 2**27, 17, dtype=torch.half, device="meta")  # two blocks a row
    assert not covers(parse_format("bfp4"), short, -1)
    assert covers(parse_format("bfp4"), short[: 2**29], -1)


def test_what_four_strides_do_not_reach_is_copied():
    named = parse_format("bfp4")
    heads = torch.randn(2, 6, 5, 8).transpose(1, 2)
    assert seen(heads, named, 3) is heads
    tangled = torch.randn(2, 3, 2, 3, 2, 3)[:, ::2].permute(4, 2, 0, 3, 1, 5)[..., 1:]
    assert seen(tangled, named, 2).is_contiguous()
    assert torch.equal(seen(tangled, named, 2), tangled)


def test_rows_are_whole_where_a_program_holds_them():
    x = torch.empty(4, 20000)
    assert in_pieces(parse_format("int4"), x, 1)
    assert not in_pieces(parse_format("int4"), x[:, :16384], 1)
    assert in_pieces(parse_format("int4"), torch.empty(200, 4), 0)  # far apart in memory
    assert not in_pieces(parse_format("int4-g64"), x, 1)
    assert in_pieces(parse_format("int8-tensor"), x[:, :4], 1)


def test_tiles_hold_blocks_or_pieces():
    x = torch.empty(8, 64)
    assert grid_of(x, x, parse_format("bfp4"), 1).tile.columns == 16
    assert grid_of(x, x, parse_format("bfp4(block=4x16)"), 1).tile.rows == 4
    assert grid_of(x, x, parse_format("int4"), 1).tile.columns == 64
    assert grid_of(x, x, parse_format("fp8-e4m3"), 1).tile.columns == 512
