import pytest
import torch

from mpq.convert.integer_weight import group_of_column, group_size, integer_weight, stored_codes
from mpq.formats.packing import unpack
from mpq.modeling.packed import unpack_weight
from tests.convert.exports import packed, shuffled

FORMATS = (
    *("int4-g32", "int8", "int3-g64", "int2-tensor", "int4a-g32", "int8a", "int5", "int7a-g16"),
    *("bfp4", "bfp8-b32", "bfp6(block=4x16)", "mxint8", "fixed8.6", "fixed4.5"),
    *("int8-tensor(absmax=0.5)", "int4-g32-sf16", "int4-g32-sf32", "int6-g48", "int4f-g32"),
    *("int2f", "int8f-g16", "int3f-tensor"),
)


def values(weight) -> torch.Tensor:
    columns = weight.codes.shape[1]
    groups = weight.group_of_column
    if groups is None:
        groups = torch.arange(columns) // (weight.group or columns)
    steps = weight.codes.double() - weight.zeros_in_full.double()[:, groups.long()]
    return steps * weight.scales[:, groups.long()]


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("axis", [-1, 0])
def test_codes_zeros_and_scales_give_the_decoded_values(text, axis):
    weight = packed(text, axis=axis)
    decoded = unpack_weight(weight, torch.float32)
    found = values(integer_weight(weight)).float()
    assert torch.equal(found if axis == -1 else found.T, decoded)


@pytest.mark.parametrize("text", ["int4-g32", "int4a-g64", "int8", "bfp4"])
def test_an_order_puts_columns_back_and_keeps_their_groups(text):
    weight = packed(text, order=shuffled(128))
    found = integer_weight(weight)
    assert (found.group_of_column is None) == (text == "int8")
    assert torch.equal(values(found).float(), unpack_weight(weight, torch.float32))


def test_an_order_that_leaves_groups_where_they_are_needs_no_index():
    within = torch.cat([torch.arange(31, -1, -1) + 32 * group for group in range(4)])
    assert group_of_column(packed("int4-g32", order=within)) is None


def test_symmetric_codes_are_offset_by_half_their_range():
    found = integer_weight(packed("int4-g32"))
    assert found.zeros is None
    assert set(found.zeros_in_full.unique().tolist()) == {8}
    assert (int(found.codes.min()), int(found.codes.max())) == (1, 15)


def test_codes_of_full_range_are_all_there_and_scales_of_either_sign():
    found = integer_weight(packed("int4f-g32"))
    assert found.zeros is None
    assert set(found.zeros_in_full.unique().tolist()) == {8}
    assert set(found.codes.unique().tolist()) == set(range(16))
    assert set(found.scales.sign().unique().tolist()) == {-1, 1}


@pytest.mark.parametrize(("text", "size"), [("int4-g32", 32), ("int8", 0), ("int4-g256", 0)])
def test_a_row_with_one_scale_has_no_groups(text, size):
    assert group_size(packed(text).encoded) == size


def test_stored_codes_are_those_that_were_packed():
    encoded = packed("int3-g64", rows=3, columns=64).encoded
    expected = unpack(encoded.codes.numpy(), 3, 3 * 64)
    assert stored_codes(encoded).flatten().tolist() == expected.tolist()


@pytest.mark.parametrize("text", ["nf4-g64", "fp8-e4m3", "int16"])
def test_what_holds_no_small_integers_is_refused(text):
    with pytest.raises(TypeError, match="is no matrix of integers"):
        integer_weight(packed(text))
