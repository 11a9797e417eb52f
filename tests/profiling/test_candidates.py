import pytest

from mpq.errors import PlanError
from mpq.formats.zoo import parse_format
from mpq.plans.site import Site
from mpq.profiling.candidates import candidates_of


def site(name, aliases=()):
    return Site(
        name=name, role="weight", kind="x", block=0, shape=(4, 4), group=name, aliases=aliases
    )


SITES = (site("a.up.weight"), site("a.down.weight"), site("a.up.input"), site("e.weight", ("h",)))
BFP4, BFP6, INT8 = (parse_format(text) for text in ("bfp4", "bfp6", "int8"))


def test_patterns_choose_and_the_first_special_pattern_counts():
    found = candidates_of(
        SITES,
        patterns=("a.*.weight", "h"),
        formats=[BFP4, BFP6],
        formats_for={"*down*": [INT8], "a.*": [BFP6]},
    )
    assert {one.name: formats for one, formats in found.items()} == {
        "a.up.weight": (BFP6,),
        "a.down.weight": (INT8,),
        "e.weight": (BFP4, BFP6),
    }


def test_patterns_that_match_nothing_are_all_named():
    with pytest.raises(PlanError, match=r"these match none: weight, \*\.q\. There are 4"):
        candidates_of(SITES, patterns=("*", "weight"), formats=[BFP4], formats_for={"*.q": [BFP6]})
