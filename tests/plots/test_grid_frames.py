import math
from types import SimpleNamespace

import pytest

from mpq.errors import FormatError, PlanError, RunError
from mpq.files import write_csv, write_toml
from mpq.plans.plan import Plan
from mpq.plots.grid_frames import allocation_rows, sensitivity_rows
from tests.plots.artefacts import DAMAGE, FORMATS, make_run


def test_a_plan_becomes_one_cell_a_kind_and_block():
    allocation = allocation_rows(Plan.of(FORMATS))
    cells = {
        (row.label, row.section, row.block): (row.bits, row.format)
        for row in allocation.rows.itertuples()
    }
    assert cells == {
        ("q_proj", "weights", 0): (4.5, "bfp4"),
        ("q_proj", "weights", 1): (6.5, "bfp6"),
        ("down_proj", "weights", 0): (8.5, "bfp8"),
        ("down_proj", "weights", 1): (4.5, "bfp4"),
        ("lm_head", "weights", -1): (8.5, "bfp8"),
        ("down_proj", "inputs", 0): (6.5, "bfp6"),
        ("k", "attention", 0): (8.5, "bfp8"),
    }
    assert list(allocation.formats["format"]) == ["bfp4", "bfp6", "bfp8"]


def test_experts_of_a_block_share_a_cell_of_their_mean():
    names = [f"model.layers.0.mlp.experts.{index}.w1.weight" for index in range(4)]
    plan = Plan.of(dict(zip(names, ["bfp4", "bfp4", "bfp4", "bfp8"], strict=True)))
    (cell,) = allocation_rows(plan).rows.to_dict("records")
    assert (cell["bits"], cell["format"]) == (5.5, "")


def test_the_plan_of_a_run_a_file_and_a_value_are_one(tmp_path):
    folder = make_run(tmp_path)
    value = allocation_rows(Plan.of(FORMATS)).rows.to_dict()
    assert allocation_rows(folder).rows.to_dict() == value
    assert allocation_rows(folder, plan="front_00").rows.to_dict() == value
    assert allocation_rows(folder / "plans" / "front_00.toml").rows.to_dict() == value


def test_a_run_of_several_plans_asks_which(tmp_path):
    folder = make_run(tmp_path)
    write_toml(folder / "plans" / "best.toml", {"formats": FORMATS})
    with pytest.raises(RunError, match=r"2 files, so name the plan; it holds best, front_00"):
        allocation_rows(folder)
    with pytest.raises(RunError, match=r"no plan 'worst'; it holds best, front_00"):
        allocation_rows(folder, plan="worst")


def test_a_plan_of_globs_is_refused(tmp_path):
    path = tmp_path / "plan.toml"
    write_toml(path, {"formats": {"*.weight": "bfp4"}})
    with pytest.raises(PlanError, match=r"rules are globs: \*\.weight; resolve"):
        allocation_rows(path)


def test_an_empty_plan_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(PlanError, match="at least one site"):
        allocation_rows(Plan.of({}))
    path = tmp_path / "plan.toml"
    write_toml(path, {"formats": {"a.weight": "bfp4x"}})
    with pytest.raises(FormatError, match=r"a\.weight.*bfp4x"):
        allocation_rows(path)


def test_a_table_becomes_a_full_grid_in_the_order_of_the_model(tmp_path):
    rows = sensitivity_rows(make_run(tmp_path))
    assert list(rows["row"]) == [0, 0, 1, 1, 2, 2]
    assert list(rows["format"]) == ["bfp2", "bfp4"] * 3
    assert list(rows["label"].drop_duplicates()) == ["q_proj", "down_proj", "lm_head"]
    assert list(rows["block"].drop_duplicates()) == [0, 1, -1]
    for row in rows.itertuples():
        wanted = DAMAGE.get((row.site, row.format), math.nan)
        assert row.damage == wanted or (math.isnan(wanted) and math.isnan(row.damage))
    assert rows["damage"].isna().sum() == 1


def test_a_table_in_memory_and_its_file_are_one(tmp_path):
    folder = make_run(tmp_path)
    listed = [
        {"site": site, "format": text, "damage": value} for (site, text), value in DAMAGE.items()
    ]
    memory = sensitivity_rows(SimpleNamespace(rows=lambda: listed))
    for source in (folder, folder / "sensitivity_fisher.csv"):
        assert sensitivity_rows(source).equals(memory)


def test_damages_come_with_the_unit_of_their_method(tmp_path):
    def unit_of(**facts):
        listed = [{"site": "a.weight", "format": "bfp4", "damage": 1.0, **facts}]
        return set(sensitivity_rows(SimpleNamespace(rows=lambda: listed))["unit"])

    assert unit_of() == unit_of(method="kl") == {"nats per token"}
    assert unit_of(method="mse") == {"squared error"}


def test_a_run_of_several_tables_asks_which(tmp_path):
    folder = make_run(tmp_path)
    (folder / "sensitivity_kl.csv").write_bytes((folder / "sensitivity_fisher.csv").read_bytes())
    with pytest.raises(RunError, match="2 files, so name the damage table"):
        sensitivity_rows(folder)
    assert len(sensitivity_rows(folder, method="kl")) == 6
    with pytest.raises(RunError, match="no damage table 'sensitivity_mse'"):
        sensitivity_rows(folder, method="mse")


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(RunError, match="there is no damage table; mpq-profile sensitivity"):
        sensitivity_rows(tmp_path / "none.csv")
    path = tmp_path / "table.csv"
    write_csv(path, [{"site": "a.weight", "bits": 4}])
    with pytest.raises(RunError, match="it lacks damage, format"):
        sensitivity_rows(path)
    path.write_text("site,format,damage\n")
    with pytest.raises(RunError, match="it has no row"):
        sensitivity_rows(path)
