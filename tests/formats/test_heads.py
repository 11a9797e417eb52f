"""Heads: each names its own formats and no others."""

import pytest

from mpq.formats import heads
from mpq.formats.element import IntegerElement, LogElement
from mpq.formats.zoo import parse_format


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fixed8.-4", {"fixed": "fixed8.-4"}),
        ("int4-g64", {"integer": "int4"}),
        ("int4a", {"integer": "int4a"}),
        ("int4f-g64", {"integer": "int4f"}),
        ("minifloat-e4m3(bias=9)", {"float": "e4m3"}),
        ("dmf-e4m3", {"dmf": "e4m3"}),
        ("fp8-e4m3", {}),
        ("bfp6-b32", {"bfp": "bfp6"}),
        ("bl4", {"bl": "bl4"}),
        ("bmf8-e4m3", {"bmf": "8-e4m3"}),
        ("mxfp8-e4m3", {"mxfp": "8-e4m3"}),
        ("mxint8", {}),
        ("nvfp4", {}),
    ],
)
def test_who_has_a_head_for_what(text, expected):
    named = parse_format(text)
    found = {
        "fixed": heads.fixed_head(named),
        "integer": heads.integer_head(named),
        "float": heads.float_head(named),
        "dmf": heads.float_head(named, implicit_one=False),
        "bfp": heads.shared_head(named, IntegerElement, "bfp"),
        "bl": heads.shared_head(named, LogElement, "bl"),
        "bmf": heads.shared_float_head(named, microscaling=False),
        "mxfp": heads.shared_float_head(named, microscaling=True),
    }
    assert {name: head for name, head in found.items() if head} == expected


def test_nothing_comes_after_a_prefix_alone():
    assert heads.after("bmf", "8-e4m3") == "bmf8-e4m3"
    assert heads.after("bmf", "") == ""
