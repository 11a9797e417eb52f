"""The sweep against the textbook's OBQ, its loss, its batches, and grids chosen on the way."""

import numpy as np
import pytest
import torch

from mpq.convert.factor import factorize
from mpq.convert.grid import choose_grids, value_dtype
from mpq.convert.sweep import Grids, sweep
from mpq.formats.zoo import parse_format
from tests.convert.layers import correlated_inputs, hessian_of, loss_of, weight_of
from tests.convert.obq import obq

SIZE = 24
FORMAT = parse_format("int3-g8-sf32")


def swept(weight, hessian, *, batch_columns=128, grids=None):
    given = grids or Grids(
        given=tuple(choose_grids(weight, FORMAT, weight.dtype)),
        group_of=tuple(k // 8 for k in range(weight.shape[1])),
    )
    return sweep(
        weight.T.contiguous(),
        factorize(hessian, 0.01),
        given,
        batch_columns=batch_columns,
        value_dtype=value_dtype(FORMAT, weight.dtype),
    )


def layer():
    return weight_of(6, SIZE), hessian_of(correlated_inputs(80, SIZE))


def int3_of(weight):
    """A row's grid from the definition: float32 scales of 8 values, codes -3 to 3."""
    scales = np.abs(weight.reshape(-1, 8)).max(axis=1) / np.float32(3)

    def nearest(value, column):
        scale = scales[column // 8]
        return float(np.clip(np.rint(np.float32(value) / scale), -3, 3) * scale)

    return nearest


@pytest.mark.parametrize("batch_columns", [1, 5, 8, 128])
def test_it_is_the_obq_of_the_textbook(batch_columns):
    weight, hessian = layer()
    found = swept(weight, hessian, batch_columns=batch_columns)
    damped = hessian.numpy() + 0.01 * np.diag(hessian.numpy()).mean() * np.eye(SIZE)
    rows = [obq(row.double().numpy(), damped, range(SIZE), int3_of(row.numpy())) for row in weight]
    want = np.stack([rounded for rounded, _ in rows])
    np.testing.assert_array_equal(found.quantized.T.double().numpy(), want)
    assert found.loss == pytest.approx(sum(loss for _, loss in rows), rel=1e-9)


def test_losses_of_columns_sum_to_the_loss_of_the_weight():
    weight, hessian = layer()
    found = swept(weight, hessian)
    damped = hessian + factorize(hessian, 0.01).added * torch.eye(SIZE, dtype=torch.float64)
    assert found.loss == pytest.approx(loss_of(weight, found.quantized.T, damped), rel=1e-12)


def test_the_weight_is_left_alone_even_in_float64():
    weight, hessian = layer()
    columns = weight.double().T.contiguous()
    before = columns.clone()
    grids = Grids(
        given=tuple(choose_grids(columns.T, FORMAT, torch.float64)),
        group_of=tuple(k // 8 for k in range(SIZE)),
    )
    factor = factorize(hessian, 0.01)
    sweep(columns, factor, grids, batch_columns=5, value_dtype=torch.float64)
    assert torch.equal(columns, before)


@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("batch_columns", [5, 12, 128])
def test_a_grid_chosen_on_the_way_sees_the_columns_as_they_are_then(is_exact, batch_columns):
    weight, hessian = layer()
    seen = []

    def choose(columns, places):
        seen.append((columns.clone(), places))
        (grid,) = choose_grids(columns, FORMAT, weight.dtype)
        return grid

    grids = Grids(
        given=(),
        group_of=tuple(k // 8 for k in range(SIZE)),
        choose=choose,
        is_exact=is_exact,
    )
    found = swept(weight, hessian, batch_columns=batch_columns, grids=grids)
    assert [(places.start, places.stop) for _, places in seen] == [(0, 8), (8, 16), (16, 24)]
    feedback = factorize(hessian, 0.01).feedback
    change = weight.double() - found.quantized.T.double()
    for columns, places in seen:
        start = places.start
        known = start if is_exact else start // batch_columns * batch_columns
        want = weight[:, places].double() + change[:, :known] @ feedback[:known, places]
        torch.testing.assert_close(columns, want, rtol=1e-12, atol=1e-12)


def test_a_group_needs_a_grid_or_a_way_to_choose_one():
    weight, hessian = layer()
    with pytest.raises(IndexError):
        swept(weight, hessian, grids=Grids(given=(), group_of=(0,) * SIZE))
