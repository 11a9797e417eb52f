import numpy as np
import pytest

from mpq.errors import RunError
from mpq.files import write_csv
from mpq.plots.variance_frames import variance_rows
from mpq.run import Run
from tests.plots.artefacts import make_variance

MODEL = "model.layers"


def lines(rows):
    return {
        (row.section, row.label): [
            some.variance for some in rows[rows["line"] == row.line].itertuples()
        ]
        for row in rows.drop_duplicates("line").itertuples()
    }


def test_a_kind_of_tensor_is_a_line_over_the_blocks(tmp_path):
    rows = variance_rows(make_variance(tmp_path))
    assert lines(rows) == {
        ("weights", "q_proj"): [0.25, 0.125],
        ("weights", "down_proj"): [0.5, 1.0],
        ("attention", "q"): [4.0, 8.0],
    }
    assert list(rows["line"]) == [0, 0, 1, 1, 2, 2]
    assert list(rows["block"]) == [0, 1] * 3
    assert "lm_head" not in set(rows["label"])


def test_a_run_a_path_and_a_file_are_one(tmp_path):
    folder = make_variance(tmp_path)
    expected = variance_rows(folder)
    for source in (str(folder), Run(folder), folder / "variance.csv"):
        assert variance_rows(source).equals(expected)


def test_tensors_that_are_one_share_a_line(tmp_path):
    sites = {
        f"{MODEL}.{block}.self_attn.{kind}_proj.{role}": (8, 0.1, value * 2**block)
        for block in (0, 1)
        for role, kinds in (("input", {"q": 1.0, "k": 1.0, "v": 1.0, "o": 3.0}), ("weight", {}))
        for kind, value in (kinds or {"q": 1.0, "k": 2.0}).items()
    }
    assert lines(variance_rows(make_variance(tmp_path, sites))) == {
        ("weights", "q_proj"): [1.0, 2.0],
        ("weights", "k_proj"): [2.0, 4.0],
        ("inputs", "q_proj, k_proj, v_proj"): [1.0, 2.0],
        ("inputs", "o_proj"): [3.0, 6.0],
    }


def test_lines_that_agree_in_one_block_only_stay_apart(tmp_path):
    sites = {
        f"{MODEL}.{block}.self_attn.{kind}_proj.input": (8, 0.0, variance)
        for kind, both in {"q": (1.0, 2.0), "k": (1.0, 3.0)}.items()
        for block, variance in enumerate(both)
    }
    assert len(lines(variance_rows(make_variance(tmp_path, sites)))) == 2


def test_experts_of_a_block_count_as_all_their_values_together(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.normal(1e4 + index, 1 + index, size=100 * (index + 1)) for index in range(3)]
    sites = {
        f"{MODEL}.0.mlp.experts.{index}.w1.weight": (len(x), x.mean(), x.var())
        for index, x in enumerate(parts)
    }
    ((variance,),) = lines(variance_rows(make_variance(tmp_path, sites))).values()
    np.testing.assert_allclose(variance, np.concatenate(parts).var(), rtol=1e-10)


def test_what_is_no_variance_table_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"there is no variance table; mpq-profile variance makes"):
        variance_rows(tmp_path)
    path = tmp_path / "variance.csv"
    write_csv(path, [{"site": "a.weight", "mean": 1}])
    with pytest.raises(RunError, match="it lacks count, variance"):
        variance_rows(path)
    path.write_text("site,count,mean,variance\n")
    with pytest.raises(RunError, match="it has no row"):
        variance_rows(path)
    make_variance(tmp_path, {"lm_head.weight": (1, 0.0, 1.0)})
    with pytest.raises(RunError, match="none of the 1 sites lies in a block"):
        variance_rows(tmp_path)
