"""What kernels are told of elements: numbers that the element and its arithmetic fix."""

import dataclasses
import struct

import pytest
import torch

from mpq.formats.element import FloatElement, IntegerElement, LogElement
from mpq.formats.format import NAMED_FLOATS
from mpq.formats.zoo import NF4, parse_format
from mpq.kernels.triton_elements import held_facts, rounding_facts

E4M3 = NAMED_FLOATS["fp8-e4m3"]


def bits(value: float, form: str = "if") -> int:
    return struct.unpack(form[0], struct.pack(form[1], value))[0]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("bfp4", "integer"), ("int4a", "asymmetric"), ("log8", "power"), ("nf4", "table")),
        *(("minifloat-e4m3", "float"), ("minifloat-e3m0", "power"), ("bf16", "bfloat16")),
    ],
)
def test_kinds(text, kind):
    assert rounding_facts(parse_format(text).element).kind == kind


def test_a_float_rounds_in_steps_of_its_binade():
    facts = rounding_facts(E4M3)
    assert (facts.lowest, facts.largest, facts.negative_zero) == (-448.0, 448.0, True)
    assert facts.lowest_binade == bits(2.0**-6)
    assert facts.lowest_binade - facts.step_below == bits(2.0**-9)
    assert facts.turn - bits(8.0) == bits(1 / 8)
    wide = rounding_facts(E4M3, wide=True)
    assert wide.lowest_binade - wide.step_below == bits(2.0**-9, "qd")


def test_twos_complement_reaches_one_lower_unless_bounded():
    element = IntegerElement(width=4, code="two's complement")
    assert rounding_facts(element).lowest == -8.0
    assert rounding_facts(element, bound=5.0).lowest == -5.0
    held = held_facts(element, torch.float16)
    assert (held.largest, held.reach) == (7.0, 8.0)


def test_a_log_without_zero_keeps_none():
    assert rounding_facts(LogElement(width=4)).keeps_zero
    assert not rounding_facts(LogElement(width=4, zero=False)).keeps_zero


def test_a_table_is_its_thresholds():
    facts = rounding_facts(NF4)
    assert facts.first == -1.0
    assert [value for _, value in facts.table] == list(NF4.values[1:])
    held = held_facts(NF4, torch.float16)
    assert held.positive[0] == held.negative[0] == 0.0
    assert len(held.positive) + len(held.negative) == 17


def test_facts_are_plain_values_that_a_kernel_can_be_compiled_for():
    for facts in (rounding_facts(E4M3), held_facts(E4M3, torch.bfloat16)):
        assert hash(facts) == hash(dataclasses.replace(facts))
        assert eval(repr(facts), {type(facts).__name__: type(facts)}) == facts


def test_a_dtype_holds_what_rounds_below_its_end():
    element = FloatElement(exponent=2, mantissa=1)
    assert 65519 < held_facts(element, torch.float16).bound < 65520
    assert held_facts(element, torch.float16).threshold == 65504
