"""The loop over tiles: ordinary ones are written, the others marked and left as they were."""

import numpy as np
import pytest
import torch

from mpq.formats.block import Block
from mpq.formats.zoo import parse_format
from mpq.kernels import eager
from mpq.kernels.choice import has_compiler

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

from mpq.kernels.cpu_elements import rounding_numbers
from mpq.kernels.cpu_loops import quantize_tiles
from mpq.kernels.cpu_scales import Numbers, shared_numbers
from mpq.kernels.cpu_tiles import Room, place_of


def test_ordinary_tiles_are_written_and_others_left():
    named = parse_format("bfp4")
    x = torch.randn(4, 70)
    x[2, 3] = float("nan")
    place = place_of((4, 70), 1, Block(columns=16))
    out, left = np.full(x.numel(), 9.0, dtype=np.float32), np.zeros(place.tiles, dtype=np.uint8)
    numbers = Numbers(
        rounding_numbers(named.element), shared_numbers(named.element, named.scale, x.dtype)
    )
    quantize_tiles(x.flatten().numpy(), out, left, place, Room.of(place), numbers, (1, 4))
    assert left.tolist() == [0, 0, 1, 0]
    want = eager.fake_quantize(x, named, 1).numpy()
    want[[0, 2]] = 9.0
    assert np.array_equal(out.reshape(4, 70), want)
