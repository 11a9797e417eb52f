"""Grids: columns rounded and read back one by one are those of the whole tensor."""

import pytest
import torch

from mpq.convert.grid import (
    EXPONENT_SHIFTS,
    above_blocks,
    choose_grids,
    group_size,
    joined_scales,
    read_back,
    round_column,
    tensor_scales,
    tried_shares,
    value_dtype,
)
from mpq.formats.zoo import parse_format
from mpq.kernels.encoded import encode_blocks, encode_values
from mpq.kernels.fake_quant import quantize
from tests.contracts.tensors import assert_same
from tests.contracts.zoo import ALL
from tests.convert.layers import weight_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("text", [*ALL, "int4(block=4x16)", "bfp4(block=2x8)", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_one_by_one_are_the_tensor_to_the_bit(text, dtype):
    weight, format = weight_of(7, 37, dtype), parse_format(text)
    weight[0, :3] = torch.tensor([0.0, -0.0, 60000.0])
    grids = choose_grids(weight, format, dtype, above=tensor_scales(weight, format))
    size = group_size(format, 37)
    assert len(grids) == -(-37 // size)
    columns, values = [], []
    for k in range(37):
        values.append(round_column(weight[:, k].double(), grids[k // size]))
        columns.append(read_back(values[-1], grids[k // size]))
        wide = value_dtype(format, dtype)
        assert torch.promote_types(values[-1].dtype, wide) == wide
    assert_same(torch.stack(columns, dim=1), quantize(weight, format))
    encoded = encode_values(
        torch.stack(values, dim=1),
        format,
        -1,
        dtype,
        scales=joined_scales(grids),
        above=above_blocks(weight, format),
    )
    whole = encode_blocks(weight, format, -1)
    for name in ("codes", "scales", "zero_points", "tensor_scales"):
        got, want = getattr(encoded, name), getattr(whole, name)
        assert (got is None) == (want is None)
        assert got is None or torch.equal(got, want), name


def test_the_search_tries_the_rule_first_and_powers_of_two_for_exponents():
    assert tried_shares(parse_format("bfp4")) == EXPONENT_SHIFTS
    assert tried_shares(parse_format("int4"))[0] == tried_shares(parse_format("nvfp4"))[0] == 1
    assert min(tried_shares(parse_format("int4"))) == pytest.approx(0.4)
    assert max(tried_shares(parse_format("nvfp4"))) == 1.5


@pytest.mark.parametrize("sign", [1, -1])
def test_a_range_is_shrunk_past_an_outlier_on_the_side_of_the_sign(sign):
    row = torch.full((1, 64), 0.1)
    row[0, 0] = 0.26
    (plain,) = choose_grids(row * sign, parse_format("int2f"), row.dtype)
    (searched,) = choose_grids(row * sign, parse_format("int2f"), row.dtype, is_searched=True)
    # -2 steps reach 0.26 and -1 of them 0.13, 0.03 beyond the others; near 0.1 they are exact.
    assert float(plain.unit) == pytest.approx(-0.13 * sign, rel=4e-3)
    assert float(searched.unit) == pytest.approx(-0.1 * sign, rel=4e-2)


def test_a_range_is_shrunk_past_an_outlier():
    row = torch.full((1, 64), 0.1)
    row[0, 0] = 0.26
    (plain,) = choose_grids(row, parse_format("int2"), row.dtype)
    (searched,) = choose_grids(row, parse_format("int2"), row.dtype, is_searched=True)
    # Under 0.26, 0.1 becomes 0: 63 errors of 0.1. Near 0.104 (the least share, 0.4) it costs one.
    assert float(plain.unit) == pytest.approx(0.26, rel=4e-3)
    assert float(searched.unit) == pytest.approx(0.104, rel=4e-3)
    unimportant = torch.zeros(64, dtype=torch.float64)
    unimportant[0] = 1.0
    (kept,) = choose_grids(
        row, parse_format("int2"), row.dtype, is_searched=True, importance=unimportant
    )
    assert float(kept.unit) == float(plain.unit)
