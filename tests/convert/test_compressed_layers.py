import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mxfp6.helpers import pack_fp6_to_uint8
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationScheme

from mpq.convert.compressed_layers import compressed_layer, exactly, reciprocal
from mpq.formats.zoo import parse_format
from mpq.modeling.packed import unpack_weight
from tests.convert.exports import packed, shuffled

HELD = (
    *("int2-g32", "int3-g64", "int4-g128", "int5", "int6-g16", "int7", "int8", "int8-tensor"),
    *("int8a", "int8a-g32", "bfp4", "bfp8", "bfp6(block=4x16)", "mxint8", "fixed8.6", "fixed3.2"),
    *("int2f-g32", "int3f-g64", "int4f-g128", "int5f", "int8f", "int8f-tensor", "int8f-g16"),
    *("fp8-e4m3", "fp8-e4m3-token", "fp8-e4m3-g32", "nvfp4", "mxfp4", "mxfp6-e2m3", "mxfp8-e4m3"),
)


def decompressed(layer) -> torch.Tensor:
    """What the library makes of a layer."""
    scheme = QuantizationScheme(targets=["x"], **layer.scheme)
    compressor = BaseCompressor.get_value_from_registry(layer.scheme["format"])
    return compressor.decompress(dict(layer.tensors), scheme)["weight"]


@pytest.mark.parametrize("text", HELD)
def test_the_library_dequantises_to_our_values_bit_for_bit(text):
    weight = packed(text)
    found = decompressed(compressed_layer(weight, torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, unpack_weight(weight, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("text", ["int4-g32", "int4f-g32", "int8a-g32", "bfp4", "fp8-e4m3-token"])
def test_other_dtypes_hold_our_values_too(text, dtype):
    weight = packed(text, dtype=dtype)
    found = decompressed(compressed_layer(weight, dtype))
    assert torch.equal(found, unpack_weight(weight, dtype))


@pytest.mark.parametrize("text", ["int4", "fp8-e4m3-token"])
def test_an_order_of_columns_under_one_scale_is_undone(text):
    weight = packed(text, order=shuffled(128))
    found = decompressed(compressed_layer(weight, torch.bfloat16))
    assert torch.equal(found, unpack_weight(weight, torch.bfloat16))


@pytest.mark.parametrize(
    ("text", "pack", "kind"),
    [("mxfp4", pack_fp4_to_uint8, 4), ("mxfp6-e2m3", pack_fp6_to_uint8, 6)],
)
def test_bytes_of_small_floats_are_the_library_s(text, pack, kind):
    weight = packed(text)
    layer = compressed_layer(weight, torch.bfloat16)
    units = torch.exp2(layer.tensors["weight_scale"].float() - 127).repeat_interleave(32, 1)
    elements = unpack_weight(weight, torch.float32) / units
    assert torch.equal(layer.tensors["weight_packed"], pack(elements.bfloat16()))
    assert layer.scheme["weights"]["num_bits"] == kind


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (packed("nf4-g64"), "no layout"),
        (packed("int4a-g32"), "does not load its packed zero points"),
        (packed("int4-g48"), "leave a short one at the end of 128 columns"),
        (packed("mxfp4", columns=48), "groups of 32 leave a short one"),
        (packed("nvfp4", columns=8), "groups of 16 leave a short one"),
        (packed("int4-g32", axis=0), "Conv1D"),
        (packed("int4-g32", order=shuffled(128)), "no act-order with groups"),
        (packed("int4-g32-sf32"), "torch.bfloat16, which does not hold all of them"),
        (packed("int4-g32-sf16"), "torch.bfloat16, which does not hold all of them"),
        (packed("fp8-e4m3-g32-sf32"), "torch.bfloat16, which does not hold all of them"),
        (packed("fp32", dtype=torch.float32), "does not hold all its values"),
    ],
)
def test_what_does_not_fit_says_why(weight, reason):
    assert reason in compressed_layer(weight, torch.bfloat16)


@pytest.mark.parametrize("text", ["nvfp4", "mxfp4", "mxfp8-e4m3"])
def test_floats_that_read_back_in_bfloat16_need_a_model_in_bfloat16(text):
    assert "reads such weights back in bfloat16" in compressed_layer(packed(text), torch.float32)


def test_inputs_go_with_their_weights():
    fp8 = parse_format("fp8-e4m3-token")
    assert "go with a weight in fp8" in compressed_layer(packed("int8"), torch.bfloat16, fp8)
    bfp = parse_format("bfp8")
    assert "names int8 and fp8-e4m3-token" in compressed_layer(packed("int8"), torch.bfloat16, bfp)


def test_exactly_keeps_a_dtype_or_says_no():
    values = torch.tensor([1.0, 1.0 + 2**-7])
    assert exactly(values, torch.bfloat16).dtype == torch.bfloat16
    assert exactly(values + 2**-9, torch.bfloat16) is None


def test_every_bfloat16_value_survives_the_division_by_a_reciprocal():
    draw = torch.Generator().manual_seed(0)
    scales = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    magnitudes = torch.tensor([0.5, 1, 1.5, 2, 3, 4, 6])
    found = 0
    for above in torch.rand(200, 1, generator=draw) * 1e-4:
        divisor = reciprocal(above, scales)
        if divisor is not None:
            theirs = (magnitudes * (scales / divisor)[:, None]).bfloat16()
            assert torch.equal(theirs, (magnitudes * (scales * above)[:, None]).bfloat16())
            found += 1
    assert found >= 190


def test_a_tensor_scale_without_such_a_reciprocal_is_refused(monkeypatch):
    monkeypatch.setattr("mpq.convert.compressed_layers.NEIGHBOURS", 0)
    assert reciprocal(torch.tensor([1.0]), torch.tensor([1.0, 448.0])) is None
    assert "divides by the reciprocal" in compressed_layer(packed("nvfp4"), torch.bfloat16)
