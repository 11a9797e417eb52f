import optuna
from optuna.trial import TrialState

from mpq.search.claims import Claims, Records, is_refinement, missing, queued_plans
from mpq.search.objective import make_objectives
from mpq.search.settings import SearchSettings
from mpq.search.study import Search
from mpq.search.trial import RESULT
from mpq.search.workers import QUEUED
from tests.search.synthetic import Problem, make_sites, make_space

SEED = {"source": "uniform", "choices": [0, 1]}
EXCHANGE = {"source": "refine", "choices": [1, 0]}


def trial(number, queued=None, state=TrialState.COMPLETE):
    attrs = {} if queued is None else {QUEUED: queued}
    found = optuna.trial.create_trial(
        state=state, user_attrs=attrs, value=1.0 if state == TrialState.COMPLETE else None
    )
    found.number = number
    return found


def claims_of(trials):
    claims = Claims()
    claims.read(trials)
    return claims


def counts(claims):
    return claims.sampled, claims.refined, claims.is_waiting


def test_failed_trials_do_not_count():
    trials = [trial(0), trial(1, state=TrialState.FAIL), trial(2, state=TrialState.RUNNING)]
    assert counts(claims_of(trials)) == (2, 0, False)


def test_trials_are_counted_as_they_end():
    claims, trials = Claims(), [trial(0, SEED, state=TrialState.WAITING)]
    claims.read(trials)
    assert counts(claims) == (1, 0, True)
    # The second ends before the first does; the third fails, and is queued again.
    trials = [trial(0, SEED, state=TrialState.RUNNING), trial(1, EXCHANGE)]
    claims.read([*trials, trial(2, state=TrialState.RUNNING)])
    assert counts(claims) == (2, 1, False)
    trials = [trial(0, SEED), trial(1, EXCHANGE), trial(2, state=TrialState.FAIL)]
    claims.read([*trials, trial(3, state=TrialState.WAITING)])
    assert counts(claims) == (2, 1, True)
    claims.read([*trials, trial(3)])
    claims.read([*trials, trial(3)])
    assert counts(claims) == (2, 1, False)


def test_seeds_are_no_exchanges():
    assert is_refinement(trial(0, EXCHANGE))
    assert not is_refinement(trial(0, SEED))
    assert not is_refinement(trial(0))


def test_a_trial_is_one_too_many_when_earlier_ones_of_its_sort_fill_the_quota():
    trials = [trial(0, SEED), trial(1), trial(2, EXCHANGE), trial(3, state=TrialState.FAIL)]
    claims = claims_of(trials)
    assert claims.is_surplus(4, None, quota=2)
    assert not claims.is_surplus(4, None, quota=3)
    assert claims.is_surplus(4, EXCHANGE | {"choices": [9]}, quota=1)
    waiting = claims_of([*trials[:2], trial(2, EXCHANGE, state=TrialState.WAITING)])
    assert not waiting.is_surplus(2, EXCHANGE, quota=1)


def test_a_plan_is_queued_while_one_of_its_trials_has_not_failed():
    failed = trial(0, SEED, state=TrialState.FAIL)
    others = [trial(1), trial(2, EXCHANGE, state=TrialState.RUNNING)]
    assert queued_plans([failed, *others]) == {(1, 0)}
    assert queued_plans([failed, *others, trial(3, SEED)]) == {(0, 1), (1, 0)}


def test_a_seed_that_comes_back_late_has_its_place():
    for state in (TrialState.RUNNING, TrialState.COMPLETE):
        claims = claims_of([trial(0, SEED, state=state), trial(1), trial(2), trial(3, EXCHANGE)])
        late = SEED | {"choices": [1, 1]}
        assert not claims.is_surplus(4, late, quota=2)
        assert claims.is_surplus(4, late, quota=1)
        assert claims.is_surplus(4, SEED, quota=2)


def test_a_queued_plan_that_an_earlier_trial_has_is_one_too_many():
    for state in (TrialState.RUNNING, TrialState.COMPLETE):
        trials = [trial(0, SEED), trial(1, EXCHANGE, state=state)]
        assert claims_of(trials).is_surplus(5, EXCHANGE, quota=9)
        assert claims_of(trials).is_surplus(5, SEED, quota=9)
        assert not claims_of(trials).is_surplus(5, EXCHANGE | {"choices": [1, 1]}, quota=9)
    trials = [trial(0, SEED), trial(1, EXCHANGE, state=TrialState.FAIL)]
    assert not claims_of(trials).is_surplus(5, EXCHANGE, quota=9)
    trials = [trial(0, SEED), trial(1, EXCHANGE, state=TrialState.RUNNING)]
    assert not claims_of(trials).is_surplus(1, EXCHANGE, quota=9)


def finished(number, state=TrialState.COMPLETE):
    found = trial(number, state=state)
    found.user_attrs[RESULT] = {
        **{"state": "complete", "source": "sampler", "choices": [number], "digest": str(number)},
        **{"values": [1.0], "costs": {}, "feasible": True, "evaluated": True, "reused": False},
        **{"seconds": 0.0, "forward_seconds": 0.0, "judged": 1},
    }
    return found


def test_records_are_read_once_and_stand_by_number():
    records, first = Records(), finished(0)
    assert [one.number for one in records.read([first])] == [0]
    open_one = trial(1, state=TrialState.RUNNING)
    before = records.read([first, open_one, finished(2)])
    assert [one.number for one in before] == [0, 2]
    trials = [first, finished(1), finished(2), finished(3, TrialState.FAIL), trial(4)]
    after = records.read(trials)
    assert [one.number for one in after] == [0, 1, 2]  # a failed one, and one without a result
    assert (after[0], after[2]) == (before[0], before[1])
    assert records.read(trials) == after


def test_what_a_search_lacks_is_counted_until_all_trials_are_over(tmp_path, monkeypatch):
    def opened(**settings):
        more = {"trials": 12, "refine": 4, "sampler": "random"} | settings
        return Search(
            make_space(problem),
            make_objectives(["kl", "weight_bits"]),
            SearchSettings(**more),
            problem,
            storage=f"journal://{tmp_path}/log",
        )

    problem = Problem(make_sites(1))
    opened(timeout_seconds=0.0).run()
    queued = missing(opened())["waiting"]
    assert missing(opened()) == {
        "waiting": queued,
        "to be drawn": 12 - queued,
        "to be proposed": 4,
    }
    search = opened()
    search.run()
    assert missing(search) == {}
    assert missing(opened(trials=14, refine=6)) == {"to be drawn": 2, "to be proposed": 2}
    # Another worker's trial.
    study = search.study
    study.ask()
    assert missing(search) == {"running": 1}
    # A search ends before its last exchange when nobody can propose one.
    monkeypatch.setattr("mpq.search.claims.propose", lambda *_, **__: None)
    study.tell(len(study.trials) - 1, state=TrialState.FAIL)
    assert missing(opened(refine=9)) == {}
