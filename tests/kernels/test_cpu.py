"""The CPU path's side of a tensor: what it takes, memory. Its bits: test_choice_paths.py."""

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels import cpu, eager
from mpq.kernels.choice import has_compiler
from mpq.kernels.cpu_tiles import LARGEST_BLOCK, Room

needs_numba = pytest.mark.skipif(not has_compiler("cpu"), reason="numba is not installed")


def test_what_is_left_to_eager():
    x = torch.ones(2, 32)
    assert cpu.covers(parse_format("bfp4"), x, -1)
    assert not cpu.covers(parse_format("bfp4"), x.double(), -1)
    long = torch.ones(1).expand(1, LARGEST_BLOCK + 1)
    assert not cpu.covers(parse_format("int4"), long, -1)
    assert cpu.covers(parse_format("int4-g128"), long, -1)
    assert cpu.covers(parse_format("int8-tensor"), long, -1)
    for text in ("log9", "bfp4(scale_rule=mse)", "bfp6(block=4x16)", "bfp4-tensor"):
        assert not cpu.covers(parse_format(text), x, -1)


@needs_numba
@pytest.mark.parametrize("text", ["bfp4", "int4a-g16", "log8", "nvfp4"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rows", [1, 300])
def test_eager_takes_the_tiles_that_hold_more_than_ordinary_blocks(text, axis, rows, monkeypatch):
    x, named = torch.randn(300, 512), parse_format(text)
    x[300 - rows :, ::40] = float("inf")  # in a few tiles, or in all
    want, taken = eager.fake_quantize(x, named, axis), []

    def take(part, *rest):
        taken.append(part.numel())
        return fake_quantize(part, *rest)

    fake_quantize = eager.fake_quantize
    monkeypatch.setattr(eager, "fake_quantize", take)
    got = cpu.fake_quantize(x, named, axis)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())
    assert taken
    few = rows == 1 and text != "nvfp4"
    assert all(count < x.numel() for count in taken) == few


@needs_numba
@pytest.mark.parametrize("text", ["bfp4", "int4-g128", "int8-tensor", "nvfp4", "log8"])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_output_is_all_the_memory_that_the_fast_path_takes(text, axis, rooms):
    x = torch.randn(2048, 1024)
    named = parse_format(text)
    slack = 1.02  # a few numbers for each row or tile, and the scratch of two tiles
    for given in (x, x.T):
        rooms.clear()
        peak = peak_bytes(lambda given=given: cpu.fake_quantize(given, named, axis))
        assert rooms
        assert peak + max(rooms) * 2 <= slack * x.nbytes


@needs_numba
def test_the_scratch_of_long_blocks_across_memory_is_bounded(rooms):
    x, named = torch.randn(1 << 17, 32), parse_format("int4")
    assert torch.equal(cpu.fake_quantize(x, named, 0), eager.fake_quantize(x, named, 0))
    assert 0 < max(rooms) <= 13 << 20  # 12 for values, and a little for blocks


@pytest.fixture
def rooms(monkeypatch):
    """The bytes of scratch of each thread that the path starts, two at most."""

    class Seen:
        @staticmethod
        def of(place):
            room = Room.of(place)
            sizes.append(sum(part.nbytes for part in room))
            return room

    sizes = []
    monkeypatch.setattr(cpu, "Room", Seen)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return sizes


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


@needs_numba
def test_a_fault_in_any_thread_is_raised(monkeypatch):
    from mpq.kernels import cpu_loops

    def run_out(*arguments):
        if arguments[-1][0] > 0:
            raise MemoryError("no room for this share")

    monkeypatch.setattr(cpu_loops, "quantize_tiles", run_out)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(MemoryError, match="no room for this share"):
        cpu.fake_quantize(torch.randn(512, 512), parse_format("bfp4"), -1)
