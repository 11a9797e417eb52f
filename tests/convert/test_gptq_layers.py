import pytest
import torch

from mpq.convert.gptq_layers import gptq_layer, gptq_scheme, gptq_values, read_gptq_layer
from mpq.convert.integer_weight import integer_weight
from mpq.modeling.packed import unpack_weight
from tests.convert.exports import packed, shuffled

HELD = (
    *("int2-g32", "int3-g64", "int4-g128", "int8", "int4-tensor", "int2a-g32", "int3a-g32"),
    *("int4a", "int8a-g16", "bfp3", "bfp4", "mxint8", "fixed8.6", "int4-g32-sf16", "int2f-g32"),
    *("int3f-g64", "int4f-g128", "int4f", "int8f", "int4f-g32-sf16"),
)


@pytest.mark.parametrize("version", ["gptq_v2", "gptq"])
@pytest.mark.parametrize("text", HELD)
@pytest.mark.parametrize("order", [None, shuffled(128)])
def test_codes_scales_zeros_and_values_come_back(text, version, order):
    weight = packed(text, order=order)
    source = integer_weight(weight)
    found = read_gptq_layer(gptq_layer(weight, version), source.width, version)
    assert torch.equal(found.codes, source.codes)
    assert torch.equal(found.zeros, source.zeros_in_full)
    assert torch.equal(found.scales, source.scales)
    assert torch.equal(gptq_values(found).float(), unpack_weight(weight, torch.float32))


def test_the_layout_by_hand():
    """Sixteen rows of GPTQ's formulas: code i of an input word, its zero and its scale."""
    weight = packed("int4a-g32", rows=32, columns=64)
    layer = gptq_layer(weight)
    assert {name: tuple(x.shape) for name, x in layer.items()} == {
        "qweight": (8, 32),
        "qzeros": (2, 4),
        "scales": (2, 32),
        "g_idx": (64,),
    }
    assert layer["scales"].dtype == torch.float16
    expected = unpack_weight(weight, torch.float32)
    for column in range(64):
        for row in range(16):
            code = layer["qweight"][column // 8, row].item() >> 4 * (column % 8) & 15
            group = layer["g_idx"][column]
            zero = layer["qzeros"][group, row // 8].item() >> 4 * (row % 8) & 15
            value = (code - zero) * layer["scales"][group, row].float()
            assert value == expected[row, column]


def test_version_1_stores_zeros_less_1_within_their_bits():
    zeros = [gptq_layer(packed("int4"), version)["qzeros"] for version in ("gptq_v2", "gptq")]
    assert [set((words & 0xFFFF).unique().tolist()) for words in zeros] == [{0x8888}, {0x7777}]


def test_an_act_order_stands_in_g_idx():
    layer = gptq_layer(packed("int4-g32", order=shuffled(128)))
    groups = torch.empty(128, dtype=torch.int32)
    groups[shuffled(128)] = torch.arange(128, dtype=torch.int32) // 32
    assert torch.equal(layer["g_idx"], groups)
    assert gptq_scheme(packed("int4-g32", order=shuffled(128)))["desc_act"]


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("int4-g32", {"bits": 4, "group_size": 32, "sym": True, "desc_act": False}),
        ("int4f-g32", {"bits": 4, "group_size": 32, "sym": True, "desc_act": False}),
        ("int3a", {"bits": 3, "group_size": -1, "sym": False, "desc_act": False}),
        ("bfp8", {"bits": 8, "group_size": 16, "sym": True, "desc_act": False}),
    ],
)
def test_a_scheme_is_worded_as_gptqmodel_words_it(text, scheme):
    assert gptq_scheme(packed(text)) == scheme


def test_a_conv1d_weight_reads_as_the_linear_it_is():
    weight = packed("int4-g32", axis=0, rows=128, columns=32)
    found = read_gptq_layer(gptq_layer(weight), 4)
    assert torch.equal(gptq_values(found).float().T, unpack_weight(weight, torch.float32))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (packed("mxfp4"), "integers only"),
        (packed("int5"), "bits only"),
        (packed("int4", rows=33), "packs 32 values along either axis"),
        (packed("int4-g32-sf32"), "stored in float16, which does not hold"),
    ],
)
def test_what_does_not_fit_says_why(weight, reason):
    assert reason in gptq_layer(weight)
