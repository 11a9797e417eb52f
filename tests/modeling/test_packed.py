"""Weights as a checkpoint stores them, columns in any order."""

import pytest
import torch

from mpq import decode, encode, quantize
from mpq.errors import FormatError, ModelError
from mpq.modeling.packed import PackedWeight, unpack_weight, with_tensors


def weight(rows=6, columns=40):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


def shuffled(size):
    return torch.randperm(size, generator=torch.Generator().manual_seed(5))


def test_a_weight_without_an_order_reads_back_as_its_codes_do():
    packed = PackedWeight(encoded=encode(weight(), "int4-g32"))
    assert torch.equal(unpack_weight(packed), quantize(weight(), "int4-g32"))
    assert packed.num_bits == packed.encoded.num_bits


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_columns_come_back_to_the_places_that_the_order_names(axis):
    w = weight()
    order = shuffled(w.shape[axis])
    stored = w.index_select(axis, order)
    packed = PackedWeight(encoded=encode(stored, "bfp4", axis), order=order)
    back = unpack_weight(packed)
    assert torch.equal(back.index_select(axis, order), quantize(stored, "bfp4", axis))
    assert back.is_contiguous()
    if axis == 0:
        for column, position in enumerate(order.tolist()):
            assert torch.equal(back[position], decode(packed.encoded)[column])


@pytest.mark.parametrize("order", [None, shuffled(40)])
def test_values_go_where_they_are_wanted(order):
    packed = PackedWeight(encoded=encode(weight(), "bfp4"), order=order)
    out = torch.empty(6, 40)
    assert unpack_weight(packed, out=out) is out
    assert torch.equal(out, unpack_weight(packed))


@pytest.mark.parametrize("order", [None, shuffled(40)], ids=["as they are", "in an order"])
@pytest.mark.parametrize(
    ("out", "told"),
    [
        (torch.zeros(6, 40).bfloat16(), r"not shape \(6, 40\) in torch.bfloat16 on cpu"),
        (torch.zeros(8, 40), r"not shape \(8, 40\) in torch.float32 on cpu"),
        (torch.zeros(6, 40, device="meta"), r"not shape \(6, 40\) in torch.float32 on meta"),
        (torch.zeros(40, 6).T, r"on cpu with strides \(1, 6\): give such a tensor, or no `out`"),
    ],
    ids=["dtype", "shape", "device", "strides"],
)
def test_a_tensor_that_values_do_not_go_into_is_refused_untouched(order, out, told):
    packed = PackedWeight(encoded=encode(weight(), "bfp4"), order=order)
    with pytest.raises(FormatError, match=told):
        unpack_weight(packed, out=out)
    assert out.is_meta or not out.any()


@pytest.mark.parametrize(
    ("text", "order", "names"),
    [
        ("fixed8.4", None, ["codes"]),
        ("int4a-g32", shuffled(40), ["codes", "scales", "zero_points", "order"]),
        ("nvfp4", None, ["codes", "scales", "tensor_scales"]),
    ],
)
def test_all_that_is_stored_is_told_and_replaced(text, order, names):
    packed = PackedWeight(encoded=encode(weight(), text), order=order)
    assert list(packed.tensors) == names
    copied = with_tensors(packed, torch.clone)
    for name, x in copied.tensors.items():
        assert torch.equal(x, packed.tensors[name])
        assert x is not packed.tensors[name]
    assert list(copied.tensors) == names
    assert torch.equal(unpack_weight(copied), unpack_weight(packed))


def test_an_entry_of_the_order_counts_32_bits():
    packed = PackedWeight(encoded=encode(weight(), "bfp4"), order=shuffled(40))
    assert packed.num_bits == packed.encoded.num_bits + 32 * 40


def test_the_dtype_of_the_values_can_be_chosen():
    packed = PackedWeight(encoded=encode(weight().bfloat16(), "int8"), order=shuffled(40))
    assert unpack_weight(packed).dtype == torch.bfloat16
    assert unpack_weight(packed, torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    "order",
    [torch.arange(39), torch.zeros(40, dtype=torch.long), torch.arange(1, 41), torch.arange(0)],
    ids=["short", "repeated", "beyond", "empty"],
)
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(ModelError, match=r"every position along the reduction axis once, 0 to 39"):
        PackedWeight(encoded=encode(weight(), "bfp4"), order=order)
