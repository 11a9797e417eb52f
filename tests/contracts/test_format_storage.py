"""Contract: what is encoded is what is counted, and what is decoded is what was quantised."""

import math

import pytest
import torch

from mpq.errors import FormatError
from mpq.formats.zoo import parse_format
from mpq.kernels.fake_quant import decode, encode, quantize
from tests.contracts.tensors import adversarial, assert_same, normal
from tests.contracts.zoo import ALL, ROWS_APART
from tests.oracles.facts import STORAGE_BITS, Facts, read
from tests.oracles.scalar import blocks

TENSORS = adversarial()
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TILED = [*ALL, "bfp6(exponent=5,block=4x16)", "mxfp4(block=2x8)"]
SHAPES = [(37,), (5, 33), (2, 3, 18), (1, 1), (4, 64)]


def stored_bits(facts: Facts, shape: tuple[int, ...], axis: int) -> int:
    """Bits by counting: every code, and every block's share, one by one."""
    per_block = {
        "none": 0,
        "power": (facts.exponents[1] * 2 - 1).bit_length(),
        "float": STORAGE_BITS[facts.storage],
        "signed": STORAGE_BITS[facts.storage],
        "range": STORAGE_BITS[facts.storage] + facts.width,
        "two-level": 8,
    }[facts.scale]
    if facts.scale == "float" and facts.absmax is not None:
        per_block = 0  # the text holds the number
    count = sum(1 for _ in blocks(shape, facts, axis))
    above = 0
    if facts.scale == "two-level" and facts.absmax is None:
        above = 32 * (math.prod(shape) // shape[axis] if facts.per_token else 1)
    return math.prod(shape) * facts.width + count * per_block + above


@pytest.mark.parametrize("text", TILED)
def test_decoding_gives_what_quantize_gives(text):
    for dtype in DTYPES:
        limit = torch.finfo(dtype).max
        for told, wide in TENSORS.items():
            x = wide.clamp(-limit, limit).to(dtype)
            assert_same(decode(encode(x, text)), quantize(x, text), f"{text} {told} {dtype}")
            assert decode(encode(x, text)).dtype == dtype


@pytest.mark.parametrize("text", TILED)
def test_decoding_works_on_every_axis_and_layout(text):
    for shape in SHAPES:
        x = normal(*shape)
        for axis in range(-len(shape), len(shape)):
            told = f"{text} {shape} axis {axis}"
            assert_same(decode(encode(x, text, axis)), quantize(x, text, axis), told)
    x = normal(9, 40).T
    assert_same(decode(encode(x, text)), quantize(x, text), f"{text} transposed")


@pytest.mark.parametrize("text", TILED)
def test_decoding_into_another_dtype_rounds_once(text):
    encoded = encode(normal(3, 40), text)
    for dtype in DTYPES:
        decoded = decode(encoded, dtype)
        assert decoded.dtype == dtype
        assert_same(decoded, decode(encoded).to(dtype), text)


@pytest.mark.parametrize("text", TILED)
def test_bits_count_every_code_and_every_block(text):
    named = parse_format(text)
    for shape in SHAPES:
        for axis in range(-len(shape), len(shape)):
            want = stored_bits(read(text), shape, axis)
            assert named.bits(shape, axis) == want, (text, shape, axis)
            assert encode(normal(*shape), text, axis).num_bits == want, (text, shape, axis)


@pytest.mark.parametrize("text", TILED)
def test_the_encoded_tensors_hold_those_bits_and_padding_below_a_byte_each(text):
    named = parse_format(text)
    for shape in SHAPES:
        encoded = encode(normal(*shape), text)
        fields = (getattr(encoded, name) for name in encoded.__dataclass_fields__)
        tensors = [field for field in fields if isinstance(field, torch.Tensor)]
        held = sum(tensor.numel() * tensor.element_size() * 8 for tensor in tensors)
        bits = named.bits(shape)
        assert bits <= held < bits + 8 * len(tensors), (text, shape, held, bits)


@pytest.mark.parametrize("text", TILED)
def test_empty_tensors_come_back_empty(text):
    for shape in [(0,), (0, 16), (3, 0), (2, 0, 5)]:
        for dtype in DTYPES:
            x = torch.empty(shape, dtype=dtype)
            got = quantize(x, text)
            assert got.shape == x.shape
            assert got.dtype == dtype
            assert decode(encode(x, text)).shape == x.shape
        assert encode(torch.empty(shape), text).num_bits == parse_format(text).bits(shape) == 0


@pytest.mark.parametrize("text", TILED)
def test_a_non_finite_value_poisons_only_its_own_block(text):
    x = normal(6, 70)
    facts = read(text)
    clean = quantize(x, text)
    for value in (math.nan, math.inf, -math.inf):
        poisoned = x.clone()
        poisoned[2, 37] = value
        got = quantize(poisoned, text)
        reached = torch.zeros(6, 70, dtype=torch.bool)
        for block in blocks((6, 70), facts, -1):
            if facts.scale != "none" and (2, 37) in block:
                reached[tuple(torch.tensor(block).T)] = True
        if facts.scale == "two-level" and facts.absmax is None:
            reached[2 if facts.per_token else slice(None)] = True
        reached[2, 37] = True
        assert_same(got[~reached], clean[~reached], f"{text} {value}")
        assert math.isnan(got[2, 37]) or not math.isnan(value), f"{text}: a NaN came out a number"


@pytest.mark.parametrize("text", [*TILED, "fp32"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_input_is_refused_where_it_must_be(text, value):
    x = normal(3, 20)
    x[1, 4] = value
    with pytest.raises(FormatError, match="finite"):
        encode(x, text)
    with pytest.raises(FormatError, match=r"layers\.0\.weight"):
        quantize(x, text, check_finite=True, name="layers.0.weight")


@pytest.mark.parametrize("text", ROWS_APART)
def test_rows_apart_equal_rows_together(text):
    x = normal(2, 4, 3, 40)
    together = quantize(x, text)
    for index in [(0, 0), (1, 3), (1, 0)]:
        assert_same(quantize(x[index], text), together[index], text)
        assert_same(quantize(x[index][:1], text), together[index][:1], text)
        assert_same(quantize(x[index][2], text), together[index][2], text)
    assert_same(quantize(x.flatten(0, 2), text), together.flatten(0, 2), text)


@pytest.mark.parametrize(
    "text", ["bfp4", "int4", "nvfp4", "int8-tensor", "log8", "bfp4(block=2x8)"]
)
@pytest.mark.parametrize("axis", [2, -3, 7])
def test_an_axis_out_of_range_is_refused(text, axis):
    with pytest.raises(FormatError, match=r"axis.*-2 to 1"):
        quantize(normal(3, 20), text, axis)
    with pytest.raises(FormatError, match=r"axis.*-2 to 1"):
        encode(normal(3, 20), text, axis)
    with pytest.raises(FormatError, match=r"axis.*-2 to 1"):
        parse_format(text).bits((3, 20), axis)
