import datetime
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing

import optuna
import pytest

from mpq.search.objective import make_objectives
from mpq.search.samplers import make_pruner, make_sampler, silence_optuna
from mpq.search.workers import QUEUED, WORKER, open_study, reclaim, this_worker

OBJECTIVES = make_objectives(["kl", "weight_bits"])


def open_at(url):
    silence_optuna()
    return open_study(
        url,
        "s",
        OBJECTIVES,
        digest="abc",
        num_params=2,
        sampler=make_sampler("random", seed=0, trials=10),
        pruner=make_pruner("none", OBJECTIVES, 1),
    )


@pytest.fixture(params=["sqlite:///{}/study.db", "journal://{}/study.log"])
def url(request, tmp_path):
    return request.param.format(tmp_path)


@pytest.fixture
def study(url):
    """A study in which a trial is over: parameters wait for each other from then on."""
    opened = open_at(url)
    trial, _ = begin(opened, this_worker())
    opened.tell(trial, [1.0, 2.0])
    return opened


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


@pytest.mark.parametrize("queued", [None, {"source": "refine", "choices": [1, 2]}])
def test_the_trial_of_a_dead_process_is_queued_again_as_it_was(study, url, queued):
    """What the dead process had drawn lies in the file: nobody else can tell it."""
    _, params = begin(study, dead_process(), queued=queued)
    other = open_at(url)
    assert reclaim(other, 2) == 1
    assert states(other) == ["COMPLETE", "FAIL", "WAITING"]
    assert other.get_trials()[2].system_attrs["fixed_params"] == params
    again = other.ask()
    assert {name: again.suggest_float(name, 0, 1) for name in params} == params
    assert again.user_attrs.get(QUEUED) == queued
    assert again.user_attrs["turn"] == 1


def test_the_trial_of_a_living_process_stays(study):
    begin(study, this_worker())
    assert reclaim(study, 2) == 0
    assert states(study) == ["COMPLETE", "RUNNING"]


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
    assert again.user_attrs["turn"] == 1
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
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "WAITING"]
    assert study.ask().user_attrs["turn"] == 1


def test_heartbeats_return_trials_of_lost_machines(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = open_at(url)
    trial, params = begin(study, {"host": "elsewhere", "pid": 1, "started": ""})
    study._storage.record_heartbeat(trial._trial_id)
    other = open_at(url)
    optuna.storages.fail_stale_trials(other)
    assert states(other) == ["RUNNING"]
    with closing(sqlite3.connect(tmp_path / "study.db")) as file:
        file.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-4 minutes')")
        file.commit()
    optuna.storages.fail_stale_trials(other)
    assert states(other) == ["FAIL", "WAITING"]
    assert other.get_trials()[1].system_attrs["fixed_params"] == params


def test_a_study_knows_its_measures(study):
    assert study.metric_names == ["kl", "weight_bits"]
    assert study.user_attrs == {
        "space": "abc",
        "objectives": ["minimize kl", "minimize weight_bits"],
    }
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
