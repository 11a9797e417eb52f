"""What every sampler must do in both spaces: same seed, same trials, also when resumed."""

import warnings

import pytest

from mpq.search.objective import make_objectives
from mpq.search.samplers import SAMPLERS
from mpq.search.settings import SearchSettings
from mpq.search.study import Search
from tests.search.synthetic import Problem, make_sites, make_space

REFINE = 2
TRIALS = {"gp": 17}  # a Gaussian process costs a second a trial
DEFAULT_TRIALS = 24


def search(folder, sampler, mode, *, trials=None, refine=REFINE, seed=3):
    trials = trials or TRIALS.get(sampler, DEFAULT_TRIALS)
    problem = Problem(make_sites(2), num_windows=12)
    one = sampler == "cmaes"
    # Optuna's CMA-ES knows no constraints: in the direct space it goes without a budget.
    budget = {"weight_bits": 4.3} if mode == "guided" or not one else {}
    return Search(
        make_space(problem, formats=("bfp2", "bfp3", "bfp4", "bfp6")),
        make_objectives(["kl"] if one else ["kl", "weight_bits"]),
        SearchSettings(
            mode=mode, sampler=sampler, trials=trials, refine=refine, seed=seed, budget=budget
        ),
        problem,
        storage=f"journal://{folder}.log",
    )


def found(search):
    return [(record.source, record.choices, record.values) for record in search.records()]


@pytest.mark.parametrize("mode", ["guided", "direct"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler(tmp_path, sampler, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        whole = search(tmp_path / "whole", sampler, mode)
        whole.run()
        # Cut in the middle of the sampler's trials: another process goes on. At most half of the
        # trials are seeds, so a shorter study than this one would have fewer of them.
        cut = whole.settings.trials - (3 if sampler == "gp" else 6)
        search(tmp_path / "parts", sampler, mode, trials=cut, refine=0).run()
        parts = search(tmp_path / "parts", sampler, mode)
        parts.run()
    records = whole.records()
    assert len(records) == whole.settings.trials + REFINE
    assert found(parts) == found(whole)
    assert [r.source for r in records].count("sampler") >= 7
    plans = {r.choices for r in records if r.source == "sampler"}
    assert len(plans) > 4, "a sampler that repeats itself"
    for record in records:
        limit = whole.limits.get("weight_bits", 10**9)
        assert record.is_feasible == (whole.space.bits("weight_bits", record.choices) <= limit)
        assert record.is_evaluated == record.is_feasible
    assert mode == "direct" or all(record.is_feasible for record in records)


def test_another_seed_gives_other_trials(tmp_path):
    sources = []
    for seed in (1, 2):
        one = search(tmp_path / str(seed), "random", "guided", refine=0, seed=seed)
        one.run()
        sources.append({r.choices for r in one.records() if r.source == "sampler"})
    assert sources[0] != sources[1]
