import datetime
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing

import optuna
import pytest
from optuna.trial import TrialState

from mpq.search.objective import make_objectives
from mpq.search.samplers import make_pruner, make_sampler, silence_optuna
from mpq.search.workers import QUEUED, WORKER, open_study, reclaim, requeue, this_worker

OBJECTIVES = make_objectives(["kl", "weight_bits"])


@pytest.fixture
def study(tmp_path):
    silence_optuna()
    return open_study(
        f"journal://{tmp_path}/study.log",
        "s",
        OBJECTIVES,
        digest="abc",
        sampler=make_sampler("random", seed=0, trials=10),
        pruner=make_pruner("none", OBJECTIVES, 1),
    )


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return {"host": socket.gethostname(), "pid": process.pid, "started": "1"}


def begin(study, worker, *, queued=None, num_params=2):
    trial = study.ask()
    if worker is not None:
        trial.set_user_attr(WORKER, worker)
    if queued is not None:
        trial.set_user_attr(QUEUED, queued)
    return trial, {f"x{i}": trial.suggest_float(f"x{i}", 0, 1) for i in range(num_params)}


def states(study):
    return [trial.state.name for trial in study.get_trials()]


def test_the_trial_of_a_dead_process_is_queued_again_as_it_was(study):
    queued = {"source": "refine", "choices": [1, 2]}
    _, params = begin(study, dead_process(), queued=queued)
    assert reclaim(study, 2) == 1
    assert states(study) == ["FAIL", "WAITING"]
    again = study.ask()
    assert {name: again.suggest_float(name, 0, 1) for name in params} == params
    assert again.user_attrs[QUEUED] == queued
    assert again.user_attrs["turn"] == 0


def test_the_trial_of_a_living_process_stays(study):
    begin(study, this_worker())
    assert reclaim(study, 2) == 0
    assert states(study) == ["RUNNING"]


def test_a_process_id_that_was_given_anew_is_another_process(study):
    begin(study, this_worker() | {"started": "12345"})
    assert reclaim(study, 2) == 1


def test_workers_on_other_machines_are_left_to_their_heartbeat(study):
    begin(study, dead_process() | {"host": "elsewhere"})
    assert reclaim(study, 2) == 0


def test_a_trial_killed_while_its_parameters_were_drawn_draws_them_again(study):
    begin(study, dead_process(), num_params=1)
    _, whole = begin(study, this_worker())
    assert reclaim(study, 2) == 1
    again = study.ask()
    assert again.user_attrs["turn"] == 0
    drawn = {f"x{i}": again.suggest_float(f"x{i}", 0, 1) for i in range(2)}
    assert drawn.keys() == whole.keys()
    assert drawn != whole


def test_a_trial_that_nobody_claimed_is_given_up_after_a_while(study, monkeypatch):
    begin(study, None)
    assert reclaim(study, 2) == 0

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + datetime.timedelta(minutes=2)

    monkeypatch.setattr("mpq.search.workers.datetime", Later)
    assert reclaim(study, 2) == 1


def test_a_trial_that_failed_twice_keeps_its_first_turn(study):
    for _ in range(2):
        begin(study, dead_process())
        assert reclaim(study, 2) == 1
    assert states(study) == ["FAIL", "FAIL", "WAITING"]
    assert study.ask().user_attrs["turn"] == 0


def test_heartbeats_return_trials_of_lost_machines(tmp_path):
    silence_optuna()
    study = open_study(
        f"sqlite:///{tmp_path}/study.db",
        "s",
        OBJECTIVES,
        digest="abc",
        sampler=make_sampler("random", seed=0, trials=10),
        pruner=make_pruner("none", OBJECTIVES, 1),
    )
    storage = study._storage._backend
    assert storage.get_heartbeat_interval() == 60
    assert storage.get_heartbeat_stale_trial_callback() is requeue
    trial, params = begin(study, {"host": "elsewhere", "pid": 1, "started": ""})
    study.tell(trial, state=TrialState.FAIL)
    requeue(study, study.get_trials()[0])
    assert states(study) == ["FAIL", "WAITING"]
    assert study.get_trials()[1].system_attrs["fixed_params"] == params


def test_a_study_knows_its_measures(study):
    assert study.metric_names == ["kl", "weight_bits"]
    assert study.user_attrs == {
        "space": "abc",
        "objectives": ["minimize kl", "minimize weight_bits"],
    }
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR


def open_file(folder):
    return open_study(
        f"sqlite:///{folder}/study.db",
        "s",
        OBJECTIVES,
        digest="abc",
        sampler=make_sampler("random", seed=0, trials=10),
        pruner=make_pruner("none", OBJECTIVES, 1),
    )


def rows_of(folder):
    """Number of trial -> its parameters, as another program finds them in the file."""
    with closing(sqlite3.connect(folder / "study.db")) as file:
        joined = "SELECT number, param_name, param_value FROM trial_params NATURAL JOIN trials"
        found = {}
        for number, name, value in file.execute(joined):
            found.setdefault(number, {})[name] = value
    return found


@pytest.mark.parametrize(
    "then",
    [
        lambda _, trial: trial.set_user_attr("a", 1),
        lambda _, trial: trial.set_constraint("c", 0.0),
        lambda study, trial: study.tell(trial, [1.0, 2.0]),
        lambda study, trial: study.tell(trial.number, state=TrialState.FAIL),
    ],
)
def test_parameters_are_written_together_before_what_comes_next(tmp_path, then):
    silence_optuna()
    study = open_file(tmp_path)
    first, params = begin(study, None, num_params=3)
    study.tell(first, [1.0, 2.0])
    trial, more = begin(study, None, num_params=3)
    # Nothing is there yet: a trial's parameters do not take a transaction each.
    assert rows_of(tmp_path) == {0: params}
    then(study, trial)
    assert rows_of(tmp_path) == {0: params, 1: more}


def test_other_workers_read_what_was_written_together(tmp_path):
    silence_optuna()
    study = open_file(tmp_path)
    params = []
    for _ in range(3):
        trial, drawn = begin(study, this_worker())
        study.tell(trial, [1.0, 2.0])
        params.append(drawn)
    seen = open_file(tmp_path).get_trials()
    assert [one.params for one in seen] == params
    assert [one.distributions for one in seen] == [seen[0].distributions] * 3


def test_a_parameter_that_became_another_is_refused(tmp_path):
    silence_optuna()
    study = open_file(tmp_path)
    study.tell(begin(study, None)[0], [1.0, 2.0])
    with pytest.raises(ValueError, match="different distribution kind"):
        study.ask().suggest_int("x0", 0, 1)


def test_parameters_are_there_when_a_pruner_is_told_of_a_rung(tmp_path):
    silence_optuna()
    objectives = OBJECTIVES[:1]
    study = open_study(
        f"sqlite:///{tmp_path}/study.db",
        "s",
        objectives,
        digest="abc",
        sampler=make_sampler("random", seed=0, trials=10),
        pruner=make_pruner("median", objectives, 8),
    )
    study.tell(begin(study, None)[0], 1.0)
    trial, params = begin(study, None)
    trial.report(1.0, 1)
    assert rows_of(tmp_path)[1] == params
