"""The sum of x x^T: against numpy, in any pieces and dtypes, and what it refuses."""

import numpy as np
import pytest
import torch

from mpq.convert import hessian
from mpq.convert.hessian import HessianSum
from mpq.errors import ModelError


def tokens(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0))


def test_it_is_twice_the_mean_of_the_outer_products():
    x = tokens(40, 6)
    total = HessianSum(6)
    total.add(x)
    exact = x.double().numpy()
    np.testing.assert_allclose(total.hessian().numpy(), 2 / 40 * exact.T @ exact, rtol=1e-13)
    np.testing.assert_allclose(total.mean.numpy(), exact.mean(axis=0), rtol=1e-13)
    assert total.hessian().dtype == total.mean.dtype == torch.float64
    assert total.num_tokens == 40


def test_it_does_not_depend_on_how_tokens_come(monkeypatch):
    x = tokens(60, 7)
    whole = HessianSum(7)
    whole.add(x)
    monkeypatch.setattr(hessian, "TOKENS_AT_ONCE", 8)
    monkeypatch.setattr(hessian, "PANEL", 3)
    pieces = HessianSum(7)
    pieces.add(x[:24].view(2, 3, 4, 7))
    pieces.add(x[24])
    pieces.add(x[25:])
    assert pieces.num_tokens == 60
    torch.testing.assert_close(pieces.hessian(), whole.hessian(), rtol=1e-13, atol=0)
    torch.testing.assert_close(pieces.mean, whole.mean, rtol=1e-13, atol=1e-16)
    assert torch.equal(pieces.hessian(), pieces.hessian().T)


def test_sixteen_bit_inputs_are_summed_in_float64():
    x = tokens(5000, 3).bfloat16()
    total = HessianSum(3)
    total.add(x)
    exact = x.double()
    torch.testing.assert_close(total.hessian(), 2 / 5000 * exact.T @ exact, rtol=1e-12, atol=0)


def test_without_tokens_it_is_zero():
    total = HessianSum(3)
    total.add(torch.empty(0, 3))
    assert total.num_tokens == 0
    assert not total.hessian().any()
    assert not total.mean.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name_and_not_added(bad):
    total = HessianSum(3, name="model.layers.1.mlp.down_proj")
    x = tokens(4, 3)
    x[2, 1] = bad
    with pytest.raises(
        ModelError, match=r"the inputs of model\.layers\.1\.mlp\.down_proj must be finite, but 1"
    ):
        total.add(x)
    assert total.num_tokens == 0
    assert not total.hessian().any()


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.int64), torch.tensor(1.0)]
)
def test_other_shapes_and_dtypes_are_refused(x):
    with pytest.raises(ModelError, match=r"must be floats of shape \[\.\.\., 3\]"):
        HessianSum(3).add(x)


def test_a_size_below_one_is_refused():
    with pytest.raises(ModelError, match="at least 1 column, not 0"):
        HessianSum(0)
