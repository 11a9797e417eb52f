import math

import numpy as np
import pytest

from mpq.cost import COST_MEASURES, cost
from mpq.errors import BudgetError
from mpq.search.build import build_space
from mpq.search.space import RESOURCES, allowed_bits, resource_of, uniform_choices
from tests.search.synthetic import FORMATS, Problem, flat, formats, make_sites, make_space


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(2, activations=True)))


def test_integer_bits_agree_with_the_cost_of_the_plan(space):
    rng = np.random.default_rng(0)
    for _ in range(5):
        choices = tuple(int(c) for c in rng.integers(0, len(FORMATS), len(space.groups)))
        measured = cost(space.plan(choices), space.sites, space.tokens)
        assert space.mean_bits("weight_bits", choices) == measured.weight_bits
        assert space.mean_bits("activation_bits", choices) == measured.activation_bits
        density = 32 / space.mean_bits("memory_density", choices)
        assert density == pytest.approx(measured.memory_density, rel=1e-12)
        assert space.cost(choices) == measured
        assert space.measures(choices) == {name: getattr(measured, name) for name in COST_MEASURES}


def test_a_group_without_the_format_takes_the_next_wider_or_its_widest():
    sites = make_sites(1)
    candidates = {
        site.name: formats("bfp2", "bfp4", "bfp5")
        if site.kind == "o_proj"
        else formats("bfp3", "bfp6")
        for site in sites
    }
    space = build_space(sites, candidates, damage=flat)
    uniform = {
        text: {str(fmt) for fmt in space.plan(choices).formats.values()}
        for text, choices in space.uniform.items()
    }
    assert uniform == {
        "bfp2": {"bfp2", "bfp3"},
        "bfp3": {"bfp4", "bfp3"},
        "bfp4": {"bfp4", "bfp6"},
        "bfp6": {"bfp5", "bfp6"},
    }
    assert uniform_choices(space) == space.uniform


def test_a_budget_is_exact_to_the_bit(space):
    for measure, bound in (("weight_bits", 4.5), ("activation_bits", 3.5)):
        limit = allowed_bits(space, measure, bound)
        assert limit == math.floor(bound * space.values[measure])
    assert allowed_bits(space, "weight_bytes", 10_000) == 80_000
    assert resource_of("weight_bytes") == "weight_bits"
    assert set(space.costs) == set(RESOURCES)


def test_an_impossible_budget_names_the_least(space):
    with pytest.raises(BudgetError, match=r"weight_bits = 2 allows .* needs \d+ \(2\.5 bits"):
        allowed_bits(space, "weight_bits", 2.0)


def test_digest_depends_on_candidates_and_tying():
    problem = Problem(make_sites(1))
    digests = {
        make_space(problem).digest,
        make_space(problem, tie="none").digest,
        make_space(problem, formats=("bfp2", "bfp4")).digest,
    }
    assert len(digests) == 3
    assert make_space(problem).digest in digests
