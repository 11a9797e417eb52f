"""Round-to-nearest: `mpq.quantize` under the format's rule; never worse under searched grids."""

import pytest
import torch

from mpq.convert.nearest import round_to_nearest
from mpq.convert.options import SolverOptions
from mpq.formats.zoo import parse_format
from mpq.kernels.fake_quant import quantize
from mpq.modeling.packed import unpack_weight
from tests.contracts.zoo import ALL
from tests.convert.layers import loss_of, weight_of

ABSMAX = SolverOptions(method="rtn")
MSE = SolverOptions(method="rtn", grid="mse")


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("axis", [-1, 0])
def test_searched_grids_are_never_worse_in_squared_error(text, axis):
    weight, format = weight_of(9, 38), parse_format(text)
    eye = torch.eye(weight.shape[axis], dtype=torch.float64)
    packed, nearest = round_to_nearest(weight, None, format, axis, ABSMAX, "w")
    assert torch.equal(nearest, quantize(weight, format, axis))
    assert torch.equal(nearest, unpack_weight(packed))
    packed, searched = round_to_nearest(weight, None, format, axis, MSE, "w")
    assert torch.equal(searched, unpack_weight(packed))
    least = loss_of(weight, searched, eye, axis)
    assert least <= loss_of(weight, nearest, eye, axis) * (1 + 1e-12)


def test_the_search_weighs_columns_by_the_diagonal():
    weight = weight_of(16, 64)
    importance = torch.linspace(0.01, 4, 64, dtype=torch.float64)
    hessian = torch.diag(importance)
    format = parse_format("int2-g64")
    _, blind = round_to_nearest(weight, None, format, -1, MSE, "w")
    _, seeing = round_to_nearest(weight, hessian, format, -1, MSE, "w")
    assert loss_of(weight, seeing, hessian) < 0.99 * loss_of(weight, blind, hessian)
