import pytest

from mpq.convert.targets import (
    input_misfit,
    kind_of,
    misfit,
    nearest_format,
    nearest_plan,
    plan_faults,
    refuse,
)
from mpq.errors import ExportError
from mpq.formats.zoo import examples, parse_format
from mpq.plans.plan import Plan


@pytest.mark.parametrize("target", ["compressed-tensors", "gptq"])
@pytest.mark.parametrize("text", examples())
def test_the_nearest_format_fits_and_has_as_many_bits(text, target):
    named = parse_format(text)
    near = nearest_format(named, target)
    assert not misfit(near, target)
    assert near.bits_per_value >= min(named.bits_per_value, 16)
    assert (near == named) == (not misfit(named, target))


@pytest.mark.parametrize(
    ("text", "target", "near"),
    [
        ("nf4-g64", "compressed-tensors", "int4-g64"),
        ("int4-g128", "compressed-tensors", "int4-g128"),
        ("int4a-g128", "compressed-tensors", "int4-g64"),
        ("int4f-g128", "compressed-tensors", "int4f-g128"),
        ("int4f-g128-sf16", "gptq", "int4f-g128-sf16"),
        ("int5f-g48", "gptq", "int8f"),
        ("int4f-g48", "gptq", "int4f-g32"),
        ("log8", "compressed-tensors", "fp8-e4m3"),
        ("mxfp8-e5m2", "compressed-tensors", "mxfp8-e4m3"),
        ("int5", "gptq", "int8"),
        ("mxfp4", "gptq", "int4-g64"),
        ("nf4-g64", "gptq", "int4-g64"),
        ("fixed16.8", "gptq", "bf16"),
        ("fp32", "gptq", "fp32"),
    ],
)
def test_the_nearest_format_is_the_one_that_a_reader_expects(text, target, near):
    assert str(nearest_format(parse_format(text), target)) == near


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("int4-g128", "integer"),
        ("int4f-g128", "integer"),
        ("bfp6", "integer"),
        ("fixed8.4", "integer"),
        ("mxint8", "integer"),
        ("fp8-e4m3", "fp8"),
        ("nvfp4", "nvfp4"),
        ("nvfp4-token", None),
        ("mxfp4", "mxfp4"),
        ("mxfp6-e2m3", "mxfp6"),
        ("mxfp6-e3m2", None),
        ("mxfp8-e4m3", "mxfp8"),
        ("bf16", "dense"),
        ("int16", None),
        ("minifloat-e4m3", None),
        ("bl8", None),
    ],
)
def test_a_kind_says_how_a_weight_is_stored(text, kind):
    assert kind_of(parse_format(text)) == kind


def test_a_plan_for_a_target_keeps_what_fits_and_leaves_out_other_activations():
    plan = Plan.of(
        {
            "a.weight": "nf4-g64",
            "b.weight": "int3-g128",
            "a.input": "int8",
            "b.input": "bfp8",
            "c.k": "int8",
        }
    )
    near = nearest_plan(plan, "compressed-tensors")
    found = {site: str(named) for site, named in near.formats.items()}
    assert found == {"a.weight": "int4-g64", "b.weight": "int3-g128", "a.input": "int8"}
    assert not plan_faults(near, "compressed-tensors")
    assert set(nearest_plan(plan, "gptq").formats) == {"a.weight", "b.weight"}


def test_every_fault_of_a_plan_is_told_at_once_with_the_nearest_format():
    plan = Plan.of({"a.weight": "nf4-g64", "b.weight": "int4", "b.input": "int8", "c.k": "int8"})
    with pytest.raises(ExportError, match="cannot hold 3 of the plan's tensors") as caught:
        refuse(plan_faults(plan, "gptq"), "gptq")
    message = str(caught.value)
    assert "a.weight in nf4-g64: it holds integers only; nearest: int4-g64" not in message
    assert "a.weight in nf4-g64: no layout of it holds such values; nearest: int4-g64" in message
    assert "b.input in int8: it names no format of activations; nearest: left as it is" in message
    assert "c.k in int8: it quantises weights and inputs of layers only" in message


def test_nothing_is_refused_where_nothing_is_wrong():
    refuse([], "gptq")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("mxfp4", "integers only"), ("int5", "2, 3, 4, 8 bits"), ("int4-g48", "whole rows or 16")],
)
def test_a_misfit_of_gptq_says_why(text, reason):
    assert reason in misfit(parse_format(text), "gptq")


def test_inputs_that_a_target_can_name():
    assert not input_misfit(parse_format("fp8-e4m3-token"), "compressed-tensors")
    assert input_misfit(parse_format("fp8-e4m3-token"), "gptq")
