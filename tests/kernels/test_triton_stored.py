"""What kernels are told of codes and stored scales."""

import struct

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.triton_scales import shared_power_facts
from mpq.kernels.triton_stored import coding_facts, decoding_facts, encoding_facts


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("int4", "integer"), ("fixed8.4", "integer"), ("int4a", "asymmetric")),
        *(("bfp4", "sign-magnitude"), ("minifloat-e3m0", "float"), ("log8", "log")),
        *(("nf4", "table"), ("bf16", "bfloat16"), ("fp16", "float")),
    ],
)
def test_kinds_of_codes(text, kind):
    assert coding_facts(parse_format(text).element).kind == kind


def test_in_float64_bfloat16_is_a_float_as_any():
    assert coding_facts(parse_format("bf16").element, wide=True).kind == "float"


@pytest.mark.parametrize(
    ("text", "scale", "width"),
    [
        *(("bfp4", "exponent", 8), ("bfp4(exponent=5)", "exponent", 5), ("nvfp4", "nested", 0)),
        *(("int4", "bf16", 0), ("int4-sf32", "fp32", 0)),
        ("int8-tensor(absmax=2.0)", "calibrated", 0),
    ],
)
def test_how_scales_are_stored(text, scale, width):
    facts = decoding_facts(parse_format(text), torch.float32, in_pieces=False)
    assert (facts.scale, facts.scale_width) == (scale, width)


def test_what_shares_a_scale():
    for text, in_pieces, shared in (
        ("int4", False, "block"),
        ("int4", True, "row"),
        ("int4-tensor", True, "tensor"),
    ):
        facts = decoding_facts(parse_format(text), torch.float32, in_pieces=in_pieces)
        assert facts.shared == shared


def test_a_stored_exponent_of_zero_has_its_unit():
    named = parse_format("bfp4")  # the largest magnitude is that of 2^-127, the unit 2^-129
    scales = shared_power_facts(named.element, named.scale, torch.float32, None)
    facts = encoding_facts(named, scales, in_pieces=False)
    assert facts.lowest_unit == struct.unpack("q", struct.pack("d", 2.0**-129))[0]


def test_a_narrower_dtype_bounds_what_stands_alone():
    named = parse_format("bf16")
    assert decoding_facts(named, torch.float16, in_pieces=True).bound == 65280.0
    assert decoding_facts(named, torch.bfloat16, in_pieces=True).bound == 0.0
