"""The eager path: pieces, layouts and precision do not show in the result."""

import pytest
import torch

from mpq.formats.zoo import examples, parse_format
from mpq.kernels import eager
from mpq.kernels.eager import fake_quantize
from mpq.kernels.encoded import decode_blocks, encode_blocks


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("text", examples())
def test_pieces_do_not_show(text, monkeypatch):
    x = normal(7, 150) * torch.exp2(normal(7, 1) * 30)
    whole = fake_quantize(x, parse_format(text), -1)
    monkeypatch.setattr(eager, "PIECE", 64)
    assert torch.equal(fake_quantize(x, parse_format(text), -1), whole)


@pytest.mark.parametrize("text", ["bfp4", "bl8", "mxfp8-e5m2", "bmf6-e3m2", "bfp6(exponent=5)"])
@pytest.mark.parametrize("power", [*range(-149, -90, 7), 0, *range(80, 127, 5)])
def test_float32_and_the_exact_float64_agree(text, power):
    # Blocks of very small or large values are computed in float64: at the seams both must agree.
    x = (normal(4, 48) * 2.0**power).clamp(-3e38, 3e38)
    x[0, :16] = 0.0
    x[1, 20] = 1.0
    exact = fake_quantize(x.double(), parse_format(text), -1).float()
    largest = torch.finfo(torch.float32).max
    got = fake_quantize(x, parse_format(text), -1)
    assert torch.equal(got[exact.abs() < largest], exact[exact.abs() < largest])
    assert got.isfinite().all()


@pytest.mark.parametrize("text", ["bfp4", "int4-g16", "int4a", "nvfp4-token", "bfp4(block=4x8)"])
def test_layout_and_axis_do_not_show(text):
    x = normal(12, 40)
    named = parse_format(text)
    expected = fake_quantize(x, named, -1)
    assert torch.equal(fake_quantize(x.T, named, 0).T, expected)
    assert torch.equal(fake_quantize(x.T.contiguous(), named, 0).T, expected)
    assert torch.equal(fake_quantize(x[:, None].expand(12, 2, 40), named, -1)[:, 0], expected) or (
        named.has_2d_block
    )


def test_a_block_of_two_axes():
    x = normal(6, 20)
    x[4, 0] = 1000.0
    got = fake_quantize(x, parse_format("bfp4(block=4x8)"), -1)
    assert torch.equal(got[:4], fake_quantize(x[:4], parse_format("bfp4(block=4x8)"), -1))
    assert not got[4:, 1:8].any()  # the outlier's block, of which two rows are there
    assert got[5, 8:].any()


def test_shared_exponents_saturate_at_the_ends_of_their_range():
    named = parse_format("bfp4(exponent=5)")  # exponents from -15 to 16
    x = torch.tensor([2.0**20, 2.0**-16])
    assert fake_quantize(x, named, -1).tolist() == [7 * 2.0**14, 0.0]
    # The least step is 2^(-15 + 2 - 4).
    assert fake_quantize(torch.tensor([2.0**-17, 2.0**-18]), named, -1).tolist() == [2.0**-17, 0]


def test_mse_picks_the_exponent_with_the_least_error():
    named, floor = parse_format("bfp3(scale_rule=mse)"), parse_format("bfp3")
    x = normal(200, 16)
    best = (fake_quantize(x, named, -1) - x).square().sum(1)
    assert (best <= (fake_quantize(x, floor, -1) - x).square().sum(1)).all()
    assert best.sum() < (fake_quantize(x, floor, -1) - x).square().sum()


def test_scales_are_used_as_stored():
    x = normal(4, 64)
    for text in ("int4-g16", "int4-g16-sf16", "int4-g16-sf32"):
        encoded = encode_blocks(x, parse_format(text), -1)
        steps = fake_quantize(x, parse_format(text), -1).reshape(-1, 16)
        units = steps / encoded.scales.float()[:, None]
        torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-5)


def test_decoding_reads_nothing_but_what_is_stored():
    encoded = encode_blocks(normal(4, 64), parse_format("nvfp4"), -1)
    twice = encoded.__class__(
        **{name: getattr(encoded, name) for name in encoded.__slots__}
        | {"tensor_scales": encoded.tensor_scales * 2}
    )
    once = decode_blocks(encoded, torch.float32)
    assert torch.equal(decode_blocks(twice, torch.float32), once * 2)


def test_a_signed_scale_leaves_zeros_without_a_sign_in_any_dtype():
    x = torch.tensor([[8.0, -0.3, 0.3, -0.0, 0.0]]).repeat(3, 1)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for axis, values in ((1, x), (0, x.T.contiguous())):
            encoded = encode_blocks(values.to(dtype), parse_format("int4f"), axis)
            assert (encoded.scales == -1).all()
            for got in (
                fake_quantize(values.to(dtype), parse_format("int4f"), axis),
                decode_blocks(encoded, torch.float32),
            ):
                assert (got == 8).sum() == 3
                assert not torch.signbit(got).any()


@pytest.mark.parametrize(
    ("dtype", "code"),
    # A bfloat16 holds an eighth of its own largest value; of the others' it rounds up.
    [(torch.float32, 7), (torch.float16, 7), (torch.bfloat16, 8)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_full_range_saturates_at_what_the_dtype_holds(dtype, code, sign):
    largest = torch.finfo(dtype).max
    unit = float(torch.tensor(largest / 8).bfloat16())
    x = torch.tensor([[sign * largest, 0.0, -0.9 * sign * largest]]).to(dtype)
    got = fake_quantize(x, parse_format("int4f"), -1)
    want = torch.tensor([[sign * code * unit, 0.0, -sign * 7 * unit]]).to(dtype)
    assert torch.equal(got, want)


@pytest.mark.parametrize("text", ["bfp4-token", "fp8-e5m2-token"])
def test_a_zero_keeps_its_sign_where_the_dtype_holds_no_step(text):
    x = torch.tensor([[-1.0, -0.0, 0.0, 2e38]]).repeat(9, 1).T
    for axis, values in ((0, x), (1, x.T)):
        encoded = encode_blocks(values.contiguous(), parse_format(text), axis)
        got = decode_blocks(encoded, torch.float16)
        assert (got == 0).all()
        assert torch.equal(torch.signbit(got), torch.signbit(values))
