"""Which rule assigns candidates; the losses themselves are in tests/convert/test_losses.py."""

import numpy as np
import pytest

from mpq.cli.convert import build_parser
from mpq.cli.convert_candidates import chosen, refuse_other_profile
from mpq.errors import PlanError
from mpq.profiling.table import DamageTable
from tests.convert.test_assignment import losses, texts


def parsed(*flags):
    given = ["--candidate-formats", "int2-g32,int3-g32,int4-g32", "--out", "ck"]
    return build_parser().parse_args([*given, *flags])


def test_a_budget_or_a_threshold_decides():
    found = losses({"a": (512.0, 51.2, 5.12)})
    assert texts(chosen(parsed("--target-bits", "4.5"), found)) == {"a": "int4-g32"}
    assert texts(chosen(parsed("--loss-threshold", "0.2"), found)) == {"a": "int3-g32"}


def test_a_profile_weighs_the_losses(tmp_path):
    found = losses({"calm": (100.0, 50.0, 10.0), "touchy": (1.0, 0.5, 0.1)})
    table = DamageTable(
        sites=("calm", "touchy"),
        formats=("int2-g32", "int3-g32", "int4-g32"),
        damage=np.array([[0.3, 0.2, 0.1], [9.0, 3.0, 0.1]]),
        method="kl",
        tokens=8,
        judge_every=1,
        seed=0,
        fingerprint="f",
        data_sha256="d",
    )
    table.write(tmp_path / "sensitivity_kl.csv")
    flags = ("--target-bits", "3.5", "--profile", str(tmp_path / "sensitivity_kl.csv"))
    assert texts(chosen(parsed(*flags), found)) == {"calm": "int2-g32", "touchy": "int4-g32"}
    refuse_other_profile(tmp_path / "sensitivity_kl.csv", "f")
    with pytest.raises(PlanError, match="a profile counts for the weights it was measured on, f"):
        refuse_other_profile(tmp_path / "sensitivity_kl.csv", "g")
    plain = chosen(parsed(*flags[:2]), found)
    assert texts(plain) == {"calm": "int4-g32", "touchy": "int2-g32"}


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
