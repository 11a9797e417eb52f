"""Which rule assigns candidates; the losses themselves are in tests/convert/test_losses.py."""

from mpq.cli.convert import build_parser
from mpq.cli.convert_candidates import chosen
from tests.convert.test_assignment import losses, texts


def parsed(*flags):
    given = ["--candidate-formats", "int2-g32,int3-g32,int4-g32", "--out", "ck"]
    return build_parser().parse_args([*given, *flags])


def test_a_budget_or_a_threshold_decides():
    found = losses({"a": (512.0, 51.2, 5.12)})
    assert texts(chosen(parsed("--target-bits", "4.5"), found)) == {"a": "int4-g32"}
    assert texts(chosen(parsed("--loss-threshold", "0.2"), found)) == {"a": "int3-g32"}


def test_ties_and_shares_are_obeyed():
    rows = {"q": (9.0, 1.0, 0.0), "k": (1.0, 1.0, 1.0), "o": (2.0, 1.0, 0.0)}
    found = losses(rows, groups={"q": "qk", "k": "qk"}, energies={"q": 1.0, "k": 1.0, "o": 1e-3})
    budget = ("--target-bits", "3.5")
    tied = chosen(parsed(*budget), found)
    assert tied["q"] == tied["k"]
    free = chosen(parsed(*budget, "--tie", "none"), found)
    assert free["q"] != free["k"]
    relative = chosen(parsed(*budget, "--tie", "none", "--relative-loss"), found)
    assert str(relative["o"]) == "int4-g32"
