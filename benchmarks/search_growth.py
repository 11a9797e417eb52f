"""Prints how the cost of a search beside its model grows: with sites, with trials, by sampler.

    python benchmarks/search_growth.py [--sites 10 1000] [--trials 2000] [--told 100 10000]

Three tables. *Allocation*: one exact optimum under one budget, 8 formats a site. *Guided search*:
a study in SQLite, as a run directory holds it, whose plans cost nothing to measure; the time of a
trial by what spends it, over the last tenth of the trials. *Samplers*: one draw of the guided
numbers with so many trials told before, in memory. All times are CPU time; run it on an idle
machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from machine import description

from mpq.formats.zoo import parse_format
from mpq.plans.allocate import allocate
from mpq.plans.plan import Plan
from mpq.plans.site import Site
from mpq.search import guided
from mpq.search.build import build_space
from mpq.search.guided import knobs
from mpq.search.objective import make_objectives
from mpq.search.samplers import SAMPLERS, SeededSampler, make_sampler, silence_optuna
from mpq.search.settings import SearchSettings
from mpq.search.space import FloatArray, Space
from mpq.search.study import Search

FORMATS = ("bfp2", "bfp3", "bfp4", "bfp5", "bfp6", "bfp7", "bfp8", "int8-g128")
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SLOW = {"gp": 100}
"""Samplers that are not timed with more trials than this: a draw takes most of a minute then."""


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--told", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    arguments = parser.parse_args()
    print(f"{description()}\n{'sites':>6}{'allocation, ms':>16}")
    for count in arguments.sites:
        print(f"{count:>6}{allocation_seconds(make_space(count)) * 1e3:>16.1f}")
    print(f"\n{'sites':>6}{'trials':>8}{'sampler':>10}{'allocation':>12}{'the rest':>10}  (ms)")
    for count in arguments.sites:
        with tempfile.TemporaryDirectory() as folder:
            spent = trial_seconds(make_space(count), arguments.trials, Path(folder))
        columns = "".join(
            f"{spent[name] * 1e3:>{width}.1f}"
            for name, width in (("sampler", 10), ("allocation", 12), ("rest", 10))
        )
        print(f"{count:>6}{arguments.trials:>8}{columns}")
    print(f"\n{'sampler':<10}" + "".join(f"{count:>10}" for count in arguments.told) + "  (ms)")
    for name in arguments.samplers:
        cells = (
            "-" if count > SLOW.get(name, count) else f"{draw_seconds(name, count) * 1e3:.1f}"
            for count in arguments.told
        )
        print(f"{name:<10}" + "".join(f"{cell:>10}" for cell in cells))


def make_space(count: int) -> Space:
    """So many weights, each its own group, with damages drawn at random."""
    sites = tuple(
        Site(
            name=f"model.layers.{index // len(KINDS)}.{KINDS[index % len(KINDS)]}.weight",
            role="weight",
            shape=(1024, 1024 << index % 3),
            kind=KINDS[index % len(KINDS)],
            block=index // len(KINDS),
            group="",
        )
        for index in range(count)
    )
    rng = np.random.default_rng(0)
    scale = {site.name: float(np.exp(rng.normal(0, 1.2))) for site in sites}
    bits = {text: parse_format(text).bits_per_value for text in FORMATS}
    candidates = [parse_format(text) for text in FORMATS]
    return build_space(
        sites,
        {site.name: candidates for site in sites},
        damage=lambda site, text: scale[site] * 4.0 ** -bits[text],
        tie="none",
    )


class Free:
    """Measures a plan at once: noise about a number that its digest names."""

    num_windows = 64
    batch_size = 8
    forward_seconds = 0.0

    def __call__(
        self, plan: Plan, first: int = 0, last: int | None = None
    ) -> dict[str, FloatArray]:
        """Noise for each window."""
        rng = np.random.default_rng(int(plan.digest[:8], 16))
        return {"kl": np.exp(rng.normal(-2, 0.3, self.num_windows))[first:last]}


def allocation_seconds(space: Space, repeats: int = 9) -> float:
    """Median CPU seconds of an exact optimum, at budgets between the uniform plans'."""
    costs = space.costs["weight_bits"][None]
    ends = [space.bits("weight_bits", choices) for choices in space.uniform.values()]
    budgets = np.linspace(min(ends), max(ends), repeats + 2, dtype=np.int64)[1:-1]
    return statistics.median(
        seconds(partial(allocate, space.damage, costs, budgets[index : index + 1]))
        for index in range(repeats)
    )


def trial_seconds(space: Space, trials: int, folder: Path) -> dict[str, float]:
    """CPU seconds a trial spent in the sampler, in allocation and elsewhere, in the last tenth."""
    settings = SearchSettings(trials=trials, refine=0, sampler="tpe")
    objectives = make_objectives(("kl", "weight_bits"))
    search = Search(space, objectives, settings, Free(), storage=f"sqlite:///{folder}/study.db")
    marks: list[dict[str, float]] = []
    spent = {"sampler": 0.0, "allocation": 0.0}
    with (
        timed(SeededSampler, "sample_relative", spent, "sampler"),
        timed(SeededSampler, "infer_relative_search_space", spent, "sampler"),
        timed(guided, "allocate", spent, "allocation"),
    ):
        search.run(lambda _: marks.append(spent | {"all": time.process_time()}))
    first, last = marks[-max(2, trials // 10)], marks[-1]
    each = {name: (last[name] - first[name]) / (max(2, trials // 10) - 1) for name in last}
    return each | {"rest": each["all"] - each["sampler"] - each["allocation"]}


def draw_seconds(name: str, told: int, repeats: int = 5) -> float:
    """Median CPU seconds in which a sampler draws the guided numbers after so many trials."""
    space = make_space(10)
    settings = knobs(space, {"weight_bits": np.array([*map(int, range(10, 80))])})
    spread = {k.name: optuna.distributions.FloatDistribution(k.low, k.high) for k in settings}
    rng = np.random.default_rng(0)
    study = optuna.create_study(
        directions=["minimize", "minimize"] if name != "cmaes" else ["minimize"],
        sampler=make_sampler(name, seed=0, trials=told + repeats, ranges=spread),
    )
    for _ in range(told):
        params = {knob.name: float(rng.uniform(knob.low, knob.high)) for knob in settings}
        values = rng.normal(size=len(study.directions)).tolist()
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=spread, values=values)
        )
    found = []
    for _ in range(repeats):
        found.append(seconds(lambda: study.ask(dict(spread)).params))
        study.tell(study.trials[-1].number, rng.normal(size=len(study.directions)).tolist())
    return statistics.median(found)


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


@contextmanager
def timed(owner: object, name: str, spent: dict[str, float], key: str) -> Iterator[None]:
    """Adds the CPU seconds of a function of `owner` to `spent[key]` while it lasts."""
    plain = getattr(owner, name)

    def call(*args: object, **kwargs: object) -> object:
        start = time.process_time()
        try:
            return plain(*args, **kwargs)
        finally:
            spent[key] += time.process_time() - start

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, plain)


if __name__ == "__main__":
    silence_optuna()
    main()
