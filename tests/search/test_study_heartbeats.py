"""Trials of workers that are lost on other machines come back when their heartbeat stops."""

import sqlite3
from contextlib import closing

import pytest
from optuna.trial import TrialState

from mpq.search.workers import QUEUED, SURPLUS, WORKER
from tests.search.test_study import make_search

ELSEWHERE = {"host": "elsewhere", "pid": 1, "started": "1"}
SETTINGS = {"storage": "sqlite:///{}/study.db", "trials": 12, "refine": 0}


def take(folder, **settings):
    """Id and plan of the trial that a worker elsewhere took next, before it was lost."""
    search = make_search(folder, **SETTINGS | settings)
    search._queue_seeds()
    search._has_next(search.study.get_trials())
    trial = search.study.ask()
    trial.set_user_attr(WORKER, ELSEWHERE)
    search.study._storage.record_heartbeat(trial._trial_id)
    return trial._trial_id, tuple(trial.user_attrs[QUEUED]["choices"])


def stop_heartbeat(folder, trial_id):
    with closing(sqlite3.connect(folder / "study.db", timeout=60)) as file:
        stopped = "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"
        file.execute(f"{stopped} WHERE trial_id = ?", (trial_id,))
        file.commit()


def measured(search):
    return [record.choices for record in search.records()]


@pytest.mark.parametrize("after", [1, 8, 10])
def test_a_seed_comes_back_while_the_search_runs(tmp_path, after):
    trial_id, choices = take(tmp_path)
    search, told = make_search(tmp_path, **SETTINGS), []

    def on_trial(records):
        told.append(records[-1].number)
        if len(told) == after:
            stop_heartbeat(tmp_path, trial_id)

    search.run(on_trial)
    trials = search.study.get_trials()
    assert measured(search).count(choices) == 1
    assert len(measured(search)) == 12
    assert not any(SURPLUS in trial.user_attrs for trial in trials)
    assert [trial.number for trial in trials if trial.state == TrialState.FAIL] == [0]


@pytest.mark.parametrize("trials_before", [0, 12])
def test_a_seed_or_an_exchange_comes_back_in_a_resumed_search(tmp_path, trials_before):
    if trials_before:
        make_search(tmp_path, **SETTINGS).run()
    trial_id, choices = take(tmp_path, refine=1)
    make_search(tmp_path, **SETTINGS | {"refine": 1}).run()
    resumed = make_search(tmp_path, **SETTINGS | {"refine": 1})
    assert choices not in measured(resumed)
    stop_heartbeat(tmp_path, trial_id)
    resumed.run()
    assert measured(resumed).count(choices) == 1
    assert len(measured(resumed)) == 13


def test_a_seed_that_only_failed_is_measured_by_a_resumed_search(tmp_path):
    """A worker that dies between failing a trial and queueing it again leaves it like that."""
    _, choices = take(tmp_path)
    make_search(tmp_path, **SETTINGS).study.tell(0, state=TrialState.FAIL)
    make_search(tmp_path, **SETTINGS).run()
    resumed = make_search(tmp_path, **SETTINGS)
    assert choices in measured(resumed)
    assert len(measured(resumed)) == 12


def test_a_seed_that_only_failed_is_measured_after_all_trials(tmp_path):
    _, choices = take(tmp_path)
    search = make_search(tmp_path, **SETTINGS)
    search.run()
    assert choices not in measured(search)
    search.study.tell(0, state=TrialState.FAIL)
    search._seeds = ()
    search.run()  # the sampler takes the place
    assert choices not in measured(search)
    assert len(measured(search)) == 12
    for _ in range(2):
        make_search(tmp_path, **SETTINGS).run()
        assert measured(search).count(choices) == 1
        assert len(measured(search)) == 13


def test_an_exchange_that_is_measured_elsewhere_is_not_proposed_again(tmp_path):
    make_search(tmp_path, **SETTINGS).run()
    _, taken = take(tmp_path, refine=2)
    search = make_search(tmp_path, **SETTINGS | {"refine": 2})
    search.run()
    trials = search.study.get_trials()
    assert taken not in measured(search)
    assert len(measured(search)) == 13
    assert not any(trial.state == TrialState.FAIL for trial in trials)
