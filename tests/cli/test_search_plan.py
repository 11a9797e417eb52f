from pathlib import Path

import pytest

from mpq.cli.search_plan import print_dry_run
from mpq.cli.search_wiring import load_subject
from mpq.errors import BudgetError, ConfigError
from tests.cli.test_search_wiring import config_of


def test_a_dry_run_counts_the_work(capsys):
    config = config_of(
        search={"trials": 10, "refine": 5, "budget": {"weight_bits": 4.5}},
        space={"fixed": {"*.0.self_attn.o_proj.weight": "bfp8"}},
        prove={"plans": 3},
    )
    print_dry_run(load_subject(config), Path("somewhere"))
    said = capsys.readouterr().out
    # 3 windows in batches of 2: 2 a trial and for the reference; 2 windows are held out: 1 batch
    # for each of 3 at the one uniform plan within the budget, 3 of the front, the reference.
    assert f"{16 * 2 + 7 * 1} batches" in said
    for part in ("41 searched in 23 groups, 1 fixed", "fixed at bfp8", "weight_bits 4.5", "10^7"):
        assert part in said


def test_a_dry_run_counts_the_plans_that_are_asked_for(capsys):
    subject = load_subject(config_of(search={"trials": 10, "refine": 5}, prove={"plans": 3}))
    print_dry_run(subject, Path("somewhere"), [4.1, 4.7])
    said = capsys.readouterr().out
    # Two uniform plans and two costs, 3 plans proven at each; 5 plans measured at each cost.
    assert f"at most {(15 + 2 * 5 + 1) * 2 + (4 * 3 + 3 + 1) * 1} batches" in said
    assert "4.1 bits, 4.7 bits: at most 10 plans" in said
    with pytest.raises(BudgetError, match="out of reach: 9"):
        print_dry_run(subject, Path("somewhere"), [9.0])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("kl", "each at most one forward pass over 2 windows"),
        ("fisher", "from one forward and backward pass over each of 2 windows,"),
        ("shares", "backward pass over each of 2 windows for each of 2 formats"),
    ],
)
def test_a_dry_run_says_what_the_profile_takes(capsys, method, said):
    formats = {"formats": ["bfp3", "bfp4"]}
    subject = load_subject(config_of(profile={"method": method}, space=formats))
    print_dry_run(subject, Path("somewhere"))
    assert said.rstrip(",") in capsys.readouterr().out


def test_a_dry_run_refuses_what_the_search_would(capsys):
    subject = load_subject(config_of(search={"budget": {"weight_bits": 2.0}}))
    with pytest.raises(BudgetError, match="cheapest plan"):
        print_dry_run(subject, Path("somewhere"))
    subject = load_subject(config_of(search={"objectives": ["kl"]}))
    with pytest.raises(ConfigError, match="needs a cost to trade"):
        print_dry_run(subject, Path("somewhere"))
    assert capsys.readouterr().out == ""
