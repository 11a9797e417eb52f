"""Kernels that encode: a code for each value, a scale for each block, and nothing beyond."""

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.triton_given import given
from mpq.kernels.triton_launch import grid_of, launch
from mpq.kernels.triton_stored import encoding_facts
from tests.kernels.test_triton import DEVICE, pytestmark  # noqa: F401

pytest.importorskip("triton", reason="the wheel is an extra: pip install 'mpq[triton]'")
from mpq.kernels import triton_encoding


def test_scales_lie_in_the_order_of_blocks_and_what_follows_is_left_alone():
    x = torch.ones(3, 40, device=DEVICE)
    x[1] *= 4
    x[:, 32:] *= 2
    named = parse_format("bfp4")
    codes = torch.full((3, 40), 99, dtype=torch.uint8, device=DEVICE)
    exponents = torch.full((12,), 99, dtype=torch.uint8, device=DEVICE)
    kind, facts, found = given(x, named, 1)
    grid = grid_of(x, codes, named, 1)
    told = encoding_facts(named, facts, in_pieces=False)
    kernel = getattr(triton_encoding, f"encode_{kind}")
    strides = (grid.strides, grid.out_strides)
    launch(kernel, (x, codes, exponents, found), grid, strides, told)
    assert exponents.tolist() == [127, 127, 128, 129, 129, 130, 127, 127, 128, 99, 99, 99]
    assert (codes == 4).all()  # 1 of units of a quarter
