"""Rounding in a kernel: the bits of `rounding.py`, on values chosen by their bits."""

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.rounding import round_to_element, truncate_to_element
from mpq.kernels.triton_elements import held_facts, rounding_facts
from tests.kernels.test_triton import DEVICE, pytestmark  # noqa: F401

triton = pytest.importorskip("triton", reason="the wheel is an extra: pip install 'mpq[triton]'")
import triton.language as tl  # noqa: E402

from mpq.kernels import triton_rounding  # noqa: E402


@triton.jit
def rounded_kernel(x, out, facts: tl.constexpr):
    at = tl.arange(0, 4096)
    tl.store(out + at, triton_rounding.round_to_element(tl.load(x + at), facts))


@triton.jit
def held_kernel(unit, out, facts: tl.constexpr):
    at = tl.arange(0, 64)
    tl.store(out + at, triton_rounding.held_magnitude(tl.load(unit + at), False, facts))


@triton.jit
def bfloat16_kernel(x, out):
    at = tl.arange(0, 4096)
    tl.store(out + at, triton_rounding.round_bfloat16(tl.load(x + at)))


def any_bits(highest: float) -> torch.Tensor:
    """4096 float32 of any exponent up to that of `highest`, every other one with few digits."""
    bits = torch.randint(0, 2**31, (4096,), generator=torch.Generator().manual_seed(0))
    bits[::2] &= 0x7FF00000
    x = bits.int().view(torch.float32)
    x = torch.where(x <= highest, x, torch.frexp(x.nan_to_num()).mantissa * highest)
    x[1::3] *= -1
    return x


ELEMENTS = ["bfp4", "int8", "fixed8.4", "fp8-e4m3", "dmf-e3m2", "log8", "log4(zero=false)", "nf4"]


@pytest.mark.parametrize("text", ELEMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_has_the_bits_of_eager(text, dtype):
    element = parse_format(text).element
    x = any_bits(element.largest * 2).to(dtype)
    out = torch.empty_like(x, device=DEVICE)
    facts = rounding_facts(element, wide=dtype == torch.float64)
    rounded_kernel[(1,)](x.to(DEVICE), out, facts=facts, enable_fp_fusion=False)
    want = round_to_element(x.clone(), element)
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    assert torch.equal(out.cpu().view(integer), want.view(integer))


@pytest.mark.parametrize("text", ELEMENTS)
def test_what_a_dtype_holds(text):
    element = parse_format(text).element
    unit = torch.exp2(torch.arange(-20.0, 44.0).double()) * 1.25
    facts = held_facts(element, torch.float16)
    out = torch.empty_like(unit, device=DEVICE)
    held_kernel[(1,)](unit.to(DEVICE), out, facts=facts, enable_fp_fusion=False)
    assert torch.equal(out.cpu(), truncate_to_element(facts.bound / unit, element))


def test_bfloat16_is_rounded_to_nearest_even():
    x = any_bits(3.38e38)
    x[::2] = (x[::2].view(torch.int32) | 0x8000).view(torch.float32)  # ties
    out = torch.empty_like(x, device=DEVICE)
    bfloat16_kernel[(1,)](x.to(DEVICE), out)
    assert torch.equal(out.cpu(), x.bfloat16().float())
