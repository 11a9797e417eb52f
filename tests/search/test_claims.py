import optuna
from optuna.trial import TrialState

from mpq.search.claims import claims_of, is_refinement, is_surplus
from mpq.search.workers import QUEUED

SEED = {"source": "uniform", "choices": [0, 1]}
EXCHANGE = {"source": "refine", "choices": [1, 0]}


def trial(number, queued=None, state=TrialState.COMPLETE):
    attrs = {} if queued is None else {QUEUED: queued}
    found = optuna.trial.create_trial(
        state=state, user_attrs=attrs, value=1.0 if state == TrialState.COMPLETE else None
    )
    found.number = number
    return found


def test_failed_trials_do_not_count():
    trials = [trial(0), trial(1, state=TrialState.FAIL), trial(2, state=TrialState.RUNNING)]
    assert [one.number for one in claims_of(trials)] == [0, 2]


def test_seeds_are_no_exchanges():
    assert is_refinement(trial(0, EXCHANGE))
    assert not is_refinement(trial(0, SEED))
    assert not is_refinement(trial(0))


def test_a_trial_is_one_too_many_when_earlier_ones_of_its_sort_fill_the_quota():
    trials = [trial(0, SEED), trial(1), trial(2, EXCHANGE), trial(3, state=TrialState.FAIL)]
    assert is_surplus(4, None, trials, quota=2)
    assert not is_surplus(4, None, trials, quota=3)
    assert is_surplus(4, EXCHANGE | {"choices": [9]}, trials, quota=1)
    assert not is_surplus(2, EXCHANGE, trials, quota=1)


def test_a_queued_plan_that_an_earlier_trial_has_is_one_too_many():
    trials = [trial(0, SEED), trial(1, EXCHANGE, state=TrialState.RUNNING)]
    assert is_surplus(5, EXCHANGE, trials, quota=9)
    assert not is_surplus(1, EXCHANGE, trials, quota=9)
    failed = [trial(0, EXCHANGE, state=TrialState.FAIL)]
    assert not is_surplus(5, EXCHANGE, failed, quota=9)
