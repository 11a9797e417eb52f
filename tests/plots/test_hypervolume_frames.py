from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import RunError
from mpq.files import write_csv
from mpq.plots.hypervolume_frames import hypervolume_history, hypervolume_rows
from mpq.run import Run
from tests.plots.artefacts import make_run

WORST, BEST = np.array([6.0, 6.0]), np.array([0.0, 0.0])


def write_trials(folder, points, **columns):
    """A run of two uniform plans, (8, 0.01) and (2, 1), then plans of (bits, KL)."""
    uniform = [("uniform", "bfp8", 8.0, 0.01), ("uniform", "bfp2", 2.0, 1.0)]
    plans = [*uniform, *(("sampler", "", bits, kl) for bits, kl in points)]
    rows = [
        {"number": n, "source": source, "anchor": anchor, "weight_bits": bits, "kl": kl}
        | {"state": "complete", "feasible": 1, "evaluated": 1}
        | {name: values[n] for name, values in columns.items()}
        for n, (source, anchor, bits, kl) in enumerate(plans)
    ]
    write_csv(folder / "trials.csv", rows)
    return folder


def shares(rows, line=None):
    some = rows.rows if line is None else rows.rows[rows.rows["line"] == line]
    return some["median"].tolist()


# --- the area ---------------------------------------------------------------------------------

cells = st.tuples(st.integers(0, 7), st.integers(0, 7))


@given(st.lists(cells, min_size=1, max_size=20))
def test_the_share_is_the_number_of_unit_cells_that_a_point_dominates(points):
    history = hypervolume_history(np.array(points, dtype=float), WORST, BEST)
    for count in range(1, len(points) + 1):
        covered = sum(
            any(x <= a and y <= b for x, y in points[:count]) for a in range(6) for b in range(6)
        )
        assert history[count - 1] == pytest.approx(covered / 36)


def test_the_history_is_optunas_own():
    """Against `plot_hypervolume_history`, which minimises and maximises as the study says."""
    mpl.use("agg")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"])
    points = np.random.default_rng(0).normal(size=(60, 2))
    for point in points:
        study.add_trial(optuna.trial.create_trial(values=point.tolist()))
    worst = np.array([0.8, 1.1])
    axes = optuna.visualization.matplotlib.plot_hypervolume_history(study, worst.tolist())
    theirs = np.asarray(axes.lines[0].get_ydata(), float)
    ours = hypervolume_history(points, worst, worst - 1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_what_is_not_finite_covers_nothing_and_a_box_without_area_is_never_covered():
    points = np.array([[np.nan, 1.0], [1.0, np.inf], [-np.inf, 1.0], [3.0, 3.0]])
    assert hypervolume_history(points, WORST, BEST).tolist() == [0, 0, 0, 0.25]
    assert hypervolume_history(points, WORST, np.array([6.0, 0.0])).tolist() == [0, 0, 0, 0]


def test_a_plan_beyond_the_best_corner_may_pass_one():
    assert hypervolume_history(np.array([[0.0, -6.0]]), WORST, BEST).tolist() == [2.0]


# --- rows -------------------------------------------------------------------------------------


def test_the_uniform_plans_span_the_box_with_kl_as_its_logarithm(tmp_path):
    rows = hypervolume_rows(write_trials(tmp_path, [(5.0, 0.1), (2.0, 0.01), (7.0, 0.02)]))
    assert rows.worst == pytest.approx((8.0, 1.0))
    assert rows.best == pytest.approx((2.0, 0.01))
    assert (rows.x.name, rows.y.name, rows.along) == ("weight_bits", "kl", "trials")
    # The corners cover nothing; half the bits and half the decades cover a quarter.
    assert rows.rows["at"].tolist() == [1, 2, 3, 4, 5]
    assert shares(rows) == pytest.approx([0, 0, 0.25, 1, 1])
    assert set(rows.rows["line"]) == {tmp_path.name}


def test_trials_that_are_on_no_front_count_as_trials_and_cover_nothing(tmp_path):
    states = ["complete"] * 2 + ["pruned", "complete", "complete", "complete"]
    folder = write_trials(
        tmp_path,
        [(2.0, 0.01), (2.0, 0.01), (2.0, 0.01), (5.0, 0.1)],
        state=states,
        feasible=[1, 1, 1, 0, 1, 1],
        evaluated=[1, 1, 1, 1, 0, 1],
    )
    assert shares(hypervolume_rows(folder)) == pytest.approx([0, 0, 0, 0, 0, 0.25])


def test_seconds_of_forward_passes_can_run_along(tmp_path):
    seconds = [1.0, 2.0, 0.5]
    folder = write_trials(tmp_path, [(5.0, 0.1)], forward_seconds=seconds)
    rows = hypervolume_rows(folder, along="forward_seconds")
    assert rows.rows["at"].tolist() == [1.0, 3.0, 3.5]
    assert shares(rows) == pytest.approx([0, 0, 0.25])


def test_seconds_that_nobody_wrote_down_are_an_error(tmp_path):
    with pytest.raises(RunError, match="have no forward_seconds; draw it along the trials"):
        hypervolume_rows(write_trials(tmp_path, []), along="forward_seconds")


def test_a_group_gives_its_median_and_range_up_to_its_shortest_run(tmp_path):
    points = [[(5.0, 0.1)], [(2.0, 0.01)], [(8.0, 1.0), (2.0, 0.01)]]
    runs = [write_trials(tmp_path / str(n), some) for n, some in enumerate(points)]
    rows = hypervolume_rows({"seeds": runs, "one": runs[0]})
    group = rows.rows[rows.rows["line"] == "seeds"]
    assert group["at"].tolist() == [1, 2, 3]
    assert set(group["runs"]) == {3}
    assert group[["low", "median", "high"]].to_numpy()[-1] == pytest.approx([0, 0.25, 1])
    assert shares(rows, "one") == pytest.approx([0, 0, 0.25])


def test_in_seconds_a_group_steps_wherever_one_of_its_runs_does(tmp_path):
    runs = [
        write_trials(tmp_path / "a", [(5.0, 0.1)], forward_seconds=[1.0, 1.0, 1.0]),
        write_trials(tmp_path / "b", [(2.0, 0.01)], forward_seconds=[0.5, 0.5, 1.5]),
    ]
    rows = hypervolume_rows({"both": runs}, along="forward_seconds").rows
    assert rows["at"].tolist() == [0.5, 1.0, 2.0, 2.5]
    assert rows["high"].tolist() == pytest.approx([0, 0, 0, 1])
    assert rows["low"].tolist() == pytest.approx([0, 0, 0, 0])


def test_lines_share_one_box(tmp_path):
    low = write_trials(tmp_path / "low", [(5.0, 0.1)])
    high = write_trials(tmp_path / "high", [(5.0, 0.1)])
    table = pd.read_csv(high / "trials.csv")
    table.loc[0, "kl"] = 0.0001
    table.to_csv(high / "trials.csv", index=False)
    rows = hypervolume_rows([low, Run(high)])
    assert rows.best == pytest.approx((2.0, 0.0001))
    assert shares(rows, "low")[-1] == shares(rows, "high")[-1] == pytest.approx(0.125)


def test_a_study_and_its_run_give_the_same_rows(tmp_path):
    def trial(number, bits, kl, **more):
        result = {"source": "sampler", "anchor": "", "forward_seconds": 2.0} | more
        state = SimpleNamespace(name="COMPLETE")
        return SimpleNamespace(
            number=number, values=[kl, bits], state=state, user_attrs={"result": result}
        )

    study = SimpleNamespace(
        study_name="run",
        metric_names=None,
        directions=[SimpleNamespace(name="MINIMIZE")] * 2,
        user_attrs={"objectives": ["minimize kl", "minimize weight_bits"]},
        trials=[
            trial(0, 8.0, 0.01, source="uniform", anchor="bfp8"),
            trial(1, 2.0, 1.0, source="uniform", anchor="bfp2"),
            trial(3, 5.0, 0.1),  # trial 2 failed
        ],
    )
    run = write_trials(tmp_path / "run", [(5.0, 0.1)], forward_seconds=[2.0] * 3)
    for along in ("trials", "forward_seconds"):
        mine, runs = (hypervolume_rows(source, along=along) for source in (study, run))
        assert mine.rows.to_dict() == runs.rows.to_dict()
        assert (mine.worst, mine.best) == (runs.worst, runs.best)


def test_without_uniform_plans_all_plans_span_the_box():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "maximize"], study_name="mine")
    study.set_metric_names(["weight_bits", "accuracy"])
    for bits, accuracy in ((2.0, 0.5), (4.0, 0.7), (6.0, 0.9)):
        study.add_trial(optuna.trial.create_trial(values=[bits, accuracy]))
    rows = hypervolume_rows(study)
    assert (rows.worst, rows.best) == (pytest.approx((6.0, 0.5)), pytest.approx((2.0, 0.9)))
    assert shares(rows) == pytest.approx([0, 0.25, 0.25])


def test_no_damage_at_all_counts_as_the_least_there_is(tmp_path):
    rows = hypervolume_rows(write_trials(tmp_path, [(5.0, 0.0)]))
    assert shares(rows)[-1] == pytest.approx(0.5)


def test_one_plan_alone_covers_nothing(tmp_path):
    write_csv(tmp_path / "trials.csv", [{"number": 0, "kl": 0.1, "weight_bits": 4.0}])
    assert shares(hypervolume_rows(tmp_path)) == [0]


def test_lines_need_names_of_their_own(tmp_path):
    runs = [write_trials(tmp_path / name / "run", []) for name in "ab"]
    with pytest.raises(RunError, match="not all different: run, run; give a mapping"):
        hypervolume_rows(runs)


@pytest.mark.parametrize("source", [[], {}, {"line": []}])
def test_a_line_of_no_run_is_an_error(source):
    with pytest.raises(RunError, match="one run or study for each line; got none"):
        hypervolume_rows(source)


def test_other_measures_can_be_chosen_and_all_runs_need_them(tmp_path):
    runs = [make_run(tmp_path / "a"), write_trials(tmp_path / "b", [])]
    assert hypervolume_rows(runs, x="kl", y="weight_bits").x.name == "kl"
    with pytest.raises(RunError, match="no measure 'kv_bytes'"):
        hypervolume_rows(runs, x="kv_bytes")
