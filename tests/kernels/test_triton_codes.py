"""Codes in a kernel: those of `codes.py` for every value of small elements, packed as on disk."""

import pytest
import torch

from mpq.formats.packing import pack, unpack
from mpq.formats.zoo import parse_format
from mpq.kernels.codes import codes_of, values_of
from mpq.kernels.triton_stored import coding_facts
from tests.kernels.test_triton import DEVICE, pytestmark  # noqa: F401

triton = pytest.importorskip("triton", reason="the wheel is an extra: pip install 'mpq[triton]'")
import triton.language as tl  # noqa: E402

from mpq.kernels import triton_codes  # noqa: E402

ELEMENTS = [
    *(
        "int4",
        "fixed8.0",
        "bfp5",
        "minifloat-e4m3",
        "minifloat-e2m1",
        "minifloat-e3m0",
        "dmf-e4m3",
    ),
    *("dmf-e3m1", "log4", "log8(zero=false)", "nf4", "fp8-e5m2", "minifloat-e8m1", "bf16", "fp16"),
]


@triton.jit
def there_and_back_kernel(codes, values, again, facts: tl.constexpr, size: tl.constexpr):
    at = tl.arange(0, size)
    found = triton_codes.values_of(tl.load(codes + at), facts)
    tl.store(values + at, found.to(tl.float64))
    tl.store(again + at, triton_codes.codes_of(found, facts))


@triton.jit
def unpacked_kernel(packed, out, count, width: tl.constexpr):
    at = tl.arange(0, 256)
    tl.store(out + at, triton_codes.unpacked(packed, at, at < count, width))


@pytest.mark.parametrize("text", ELEMENTS)
@pytest.mark.parametrize("wide", [False, True])
def test_every_code_there_and_back(text, wide):
    element = parse_format(text).element
    if text == "minifloat-e8m1" and not wide:
        return  # float32 has no normal numbers for its steps
    codes = torch.arange(2**element.width, dtype=torch.int32)
    values = torch.empty(codes.shape, dtype=torch.float64, device=DEVICE)
    again = torch.empty(codes.shape, dtype=torch.int32, device=DEVICE)
    facts = coding_facts(element, wide=wide)
    there_and_back_kernel[(1,)](codes.to(DEVICE), values, again, facts=facts, size=len(codes))
    want = values_of(codes.long(), element)
    if text == "bf16" and not wide:  # what has the top exponent is no number there
        want = torch.where(want.abs() < 2.0**128, want, values.cpu())
    assert torch.equal(values.cpu().view(torch.int64), want.view(torch.int64))
    expected = codes if text == "bf16" and not wide else codes_of(want, element)
    assert torch.equal(again.cpu().long(), expected.long())


@pytest.mark.parametrize("width", [2, 3, 4, 5, 7, 9, 11, 12, 15, 17, 24, 25, 31, 32])
def test_bytes_are_those_on_disk(width):
    count = 197
    codes = torch.randint(0, 2**width, (count,), generator=torch.Generator().manual_seed(width))
    want = torch.from_numpy(pack(codes.numpy(), width))
    whole = torch.uint8 if width <= 8 else torch.int16 if width <= 16 else torch.int32
    packed = torch.zeros(len(want), dtype=torch.uint8, device=DEVICE)
    triton_codes.pack[(-(-len(want) // 64),)](
        codes.to(whole).to(DEVICE), packed, count, len(want), width=width, bytes_at_once=64
    )
    assert torch.equal(packed.cpu(), want)
    out = torch.full((256,), -1, dtype=torch.int32, device=DEVICE)
    unpacked_kernel[(1,)](packed, out, count, width=width)
    read = torch.from_numpy(unpack(want.numpy(), width, count).astype("int64"))
    assert torch.equal(out.cpu()[:count].long() & 2**32 - 1, read)
    assert (out[count:] == 0).all()
