from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import RunError
from mpq.files import write_csv
from mpq.plots.frames import front_rows, is_study, on_front
from mpq.run import Run
from tests.plots.artefacts import DRAWN, FRONT, TRIALS, make_run


def test_a_run_gives_its_measured_trials_and_their_front(tmp_path):
    front = front_rows(make_run(tmp_path))
    assert list(front.rows["number"]) == DRAWN
    assert list(front.rows["number"][front.rows["front"]]) == FRONT
    assert (front.x.name, front.y.name) == ("weight_bits", "kl")
    assert (front.x.direction, front.y.direction) == ("minimize", "minimize")
    assert front.y.logarithmic
    assert not front.x.logarithmic


def test_uniform_plans_alone_carry_their_format(tmp_path):
    rows = front_rows(Run(make_run(tmp_path))).rows
    assert dict(zip(rows["number"], rows["label"], strict=True)) == {
        **dict.fromkeys(DRAWN, ""),
        0: "bfp3",
        1: "bfp4",
    }


def test_a_trial_over_budget_is_drawn_but_never_on_the_front(tmp_path):
    rows = front_rows(make_run(tmp_path)).rows.set_index("number")
    assert not rows.loc[8, "feasible"]
    assert not rows.loc[8, "front"]


def study_of(trials, names, directions):
    """A study by its public attributes alone, as Optuna has them."""
    return SimpleNamespace(
        study_name="mpq",
        metric_names=None,
        directions=[SimpleNamespace(name=direction) for direction in directions],
        user_attrs={"objectives": [f"minimize {name}" for name in names]},
        trials=trials,
    )


def trial_of(number, source, anchor, values, state="COMPLETE", **more):
    result = {"source": source, "anchor": anchor, "feasible": True, "evaluated": True, **more}
    return SimpleNamespace(
        number=number,
        values=values,
        state=SimpleNamespace(name=state),
        user_attrs={"result": result} if state == "COMPLETE" else {},
    )


def test_a_study_and_its_run_give_the_same_rows(tmp_path):
    trials = [
        trial_of(number, source, anchor, [kl, bits], feasible=bool(ok), evaluated=bool(seen))
        for number, source, anchor, kl, bits, state, ok, seen in TRIALS
        if state == "complete"
    ]
    trials.append(trial_of(99, "sampler", "", None, state="RUNNING"))
    study = study_of(trials, ["kl", "weight_bits"], ["MINIMIZE", "MINIMIZE"])
    assert is_study(study)
    mine, runs = front_rows(study), front_rows(make_run(tmp_path))
    assert mine.rows.to_dict() == runs.rows.to_dict()
    assert (mine.x, mine.y) == (runs.x, runs.y)


def test_an_optuna_study_of_anything_can_be_drawn():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.set_metric_names(["weight_bits", "accuracy"])
    for bits, accuracy in ((3.0, 0.5), (4.0, 0.8), (5.0, 0.7)):
        study.add_trial(optuna.trial.create_trial(values=[bits, accuracy]))
    front = front_rows(study)
    assert (front.x.name, front.y.name, front.y.direction) == (
        *("weight_bits", "accuracy", "maximize"),
    )
    assert list(front.rows["front"]) == [True, True, False]


def test_measures_can_be_chosen_and_maximised_ones_turn_the_front(tmp_path):
    folder = make_run(tmp_path)
    rows = [
        {"number": n, "state": "complete", "kl": kl, "memory_density": density, "weight_bits": 4}
        for n, (kl, density) in enumerate([(0.1, 4.0), (0.2, 7.0), (0.3, 6.0)])
    ]
    write_csv(folder / "trials.csv", rows)
    front = front_rows(folder, x="memory_density", y="kl")
    assert front.x.direction == "maximize"
    assert list(front.rows["front"]) == [True, True, False]


def test_a_measure_that_no_trial_has_is_named_with_those_there_are(tmp_path):
    with pytest.raises(RunError, match=r"'kv_bytes'.*among.*kl, weight_bits"):
        front_rows(make_run(tmp_path), x="kv_bytes")


def test_a_run_without_trials_says_so(tmp_path):
    with pytest.raises(RunError, match=r"trials\.csv: this artefact is missing; mpq-search"):
        front_rows(tmp_path)
    with pytest.raises(RunError, match="there is no such run directory"):
        front_rows(tmp_path / "nowhere")
    folder = make_run(tmp_path)
    write_csv(folder / "trials.csv", [{"number": 0, "state": "pruned", "kl": 1.0}])
    with pytest.raises(RunError, match="no finished trial to draw"):
        front_rows(folder)


point = st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans())


@given(st.lists(point, min_size=1, max_size=30))
def test_the_front_is_what_a_double_loop_says(points):
    x, y, feasible = (np.array(column) for column in zip(*points, strict=True))
    front = on_front(x.astype(float), y.astype(float), feasible.astype(bool))
    for i, (a, b, ok) in enumerate(points):
        beaten = any(
            kept and c <= a and d <= b and ((c, d) != (a, b) or j < i)
            for j, (c, d, kept) in enumerate(points)
            if j != i
        )
        assert front[i] == (ok and not beaten)
