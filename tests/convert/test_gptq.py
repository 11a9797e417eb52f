"""GPTQ for one weight: which order is stored, and what makes it give up."""

import pytest
import torch

from mpq.convert.gptq import gptq
from mpq.convert.options import SolverOptions
from mpq.formats.zoo import parse_format
from tests.convert.layers import correlated_inputs, hessian_of, weight_of

SIZE = 48


def found(text, **options):
    hessian = hessian_of(correlated_inputs(90, SIZE))
    return gptq(weight_of(5, SIZE), hessian, parse_format(text), SolverOptions(**options))


@pytest.mark.parametrize("groups", ["static", "stale", "exact"])
@pytest.mark.parametrize(
    "text", ["int4-g16", "int4f-g16", "bfp4", "nvfp4", "int4", "int8-tensor", "log8"]
)
def test_the_order_is_stored_where_groups_lie_in_it(text, groups):
    has_groups = text in {"int4-g16", "int4f-g16", "bfp4", "nvfp4"}
    result, reason = found(text, act_order=True, groups=groups)
    assert not reason
    assert len(result.grids) == (3 if has_groups else 1)
    if not has_groups or groups == "static":
        assert result.order is None
        return
    diagonal = hessian_of(correlated_inputs(90, SIZE)).diagonal()
    assert torch.equal(result.order, diagonal.sort(descending=True).indices)


@pytest.mark.parametrize("text", ["int4", "int8-tensor", "log8", "fixed8.4"])
def test_with_one_group_the_modes_are_the_same(text):
    static, _ = found(text, act_order=True)
    for groups in ("stale", "exact"):
        other, _ = found(text, act_order=True, groups=groups)
        assert torch.equal(static.quantized, other.quantized)


def test_it_gives_up_with_a_reason():
    weight, format, options = weight_of(3, 4), parse_format("int4"), SolverOptions()
    nothing = torch.zeros(4, 4, dtype=torch.float64)
    assert gptq(weight, nothing, format, options) == (
        None,
        "no token reached it in calibration",
    )
    assert gptq(weight[:0], nothing, format, options) == (None, "it is empty")
    indefinite = torch.eye(4, dtype=torch.float64)
    indefinite[0, 1] = indefinite[1, 0] = 9.0
    _, reason = gptq(weight, indefinite, format, options)
    assert "not positive definite, not even with 1.0 of its mean diagonal" in reason
