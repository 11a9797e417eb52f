"""Decoding on the CPU: what is covered, and what eager is handed."""

import dataclasses

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels import cpu_encoded as cpu
from mpq.kernels import encoded as eager
from mpq.kernels.choice import has_compiler
from mpq.kernels.cpu_tiles import LARGEST_BLOCK

needs_numba = pytest.mark.skipif(not has_compiler("cpu"), reason="numba is not installed")


def test_what_is_covered():
    x = torch.empty(4, 64)
    for text in ("int4", "bfp4(scale_rule=mse)", "bfp4-tensor", "log9", "bf16", "int16", "nf4"):
        assert cpu.covers(parse_format(text), x, -1)
    for text in ("fp32", "int17", "bfp6(block=4x16)", "fixed20.3"):
        assert not cpu.covers(parse_format(text), x, -1)
    assert not cpu.covers(parse_format("int4"), x.double(), -1)
    long = torch.empty(()).expand(1, LARGEST_BLOCK + 1)
    assert not cpu.covers(parse_format("int4"), long, -1)
    assert cpu.covers(parse_format("int4-g128"), long, -1)
    assert cpu.covers(parse_format("int8-tensor"), long, -1)


@pytest.fixture
def handed(monkeypatch):
    """The shapes of the tensors that eager decodes."""
    shapes, decode_blocks = [], eager.decode_blocks

    def decode(encoded, dtype, out=None):
        shapes.append(encoded.shape)
        return decode_blocks(encoded, dtype, out)

    monkeypatch.setattr(eager, "decode_blocks", decode)
    return shapes


@needs_numba
@pytest.mark.parametrize("text", ["bfp4", "int4a-g16", "bl8", "nvfp4", "nf4-g16-sf32"])
@pytest.mark.parametrize("axis", [0, 1])
def test_eager_is_handed_what_has_a_block_that_is_not_ordinary(text, axis, handed):
    x = torch.randn(64, 64)
    x[:, 5] = 0.0
    encoded = eager.encode_blocks(x, parse_format(text), axis)
    cpu.decode_blocks(encoded, torch.bfloat16)
    assert not handed
    x[40, 40] = 1e6
    encoded = eager.encode_blocks(x, parse_format(text), axis)
    got = cpu.decode_blocks(encoded, torch.float16)
    assert handed == [(64, 64)]
    assert got.isfinite().all()


@needs_numba
@pytest.mark.parametrize("text", ["int4", "int4a-g16", "bfp4"])
def test_a_stored_scale_that_is_no_number_is_eagers(text, handed):
    encoded = eager.encode_blocks(torch.randn(64, 64), parse_format(text), -1)
    if encoded.scales.is_floating_point():
        encoded.scales[3] = float("nan")
        assert cpu.decode_blocks(encoded, torch.float32).isnan().any()
        assert handed == [(64, 64)]
    else:
        # Every code of an exponent is a number; the largest leads past float16.
        encoded.scales[3] = 255
        assert cpu.decode_blocks(encoded, torch.float16).isfinite().all()
        assert handed == [(64, 64)]


@needs_numba
@pytest.mark.parametrize("text", ["bfp4", "int4a-g16", "int8-tensor"])
def test_what_is_stored_is_left_alone(text):
    encoded = eager.encode_blocks(torch.randn(8, 64), parse_format(text), -1)
    before = {name: getattr(encoded, name) for name in ("codes", "scales", "zero_points")}
    kept = {name: x.clone() for name, x in before.items() if x is not None}
    out = cpu.decode_blocks(encoded, torch.float32)
    out.zero_()
    assert all(torch.equal(getattr(encoded, name), x) for name, x in kept.items())
    assert cpu.decode_blocks(encoded, torch.float32).any()  # no table was written over


@needs_numba
def test_parts_that_are_not_contiguous_are_read():
    encoded = eager.encode_blocks(torch.randn(8, 64), parse_format("int4a-g16"), -1)
    parts = {
        name: getattr(encoded, name).repeat_interleave(2)[::2]
        for name in ("codes", "scales", "zero_points")
    }
    got = cpu.decode_blocks(dataclasses.replace(encoded, **parts), torch.float32)
    assert torch.equal(got, eager.decode_blocks(encoded, torch.float32))
