"""Contract: the laws that design section 3 states, each with the exceptions it names."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpq.kernels.fake_quant import quantize
from tests.contracts.tensors import assert_same, normal
from tests.contracts.zoo import (
    ADAPTIVE,
    ALL,
    FACTS,
    FLOAT,
    OTHER_RULES,
    POWER,
    STATIC,
    SYMMETRIC,
    ZERO_POINT,
)

stable = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

WHOLE_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
"""Subnormals, both zeros, and 3e38 among them."""


def numbers(powers: int) -> st.SearchStrategy[float]:
    """Signed numbers from 2^-powers to 2^powers, many on the points where rounding turns."""
    turning = st.sampled_from([1.0, 1.5, 1.25, 1.75, 1.125, 1.4140625, 1.9921875])
    mantissas = st.one_of(turning, st.floats(1, 2, width=32, exclude_max=True))
    return st.builds(
        lambda sign, mantissa, power: float(np.float32(sign * mantissa * 2.0**power)),
        st.sampled_from([-1.0, 1.0]),
        mantissas,
        st.integers(-powers, powers),
    )


def matrices(elements: st.SearchStrategy[float], rows: int = 4, columns: int = 37):
    return arrays(np.float32, (rows, columns), elements=elements).map(torch.from_numpy)


@pytest.mark.parametrize("text", [*STATIC, *POWER])
@given(x=matrices(st.one_of(numbers(20), WHOLE_FLOAT32, st.just(0.0))))
@stable
def test_idempotent_to_the_bit_without_float_scales(text, x):
    once = quantize(x, text)
    assert_same(quantize(once, text), once, text)


@pytest.mark.parametrize("text", FLOAT)
@given(x=matrices(st.one_of(numbers(20), st.just(0.0))))
@stable
def test_idempotent_to_one_unit_in_the_last_place_with_float_scales(text, x):
    once = quantize(x / 2**14 if "sf16" in text else x, text)
    assert_within_one_ulp(quantize(once, text), once, text)


@pytest.mark.parametrize("text", ZERO_POINT)
@given(x=matrices(st.one_of(numbers(6), st.just(0.0))))
@stable
def test_idempotent_to_one_unit_in_the_last_place_with_zero_points(text, x):
    once = quantize(x, text)
    assert_within_one_ulp(quantize(once, text), once, text)


def assert_within_one_ulp(got: torch.Tensor, want: torch.Tensor, told: str) -> None:
    far = torch.maximum(got.abs(), want.abs())
    ulp = torch.nextafter(far, torch.tensor(torch.inf)) - far
    wrong = (got - want).abs() > ulp
    assert not wrong.any(), f"{told}: {want[wrong][:3].tolist()} became {got[wrong][:3].tolist()}"


@pytest.mark.parametrize("text", SYMMETRIC)
@given(x=matrices(st.one_of(numbers(20), WHOLE_FLOAT32)))
@stable
def test_odd_where_the_code_is_symmetric(text, x):
    flipped = quantize(-x, text)
    if FACTS[text].codes.signed_zero:
        assert_same(flipped, -quantize(x, text), text)
    else:
        assert torch.equal(flipped, -quantize(x, text)), text


def test_only_codes_that_lean_to_one_side_are_not_odd():
    leaning = {text for text in ALL if text not in SYMMETRIC}
    families = ("fixed", "nf4", "int")
    assert all(text.startswith(families) for text in leaning)
    assert {text for text in leaning if text.startswith("int")} == set(ZERO_POINT)


@pytest.mark.parametrize("text", ALL)
@given(x=matrices(st.one_of(numbers(20), WHOLE_FLOAT32), columns=16))
@stable
def test_monotone_within_a_block(text, x):
    ordered, _ = x.sort(dim=-1)
    group = FACTS[text].group
    got = quantize(ordered, text)
    for part in got.split(group if isinstance(group, int) else 16, dim=-1):
        assert (part.diff(dim=-1) >= 0).all(), text


@pytest.mark.parametrize("text", ADAPTIVE)
@given(x=matrices(st.one_of(numbers(8), st.just(0.0))), power=st.integers(-40, 40))
@stable
def test_a_power_of_two_passes_through_where_the_scale_adapts(text, x, power):
    if text == "bfp6(exponent=5)" or "sf16" in text:
        power = power % 5 - 2  # their scales span fewer binades; stay inside
        x = x.clamp(-16, 16)
    assert_same(quantize(x * 2.0**power, text), quantize(x, text) * 2.0**power, text)


@pytest.mark.parametrize("text", ALL)
@given(x=matrices(numbers(4), columns=16))
@stable
def test_no_code_seen_in_the_block_is_nearer_than_the_one_chosen(text, x):
    got = quantize(x, text).double()
    wide = x.double()
    group = FACTS[text].group
    length = group if isinstance(group, int) else 16
    for values, results in zip(wide.split(length, -1), got.split(length, -1), strict=True):
        error = (values - results).abs()
        to_others = (values[..., :, None] - results[..., None, :]).abs().amin(-1)
        slack = 2.0**-23 * values.abs()  # the quotient by a float scale is rounded to float32
        assert (error <= to_others + slack).all(), text


@pytest.mark.parametrize("text", ALL)
@given(x=matrices(st.one_of(numbers(20), st.sampled_from([0.0, -0.0]))))
@stable
def test_zero_stays_zero(text, x):
    got = quantize(x, text)
    zeros = x == 0
    if "zero=false" in text:  # asked to have no zero code
        assert (got != 0).all()
        return
    assert (got[zeros] == 0).all(), text
    signed = FACTS[text].codes.signed_zero
    kept = torch.signbit(got[zeros])
    assert torch.equal(kept, torch.signbit(x[zeros])) if signed else not kept.any(), text


@pytest.mark.parametrize("text", OTHER_RULES)
def test_other_rules_than_floor_settle_after_the_second_time(text):
    once = quantize(normal(64, 64), text)
    twice = quantize(once, text)
    assert_same(quantize(twice, text), twice, text)


def test_the_ceil_rule_is_named_as_an_exception_and_stays_close():
    x = normal(64, 64)
    once = quantize(x, "bfp4(scale_rule=ceil)")
    twice = quantize(once, "bfp4(scale_rule=ceil)")
    assert ((twice - once).abs() <= once.abs().amax(-1, keepdim=True) / 7).all()


def test_nvfp4_is_idempotent_except_in_blocks_with_a_subnormal_scale():
    x = normal(8, 16)
    x[0] *= 2.0**-14  # its block scale lies below 2^-6 of e4m3's, in the subnormals
    once = quantize(x, "nvfp4")
    twice = quantize(once, "nvfp4")
    assert_within_one_ulp(twice[1:], once[1:], "nvfp4")
    assert not once[0].count_nonzero() or (twice[0] - once[0]).abs().max() <= once[0].abs().max()


@pytest.mark.parametrize("text", ZERO_POINT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_zero_points_in_sixteen_bits_move_by_less_than_a_step(text, dtype):
    x = normal(8, 64).to(dtype)
    once = quantize(x, text).float()
    twice = quantize(once.to(dtype), text).float()
    span = once.amax(-1, keepdim=True) - once.amin(-1, keepdim=True)
    assert ((twice - once).abs() <= span / FACTS[text].anchor * 1.01).all()
