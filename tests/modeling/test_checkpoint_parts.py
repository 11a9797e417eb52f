"""The tensors that stand for a packed weight, and the facts beside them."""

import pytest
import torch

from mpq import encode
from mpq.errors import FormatError
from mpq.modeling.checkpoint_parts import (
    PackedFacts,
    facts_from,
    header_of,
    packed_from,
    parts_of,
)
from mpq.modeling.packed import PackedWeight
from tests.contracts.zoo import ALL
from tests.modeling.checkpoints import same

BLOCKS = ["bfp6(exponent=5,block=4x16)", "int4(block=2x8)", "fp32"]
SHAPES = {(6, 40): -1, (40, 6): 0, (5, 17): -1, (9,): 0, (0, 8): -1}


@pytest.mark.parametrize("text", [*ALL, *BLOCKS])
def test_the_parts_are_just_those_that_the_facts_foretell(text):
    for shape, axis in SHAPES.items():
        w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        packed = PackedWeight(encoded=encode(w, text, axis))
        facts, parts = PackedFacts.of(packed), parts_of(packed)
        there = {name: (part.dtype, part.numel()) for name, part in parts.items()}
        assert there == facts.part_sizes()
        assert all(part.ndim == 1 for part in parts.values())
        assert same(packed_from(facts, parts), packed)


def test_an_order_is_stored_in_the_32_bits_that_are_counted():
    order = torch.tensor([2, 0, 1, 3])
    packed = PackedWeight(encoded=encode(torch.randn(3, 4), "int4"), order=order)
    parts = parts_of(packed)
    assert parts["order"].dtype == torch.int32
    assert PackedFacts.of(packed).part_sizes()["order"] == (torch.int32, 4)
    assert same(packed_from(PackedFacts.of(packed), parts), packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_header_reads_back(dtype):
    facts = PackedFacts.of(PackedWeight(encoded=encode(torch.randn(3, 4).to(dtype), "bfp4", 0)))
    assert facts_from(header_of({"a.weight": facts})) == {"a.weight": facts}


@pytest.mark.parametrize(
    "header", ["", "{}", "[]", '{"sites": {"a": {"format": "int99"}}}', '{"sites": []}']
)
def test_a_header_of_another_kind_is_refused(header):
    with pytest.raises(FormatError, match="this header describes no packed weights"):
        facts_from(header)
