"""Quantised weights: kept while they are of use, swapped in and out without a trace."""

import pytest
import torch
from torch import nn

from mpq.modeling.weights import WeightCache, quantized, swapped


def parameter(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.full((2, 4), value))  # 32 bytes


class Count:
    def __init__(self):
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x.detach() * 2


def test_a_second_request_costs_nothing():
    cache, weight, double = WeightCache(1000), parameter(), Count()
    first = quantized(weight, {None: ("a", double)}, cache)
    second = quantized(weight, {None: ("a", double)}, cache)
    assert first is second
    assert double.calls == 1
    quantized(weight, {None: ("b", double)}, cache)
    assert double.calls == 2


def test_the_least_recently_used_goes_first_and_the_cap_holds():
    cache, weight, double = WeightCache(64), parameter(), Count()
    for text in ("a", "b", "a", "c", "a"):  # c drives out b, the least recently used
        quantized(weight, {None: (text, double)}, cache)
        assert cache.num_bytes <= 64
    assert double.calls == 3
    assert len(cache) == 2
    quantized(weight, {None: ("b", double)}, cache)
    assert double.calls == 4


def test_what_is_larger_than_the_cap_is_made_each_time():
    cache, weight, double = WeightCache(31), parameter(), Count()
    for _ in range(2):
        assert torch.equal(quantized(weight, {None: ("a", double)}, cache), weight * 2)
    assert double.calls == 2
    assert len(cache) == cache.num_bytes == 0


@pytest.mark.parametrize("change", ["in place", "new storage"])
def test_a_weight_that_changed_is_quantised_anew(change):
    cache, weight, double = WeightCache(1000), parameter(), Count()
    quantized(weight, {None: ("a", double)}, cache)
    with torch.no_grad():
        if change == "in place":
            weight.add_(1)
        else:
            weight.data = torch.full((2, 4), 5.0)
    assert torch.equal(quantized(weight, {None: ("a", double)}, cache), weight * 2)
    assert len(cache) == 1


def test_another_parameter_at_the_same_address_is_another_parameter():
    cache, double = WeightCache(10_000), Count()
    for value in range(20):
        weight = parameter(float(value))
        assert torch.equal(quantized(weight, {None: ("a", double)}, cache), weight * 2)
        del weight


def test_parts_are_quantised_and_the_rest_is_left():
    cache, double = WeightCache(1000), Count()
    weight = nn.Parameter(torch.arange(12.0).reshape(3, 4))
    got = quantized(weight, {0: ("a", double), 2: ("a", double)}, cache)
    assert torch.equal(got, torch.stack([weight[0] * 2, weight[1], weight[2] * 2]))
    assert torch.equal(weight.detach().flatten(), torch.arange(12.0))
    quantized(weight, {0: ("a", double), 1: ("a", double)}, cache)
    assert double.calls == 3


def test_values_are_swapped_and_given_back_also_after_an_error():
    weight, other = parameter(), torch.zeros(2, 4)
    address = weight.data_ptr()
    with swapped([(weight, other)]):
        assert torch.equal(weight.detach(), other)
    with pytest.raises(RuntimeError, match="shape"), swapped([(weight, other)]):
        weight @ other
    assert weight.data_ptr() == address
    assert torch.equal(weight.detach(), torch.ones(2, 4))
