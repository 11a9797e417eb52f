import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from mpq.errors import RunError
from mpq.plans.plan import Plan
from mpq.profiling.table import COLUMNS, DamageTable


def make_table(damage, sites=("a", "b"), formats=("bfp4", "bfp6"), **facts):
    return DamageTable(
        sites=sites,
        formats=formats,
        damage=np.array(damage, dtype=np.float64),
        **{
            "seed": 0,
            "method": "kl",
            "tokens": 9,
            "fingerprint": "f",
            "data_sha256": "d",
            **facts,
        },
    )


def test_written_and_read_back_to_the_bit(tmp_path):
    table = make_table([[0.1, 1e-17], [math.inf, math.nan]])
    table.write(tmp_path / "t.csv")
    back = DamageTable.read(tmp_path / "t.csv")
    assert (back.method, back.tokens, back.fingerprint, back.data_sha256) == ("kl", 9, "f", "d")
    assert (back.sites, back.formats) == (table.sites, table.formats)
    np.testing.assert_array_equal(back.damage, table.damage)
    header = (tmp_path / "t.csv").read_text().splitlines()[0]
    assert header == ",".join(COLUMNS)


def test_pairs_that_were_not_measured_have_no_row():
    rows = make_table([[0.1, math.nan], [math.nan, 0.2]]).rows()
    assert [(row["site"], row["format"], row["damage"]) for row in rows] == [
        ("a", "bfp4", 0.1),
        ("b", "bfp6", 0.2),
    ]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"no damage table at .*x\.csv"):
        DamageTable.read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "site,format\na,bfp4\n",
        ",".join(COLUMNS) + "\n",
        ",".join(COLUMNS) + "\na,bfp4,much,kl,9,0,f,d\n",
        ",".join(COLUMNS) + "\na,bfp4,1,kl,9,0,f,d\na,bfp6,1,kl,8,0,f,d\n",
        ",".join(COLUMNS) + "\na,bfp4,1,kl\n",
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(RunError, match=r"t\.csv is not a damage table"):
        DamageTable.read(tmp_path / "t.csv")


def test_select_by_any_name():
    chosen = make_table([[1, 2], [3, 4]]).select(["b", "z"], ["bfp6", "bfp4", "int4"])
    np.testing.assert_array_equal(chosen, [[4, 3, math.nan], [math.nan] * 3])


def test_with_damage_adds_and_replaces():
    table = make_table([[1, 2], [3, 4]]).with_damage({("c", "bfp4"): 5.0, ("a", "bfp6"): 6.0})
    assert table.sites == ("a", "b", "c")
    np.testing.assert_array_equal(table.damage, [[1, 6], [3, 4], [5, math.nan]])


def test_merge_keeps_both_and_prefers_the_other():
    first = make_table([[1, 2], [3, math.nan]])
    second = make_table([[7, math.nan], [8, 9]], sites=("b", "c"))
    merged = first.merge(second)
    assert merged.sites == ("a", "b", "c")
    np.testing.assert_array_equal(merged.damage, [[1, 2], [7, math.nan], [8, 9]])


def test_merge_names_everything_that_differs():
    other = make_table([[1, 2], [3, 4]], method="fisher", tokens=8)
    with pytest.raises(RunError, match=r"method \(kl and fisher\), tokens \(9 and 8\)"):
        make_table([[1, 2], [3, 4]]).merge(other)


def test_prediction_adds_damages_up():
    table = make_table([[1.0, 2.0], [3.0, 4.0]])
    assert table.predict(Plan.of({"a": "bfp6", "b": "bfp4"})) == 5.0
    assert table.predict(Plan.of({"a": "fp32"})) == 0.0


def test_prediction_without_the_pair_is_refused():
    with pytest.raises(RunError, match=r"lacks 2 of the plan's 3 pairs: b = bfp8, z = bfp4"):
        make_table([[1, 2], [3, 4]]).predict(Plan.of({"a": "bfp4", "b": "bfp8", "z": "bfp4"}))


def test_rank_correlation_is_scipys_over_common_pairs():
    generator = np.random.default_rng(0)
    sites = tuple("abcdefgh")
    x = generator.random((8, 2))
    y = x + 0.3 * generator.random((8, 2))
    y[3, 1] = math.nan
    x[4, 0] = math.inf
    shuffled = list(reversed(sites))
    mine = make_table(x, sites=sites)
    others = make_table(y[::-1], sites=tuple(shuffled), method="fisher")
    found = mine.rank_correlation(others)
    common = np.isfinite(x) & np.isfinite(y)
    assert found.num_pairs == 14
    assert found.overall == pytest.approx(spearmanr(x[common], y[common]).statistic)
    rows = common[:, 1]
    assert found.by_format["bfp6"] == pytest.approx(spearmanr(x[rows, 1], y[rows, 1]).statistic)
    assert found.total == pytest.approx(x[common].sum())
    assert found.other_total == pytest.approx(y[common].sum())


def test_rank_correlation_of_too_few_pairs_is_nan():
    found = make_table([[1, 2], [3, 4]]).rank_correlation(make_table([[5]], ("a",), ("bfp4",)))
    assert found.num_pairs == 1
    assert math.isnan(found.overall)
