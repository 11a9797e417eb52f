"""The CPU path's side of a tensor: tiles, threads, memory. Its bits: test_choice_paths.py."""

import pytest
import torch

from mpq.formats.block import Block
from mpq.formats.zoo import parse_format
from mpq.kernels import cpu, eager
from mpq.kernels.choice import has_compiler
from mpq.kernels.cpu import LARGEST_BLOCK, TILE, place_of

needs_numba = pytest.mark.skipif(not has_compiler("cpu"), reason="numba is not installed")


def test_blocks_that_fill_their_rows_make_one_long_row():
    place = place_of((6, 64), 1, Block(columns=16))
    assert (place.across, place.length, place.row, place.size) == (False, 384, 64, 16)
    assert (place.blocks, place.tiles, place.room) == (24, 1, 384)


def test_short_blocks_keep_rows_apart():
    place = place_of((6, 70), -1, Block(columns=16))
    assert (place.length, place.blocks, place.tiles, place.room) == (70, 5, 6, 80)


def test_a_long_row_is_cut_between_blocks():
    place = place_of((10 * TILE + 5,), 0, Block(columns=16))
    assert (place.blocks, place.tiles) == (TILE // 16, 11)


def test_tiles_across_memory_are_lanes_beside_each_other():
    place = place_of((3, 40, 100), 1, Block(columns=16))
    assert (place.across, place.length, place.inner, place.size) == (True, 40, 100, 16)
    assert (place.blocks, place.tiles) == (100, 3 * 3 * 1)
    assert place_of((4096, 4096), 0, Block(columns=0)).blocks == cpu.LANES[0]


def test_what_is_left_to_eager():
    x = torch.ones(2, 32)
    assert cpu.covers(parse_format("bfp4"), x, -1)
    assert not cpu.covers(parse_format("bfp4"), x.double(), -1)
    long = torch.ones(1).expand(1, LARGEST_BLOCK + 1)
    assert not cpu.covers(parse_format("int4"), long, -1)
    assert cpu.covers(parse_format("int4-g128"), long, -1)
    assert cpu.covers(parse_format("int8-tensor"), long, -1)


@needs_numba
@pytest.mark.parametrize("text", ["bfp4", "int4-g128", "int8-tensor", "nvfp4", "log8"])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_output_is_all_the_memory_that_the_fast_path_takes(text, axis):
    x = torch.randn(512, 1024)
    named = parse_format(text)
    slack = 1.02  # a few numbers for each row or tile
    assert peak_bytes(lambda: cpu.fake_quantize(x, named, axis)) <= slack * x.nbytes
    assert peak_bytes(lambda: cpu.fake_quantize(x.T, named, axis)) <= slack * x.nbytes


@pytest.mark.parametrize("text", ["bfp4", "int4-g128", "log8"])
@pytest.mark.parametrize("axis", [0, 1])
def test_eager_takes_three_times_the_tensor_at_most(text, axis):
    x = torch.randn(1024, 2048)
    named = parse_format(text)
    assert peak_bytes(lambda: eager.fake_quantize(x, named, axis)) <= 3 * x.nbytes


def peak_bytes(call) -> int:
    """The most that was allocated at once, by torch's own count."""
    call()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        kept = call()
    del kept
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert peak > 0
    return peak


@needs_numba
def test_the_input_is_left_alone_and_gradients_stay_outside():
    x = torch.randn(8, 64, requires_grad=True)
    before = x.detach().clone()
    with torch.no_grad():
        out = cpu.fake_quantize(x, parse_format("bfp4"), -1)
    assert not out.requires_grad
    assert torch.equal(x.detach(), before)
