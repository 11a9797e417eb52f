import math

import numpy as np
import pytest
import torch

from mpq.errors import FormatError, PlanError
from mpq.kernels.fake_quant import quantize
from mpq.plans.site import TOKENS, Site
from mpq.profiling.fixed_point import (
    RULES,
    choose_fraction,
    fixed_point_plan,
    range_fraction,
    squared_error,
)
from mpq.profiling.histogram import Histogram
from mpq.profiling.values import Values, ValueTable

generator = torch.Generator().manual_seed(0)


def draw(kind, size=40_000):
    x = torch.randn(size, generator=generator)
    return {
        "normal": x,
        "small": 1e-4 * x,
        "heavy": x * torch.randn(size, generator=generator).mul(1.5).exp(),
        "one sided": torch.softmax(3 * x.reshape(-1, 100), dim=1),
        "outlier": torch.cat([x, torch.tensor([-20.0])]),
        "offset": x + 20,
        "wide": x.sign() * 2 ** (40 * torch.rand(size, generator=generator) - 20),
    }[kind]


KINDS = ("normal", "small", "heavy", "one sided", "outlier", "offset", "wide")


def true_error(x, width, fraction):
    """Σ (x - Q(x))² as the kernel rounds."""
    x = x.double()
    return float((x - quantize(x.float(), f"fixed{width}.{fraction}").double()).square().sum())


@pytest.mark.parametrize("width", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_least_error_by_the_histogram_is_the_least_error_of_the_kernel(kind, width):
    x = draw(kind)
    chosen = choose_fraction(Values.of(x), width, "mse")
    errors = {f: true_error(x, width, f) for f in range(chosen - 5, chosen + 6)}
    # A lone value lies anywhere in its bin, so two fractions may be that close.
    assert errors[chosen] <= 1.05 * min(errors.values())


@pytest.mark.parametrize("width", [3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_error_is_the_kernels_error(kind, width):
    x = draw(kind)
    chosen = choose_fraction(Values.of(x), width)
    for fraction in (chosen - 2, chosen, chosen + 2):
        expected = squared_error(Histogram.of(x), width, fraction)
        assert expected == pytest.approx(true_error(x, width, fraction), rel=0.05)


def test_values_that_fill_their_bins_evenly_have_exactly_the_expected_error():
    x = (torch.arange(-(2**15), 2**15, dtype=torch.float64) + 0.5) / 2**10  # ±32, evenly
    for fraction in (-1, 0, 1, 2, 3, 4):
        expected = squared_error(Histogram.of(x), 8, fraction)
        assert expected == pytest.approx(true_error(x, 8, fraction), rel=1e-4), fraction


@pytest.mark.parametrize(
    ("absmax", "width", "fraction"),
    [
        (1.0, 8, 6),  # the ancestor's own examples
        (8.0, 8, 3),
        (200.0, 8, -1),
        (127.0, 8, 0),
        (math.nextafter(127.0, 128), 8, -1),
        (7.0 / 4, 4, 2),
        (1e-30, 8, 106),
        (3e38, 8, -121),
        (1e-45, 8, 126),
        (0.0, 8, 7),
    ],
)
def test_the_range_rule_takes_the_largest_fraction_that_saturates_nothing(absmax, width, fraction):
    assert range_fraction(absmax, width) == fraction


@pytest.mark.parametrize("kind", KINDS)
def test_under_the_range_rule_nothing_saturates(kind):
    x = draw(kind)
    fraction = choose_fraction(Values.of(x), 8, "range")
    codes = x.double().abs().max() * 2.0**fraction
    assert 127 / 2 < codes <= 127


def test_one_outlier_is_saturated_by_mse_and_kept_by_range():
    values = Values.of(draw("outlier", 400_000))
    assert choose_fraction(values, 8, "range") == 2  # ±32 in steps of 1/4
    assert choose_fraction(values, 8, "mse") == 4  # ±8 in steps of 1/16


def site(name, role="input"):
    return Site(name=name, role=role, kind="a", block=0, shape=(TOKENS, 4), group=name)


def table(**values):
    return ValueTable(
        tokens=8,
        batch_size=8,
        fingerprint="f",
        data_sha256="d",
        values={name: Values.of(x) for name, x in values.items()},
    )


def test_a_plan_names_each_site_with_its_own_fraction():
    seen = table(a=draw("normal"), b=draw("small"), zero=torch.zeros(5))
    sites = [site(name) for name in ("a", "b", "zero", "unseen")]
    plan = fixed_point_plan(seen, sites, width=8, rule="range", model="m")
    assert {name: str(given) for name, given in plan.formats.items()} == {
        "a": "fixed8.4",
        "b": "fixed8.18",
        "zero": "fixed8.7",
    }
    assert (plan.model, plan.fingerprint) == ("m", "f")


def test_what_cannot_be_planned_is_refused():
    seen = table(a=draw("normal"))
    with pytest.raises(PlanError, match="one of mse, range; 'max' is none of them"):
        fixed_point_plan(seen, [site("a")], width=8, rule="max")
    with pytest.raises(PlanError, match="there is none among 1; profile more sites"):
        fixed_point_plan(seen, [site("b")], width=8)
    with pytest.raises(FormatError, match="99"):
        fixed_point_plan(seen, [site("a")], width=99)


@pytest.mark.parametrize("rule", RULES)
def test_a_fraction_never_leaves_what_float32_can_step(rule):
    tiny = Values.of(torch.full((4,), 1e-44))
    assert choose_fraction(tiny, 8, rule) == 126
    huge = Values.of(torch.full((4,), 3e38))
    assert np.isfinite(squared_error(huge.histogram, 8, choose_fraction(huge, 8, rule)))
