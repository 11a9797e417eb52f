import itertools

import numpy as np
import pytest

from mpq.search.anchors import bits_of, within
from mpq.search.exchange import exchanges
from tests.search.synthetic import Problem, make_sites, make_space

RESOURCES = ["weight_bits", "activation_bits"]


@pytest.fixture(scope="module")
def space():
    return make_space(Problem(make_sites(3, activations=True)))


def test_exchanges_keep_every_limit_and_come_once(space):
    start = space.uniform["bfp4"]
    limits = bits_of(space, start, RESOURCES)
    found = list(itertools.islice(exchanges(space, space.damage, start, limits), 300))
    assert len(found) > 100
    assert len(set(found)) == len(found)
    assert start not in found
    for choices in found:
        assert within(space, choices, limits)
        moved = np.array(choices) - np.array(start)
        assert np.abs(moved).max() == 1
        assert (moved > 0).any()
        assert (moved < 0).sum() <= 3


def test_the_best_exchange_of_one_pair_is_proposed_first():
    space = make_space(Problem(make_sites(2)), tie="none")
    start = space.uniform["bfp3"]
    limits = bits_of(space, start, RESOURCES)
    first = next(exchanges(space, space.damage, start, limits))
    assert space.predicted_damage(first) < space.predicted_damage(start)
    sizes = [group.values for group in space.groups]
    pairs = []
    for up, down in itertools.permutations(range(len(start)), 2):
        if sizes[up] <= sizes[down]:
            plan = list(start)
            plan[up] += 1
            plan[down] -= 1
            pairs.append(space.predicted_damage(tuple(plan)))
    assert space.predicted_damage(first) <= min(pairs) + 1e-12


def test_large_groups_are_paid_for_by_several_small_ones(space):
    start = space.uniform["bfp4"]
    limits = bits_of(space, start, RESOURCES)
    downs = {
        sum(after < before for after, before in zip(choices, start, strict=True))
        for choices in exchanges(space, space.damage, start, limits)
    }
    assert max(downs) > 1


def test_spare_bits_are_used(space):
    start = space.uniform["bfp3"]
    limits = bits_of(space, space.uniform["bfp4"], RESOURCES)
    first = next(exchanges(space, space.damage, start, limits))
    assert sum(first) > sum(start) + len(start) // 2
    assert space.predicted_damage(first) < space.predicted_damage(start)


def test_no_exchange_leaves_the_narrowest_plan(space):
    start = space.uniform["bfp2"]
    limits = bits_of(space, start, RESOURCES)
    assert list(exchanges(space, space.damage, start, limits)) == []


def test_forbidden_choices_are_never_proposed(space):
    damage = space.damage.copy()
    damage[0, :2] = np.inf
    start = space.uniform["bfp4"]
    limits = bits_of(space, start, RESOURCES)
    found = list(exchanges(space, damage, start, limits))
    assert found
    assert all(choices[0] >= 2 for choices in found)
