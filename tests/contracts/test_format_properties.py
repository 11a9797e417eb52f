"""Contract: the laws that design section 3 states, each with the exceptions it names."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpq.kernels.fake_quant import quantize
from tests.contracts.tensors import assert_same, normal
from tests.contracts.zoo import (
    ADAPTIVE,
    ALL,
    FACTS,
    FLOAT,
    FULL_RANGE,
    OTHER_RULES,
    POWER,
    STATIC,
    SYMMETRIC,
    TWO_LEVEL,
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


TURNING = np.array([1.0, 1.125, 1.25, 1.4140625, 1.5, 1.75, 1.9375, 1.9921875])
"""Mantissas at which one rounding or another turns."""


def matrices(powers: int, extra: st.SearchStrategy[float] | None = None, columns: int = 37):
    """Float32 matrices of 4 rows, from 2^-powers to 2^powers, with zeros and turning points.

    A few values of `extra` are hypothesis's own; all others follow from a seed, so that a tensor
    of many values costs no more than a few draws.
    """
    few = st.lists(extra, max_size=6) if extra is not None else st.just([])
    return st.builds(
        matrix, st.integers(0, 2**32 - 1), st.integers(0, powers), st.just(columns), few
    )


def matrix(seed: int, powers: int, columns: int, few: list[float]) -> torch.Tensor:
    random = np.random.default_rng(seed)
    shape = (4, columns)
    mantissas = np.where(
        random.random(shape) < 0.5, random.choice(TURNING, shape), random.uniform(1, 2, shape)
    )
    x = mantissas * np.exp2(random.integers(-powers, powers + 1, shape))
    x *= random.choice([-1, 1], shape)
    x[random.random(shape) < 0.05] = 0.0
    x[random.random(shape) < 0.02] = -0.0
    x[random.integers(4, size=len(few)), random.integers(columns, size=len(few))] = few
    return torch.from_numpy(x.astype(np.float32))


@pytest.mark.parametrize("text", [*STATIC, *POWER])
@given(x=matrices(20, WHOLE_FLOAT32))
@stable
def test_idempotent_to_the_bit_without_float_scales(text, x):
    once = quantize(x, text)
    assert_same(quantize(once, text), once, text)


@pytest.mark.parametrize("text", FULL_RANGE)
@given(x=matrices(20))
@stable
def test_idempotent_to_the_bit_where_the_lowest_code_is_a_power_of_two(text, x):
    once = quantize(x / 2**14 if "sf16" in text else x, text)
    assert_same(quantize(once, text), once, text)


@pytest.mark.parametrize("text", FLOAT)
@given(x=matrices(20))
@stable
def test_idempotent_to_one_unit_in_the_last_place_with_float_scales(text, x):
    once = quantize(x / 2**14 if "sf16" in text else x, text)
    assert_within_ulps(quantize(once, text), once, text)


@pytest.mark.parametrize("text", ZERO_POINT)
@given(x=matrices(6))
@stable
def test_idempotent_to_one_unit_in_the_last_place_with_zero_points(text, x):
    once = quantize(x, text)
    # Exception: both ends of a range round once more where a float32 scale leaves no spare digits.
    assert_within_ulps(quantize(once, text), once, text, ulps=2 if "sf32" in text else 1)


def assert_within_ulps(got: torch.Tensor, want: torch.Tensor, told: str, ulps: int = 1) -> None:
    far = torch.maximum(got.abs(), want.abs())
    ulp = torch.nextafter(far, torch.tensor(torch.inf)) - far
    wrong = (got - want).abs() > ulps * ulp
    assert not wrong.any(), f"{told}: {want[wrong][:3].tolist()} became {got[wrong][:3].tolist()}"


@pytest.mark.parametrize("text", SYMMETRIC)
@given(x=matrices(20, WHOLE_FLOAT32))
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
    integers = {text for text in leaning if text.startswith("int")}
    calibrated = {text for text in STATIC if text.startswith("int") and text in leaning}
    assert integers == {*ZERO_POINT, *FULL_RANGE, *calibrated}


@pytest.mark.parametrize("text", FULL_RANGE)
@given(x=matrices(20, WHOLE_FLOAT32))
@stable
def test_a_full_range_is_odd_where_one_value_is_farthest(text, x):
    group = FACTS[text].group
    parts = [x] if group == "tensor" else x.split(group if isinstance(group, int) else 37, dim=-1)
    for part in parts:
        low, high = (
            (part.amin(), part.amax())
            if group == "tensor"
            else (part.amin(-1, keepdim=True), part.amax(-1, keepdim=True))
        )
        alone = (low != -high).expand(part.shape)
        flipped, straight = quantize(-part, text), quantize(part, text)
        assert torch.equal(flipped[alone], -straight[alone]), text


@pytest.mark.parametrize("text", ALL)
@given(x=matrices(20, WHOLE_FLOAT32, columns=16))
@stable
def test_monotone_within_a_block(text, x):
    ordered, _ = (x + 0.0).sort(dim=-1)  # no -0: without a zero code it is below +0
    group = FACTS[text].group
    got = quantize(ordered, text)
    for part in got.split(group if isinstance(group, int) else 16, dim=-1):
        assert (part.diff(dim=-1) >= 0).all(), text


@pytest.mark.parametrize("text", ADAPTIVE)
@given(x=matrices(8), power=st.integers(-40, 40))
@stable
def test_a_power_of_two_passes_through_where_the_scale_adapts(text, x, power):
    if text == "bfp6(exponent=5)" or "sf16" in text:
        power = power % 5 - 2  # their scales span fewer binades; stay inside
        x = x.clamp(-16, 16)
    assert_same(quantize(x * 2.0**power, text), quantize(x, text) * 2.0**power, text)


@pytest.mark.parametrize("text", ALL)
@given(x=matrices(4, columns=16))
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
@given(x=matrices(20))
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


def test_nvfp4_is_idempotent_but_for_the_digits_that_its_two_scales_round_away():
    # Exception: 6 * 448 * scale needs five digits more than a float32 scale leaves free.
    for text in TWO_LEVEL:
        for seed in range(20):
            once = quantize(normal(4, 64, seed=seed), text)
            assert_within_ulps(quantize(once, text), once, text, ulps=4)
    once = quantize(normal(64, 64), "nvfp4(absmax=3.5)")
    assert_within_ulps(quantize(once, "nvfp4(absmax=3.5)"), once, "nvfp4(absmax=3.5)")


def test_an_nvfp4_block_with_a_subnormal_scale_is_the_exception():
    x = torch.zeros(2, 16)
    x[0, 0] = 2688.0  # the scale of the tensor is 1
    x[1, :2] = torch.tensor([5.5, 2.5]) * 2.0**-9 * 1.45  # wants 1.33 of e4m3's least, gets 1
    once = quantize(x, "nvfp4")
    assert once[1].amax() == 6 * 2.0**-9  # saturated
    x[1, :2] = torch.tensor([4.4, 2.6]) * 2.0**-9 * 2  # wants 1.47, gets 1: 8.8 falls to 6
    assert quantize(x, "nvfp4")[1].tolist()[:2] == [6 * 2.0**-9, 6 * 2.0**-9]
    x[1, :2] = torch.tensor([4.9, 2.0]) * 2.0**-9 * 2  # wants 1.63, gets 2: 4.9 becomes 4
    once = quantize(x, "nvfp4")
    assert once[1].amax() == 8 * 2.0**-9
    twice = quantize(once, "nvfp4")  # 8 wants 1.33, gets 1, and falls to 6
    assert twice[1].amax() == 6 * 2.0**-9
    assert_same(quantize(twice, "nvfp4"), twice)


@pytest.mark.parametrize(
    ("text", "digits"),
    [("int9", 8), ("int12", 8), ("int12-sf16", 11), ("int12a", 8), ("int12f", 8)],
)
def test_integers_wider_than_the_digits_of_their_scale_are_the_exception(text, digits):
    x = normal(2000, 64)
    once = quantize(x, text)
    twice = quantize(once, text)
    assert not torch.equal(once, twice)
    largest = once.abs().amax(-1, keepdim=True)
    assert ((twice - once).abs() <= largest * 2.0 ** (1 - digits)).all()


@pytest.mark.parametrize("text", ZERO_POINT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_zero_points_in_sixteen_bits_move_by_less_than_a_step(text, dtype):
    x = normal(8, 64).to(dtype)
    once = quantize(x, text).float()
    twice = quantize(once.to(dtype), text).float()
    span = once.amax(-1, keepdim=True) - once.amin(-1, keepdim=True)
    assert ((twice - once).abs() <= span / FACTS[text].anchor * 1.01).all()
