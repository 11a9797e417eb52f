"""The factor: it multiplies back, equals GPTQ's own, is damped as it says, cuts off the dead."""

import pytest
import torch

from mpq.convert.factor import MAX_DAMPING, factorize
from tests.convert.layers import correlated_inputs, hessian_of

EYE = torch.eye(12, dtype=torch.float64)


def hessian() -> torch.Tensor:
    return hessian_of(correlated_inputs(60, 12))


def test_it_multiplies_back_to_the_damped_hessian():
    found = factorize(hessian(), 0.01)
    assert found.damping == 0.01
    assert found.added == pytest.approx(0.01 * float(hessian().diagonal().mean()), rel=1e-14)
    left = EYE + found.feedback
    back = left @ torch.diag(found.pivots) @ left.T
    torch.testing.assert_close(back, hessian() + found.added * EYE, rtol=1e-12, atol=1e-12)
    assert not found.feedback.tril().any()


def test_it_says_what_the_upper_cholesky_factor_of_the_inverse_says():
    # Frantar et al. 2022: U with H^-1 = U^T U; rows over the diagonal are (I + F)^-1.
    found = factorize(hessian(), 0.01)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian() + found.added * EYE), upper=True)
    rows = upper / upper.diagonal()[:, None]
    torch.testing.assert_close(rows @ (EYE + found.feedback), EYE, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.pivots, upper.diagonal() ** -2, rtol=1e-9, atol=0)


def test_dead_columns_take_no_part():
    x = correlated_inputs(60, 12)
    x[:, [0, 5, 11]] = 0.0
    live = [i for i in range(12) if i not in (0, 5, 11)]
    found = factorize(hessian_of(x), 0.01)
    alone = factorize(hessian_of(x[:, live]), 0.01)
    assert found.added == pytest.approx(alone.added, rel=1e-14)
    assert not found.pivots[[0, 5, 11]].any()
    assert not found.feedback[[0, 5, 11]].any()
    assert not found.feedback[:, [0, 5, 11]].any()
    torch.testing.assert_close(found.feedback[live][:, live], alone.feedback)


@pytest.mark.parametrize(
    ("lowest", "wanted"), [(-0.05, 0.1), (-0.5, 1.0), (-2.0, None), (0.5, 0.01)]
)
def test_damping_is_raised_tenfold_up_to_a_bound(lowest, wanted):
    indefinite = torch.diag(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    # Eigenvalues 1 - a, 1 + a and 1: the diagonal's mean stays 1.
    indefinite[0, 1] = indefinite[1, 0] = 1 - lowest
    found = factorize(indefinite, 0.01)
    assert (found.damping if found else None) == wanted


def test_no_damping_is_obeyed_where_it_can_be_and_raised_from_a_first_step():
    assert factorize(hessian(), 0.0).damping == 0.0
    assert factorize(hessian(), 0.0).added == 0.0
    singular = torch.ones(3, 3, dtype=torch.float64) - 1e-6 * torch.eye(3, dtype=torch.float64)
    assert factorize(singular, 0.0).damping == pytest.approx(1e-5)
    assert MAX_DAMPING == 1.0


def test_where_all_is_dead_there_is_no_factor():
    assert factorize(torch.zeros(3, 3, dtype=torch.float64), 0.01) is None
