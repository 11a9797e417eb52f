"""Scales in a kernel: stored as torch stores them, errors summed as eager sums them."""

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.scaling import SCALE_TORCH_DTYPES, choose_scales
from mpq.kernels.triton_scales import stored_facts
from tests.kernels.test_triton import DEVICE, pytestmark  # noqa: F401
from tests.kernels.test_triton_rounding import any_bits

triton = pytest.importorskip("triton", reason="the wheel is an extra: pip install 'mpq[triton]'")
import triton.language as tl  # noqa: E402

from mpq.kernels import triton_scaling  # noqa: E402


@triton.jit
def stored_kernel(wanted, out, below, facts: tl.constexpr):
    at = tl.arange(0, 4096)
    stored = triton_scaling.stored_scale(tl.load(wanted + at), facts)
    tl.store(out + at, stored)
    tl.store(below + at, triton_scaling.next_below(stored, facts)[0])


@triton.jit
def signed_kernel(low, high, out, facts: tl.constexpr):
    at = tl.arange(0, 4096)
    tl.store(out + at, triton_scaling.signed_unit(tl.load(low + at), tl.load(high + at), facts))


@pytest.mark.parametrize("text", ["int4f", "int2f-sf16", "int8f-sf32"])
def test_signed_scales_are_those_of_eager(text):
    named = parse_format(text)
    blocks = any_bits(3.4e38).view(2048, 2).repeat(2, 1)
    blocks[::7, 0] = -blocks[::7, 1]  # both ends are as far
    blocks[::11] *= 2.0**-100
    blocks[::13] = -0.0
    want = choose_scales(blocks, named, torch.float32).unit.flatten()
    ends = torch.cat([blocks, torch.zeros(4096, 1)], dim=1)
    low, high = ends.amin(1).to(DEVICE), ends.amax(1).to(DEVICE)
    out = torch.empty_like(low)
    signed_kernel[(1,)](low, high, out, facts=stored_facts(named.element, named.scale))
    assert torch.equal(out.cpu().view(torch.int32), want.view(torch.int32))
    assert (want < 0).any()
    assert (want > 0).any()


@pytest.mark.parametrize("text", ["int4", "int4-g16-sf16", "int4-g16-sf32"])
def test_scales_are_stored_as_torch_stores_them(text):
    named = parse_format(text)
    dtype = SCALE_TORCH_DTYPES[named.scale.dtype]
    wanted = any_bits(3.4e38).abs()
    wanted[::5] *= 2.0**-60
    out, below = (torch.empty_like(wanted, device=DEVICE) for _ in range(2))
    facts = stored_facts(named.element, named.scale)
    stored_kernel[(1,)](wanted.to(DEVICE), out, below, facts=facts)
    stored = wanted.clamp(max=torch.finfo(dtype).max).to(dtype)
    assert torch.equal(out.cpu(), stored.float())
    is_positive = stored > 0
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    lower = (stored[is_positive].view(integer) - 1).view(dtype)
    assert torch.equal(below.cpu()[is_positive], lower.float())
