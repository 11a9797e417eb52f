import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import FormatError
from mpq.formats.zoo import parse_format
from mpq.plans.plan import SCHEMA, Change, Plan

BFP4, BFP6, INT4 = map(parse_format, ("bfp4", "bfp6", "int4-g128"))
FORMATS = st.sampled_from(["bfp4", "bfp6", "int4-g128", "mxfp4", "nvfp4", "fp32"])
TABLES = st.dictionaries(st.text("ab.", min_size=1, max_size=5), FORMATS, max_size=6)


def test_formats_are_given_as_text_or_as_values():
    assert Plan.of({"a": "bfp4", "b": BFP6}) == Plan(formats={"b": BFP6, "a": BFP4})


def test_every_text_that_is_no_format_is_named_with_its_site():
    with pytest.raises(FormatError, match=r"(?s)^a\.weight: .*bfq4.*\nc\.weight: .*int99x"):
        Plan.of({"a.weight": "bfq4", "b.weight": "bfp4", "c.weight": "int99x"})


@pytest.mark.parametrize("value", [3, None, ["bfp4"]])
def test_a_format_is_text_or_a_value(value):
    with pytest.raises(FormatError, match=r"a: a format is text or a Format, not "):
        Plan.of({"a": value})


def test_the_order_of_sites_is_no_part_of_a_plan():
    one, two = Plan.of({"b": "bfp4", "a": "bfp6"}), Plan.of({"a": "bfp6", "b": "bfp4"})
    assert (one, hash(one), one.digest) == (two, hash(two), two.digest)
    assert list(one.formats) == ["a", "b"]


def test_the_model_is_part_of_equality_and_not_of_the_digest():
    one = Plan.of({"a": "bfp4"}, model="m", fingerprint="f")
    assert one != Plan.of({"a": "bfp4"})
    assert one.digest == Plan.of({"a": "bfp4"}).digest
    assert one.schema == SCHEMA


@given(TABLES, TABLES)
def test_digests_agree_exactly_where_formats_do(one, two):
    assert (Plan.of(one).digest == Plan.of(two).digest) == (
        Plan.of(one).formats == Plan.of(two).formats
    )


def test_names_and_formats_do_not_run_together_in_the_digest():
    assert Plan.of({"abfp4": "bfp4"}).digest != Plan.of({"a": "bfp4", "bfp4": "bfp4"}).digest


def test_the_digest_is_the_same_in_every_process_and_version():
    # A changed digest orphans what studies and caches stored under the old one.
    assert Plan.of({}).digest == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert Plan.of({"a": "bfp4"}).digest == (
        "b6bc12ea312b96b425ccffc81ffca1c1b223c2a2416d755c14b9b8abb4991ffc"
    )


def test_a_plan_cannot_be_changed():
    plan = Plan.of({"a": "bfp4"})
    with pytest.raises(TypeError):
        plan.formats["a"] = BFP6
    with pytest.raises(FrozenInstanceError):
        plan.model = "other"


def test_a_plan_keeps_no_hold_on_the_mapping_it_was_made_from():
    table = {"a": BFP4}
    plan = Plan(formats=table)
    table["a"] = BFP6
    assert plan.formats["a"] == BFP4


def test_a_plan_can_be_pickled():
    plan = Plan.of({"a": "nvfp4", "b": "int4-g128"}, model="m", fingerprint="f")
    back = pickle.loads(pickle.dumps(plan))
    assert (back, back.digest, hash(back)) == (plan, plan.digest, hash(plan))


def test_replace_changes_adds_and_takes_out():
    plan = Plan.of({"a": "bfp4", "b": "bfp4"}, model="m", fingerprint="f")
    changed = plan.replace({"a": "bfp6", "b": None, "c": INT4, "d": None})
    assert changed == Plan.of({"a": "bfp6", "c": "int4-g128"}, model="m", fingerprint="f")
    assert plan == Plan.of({"a": "bfp4", "b": "bfp4"}, model="m", fingerprint="f")


def test_replace_refuses_what_is_no_format():
    with pytest.raises(FormatError, match=r"b: .*bfq4"):
        Plan.of({"a": "bfp4"}).replace({"b": "bfq4"})


def test_diff_lists_what_changes_in_order_of_names():
    before = Plan.of({"a": "bfp4", "b": "bfp4", "c": "bfp4"})
    after = Plan.of({"d": "bfp4", "a": "bfp6", "b": "bfp4"})
    assert before.diff(after) == (
        Change(site="a", before=BFP4, after=BFP6),
        Change(site="c", before=BFP4, after=None),
        Change(site="d", before=None, after=BFP4),
    )


@given(TABLES, TABLES)
def test_a_diff_leads_from_one_plan_to_the_other(one, two):
    before, after = Plan.of(one), Plan.of(two)
    steps = {change.site: change.after for change in before.diff(after)}
    assert before.replace(steps) == after
    assert not after.diff(after)
