"""Fronts against the exact additive optima of the same profile, on held-out windows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

from mpq.errors import RunError
from mpq.plans.plan import Plan
from mpq.run import read_json, write_json
from mpq.search.front import TrialRecord
from mpq.search.guided import optimum
from mpq.search.objective import Evaluate
from mpq.search.space import Choices, FloatArray, Space

STEPS_PER_BIT = 4
"""Budgets from one uniform plan to the next: those whose optima every study starts from."""

SIGNIFICANCE = 0.05

Front = Sequence[TrialRecord]
Answers = Mapping[Choices, Choices]
"""The additive optimum at a budget -> the plan that a search answered with."""


Settings = Mapping[str, Any]
"""What measured numbers depend on, as plain values: hashes of data and profile, counts."""


def check_settings(path: Path, settings: Settings) -> None:
    """Writes what the numbers of a file depend on beside it, where that is not written yet.

    A file without is one of these settings.

    Raises:
        RunError: The numbers that are there were measured under other settings.
    """
    beside = path.with_suffix(".settings.json")
    if path.exists() and beside.exists():
        before = read_json(beside)
        other = {key: (before.get(key), one) for key, one in settings.items()}
        changed = [f"{key}: {was} -> {one}" for key, (was, one) in other.items() if was != one]
        if changed:
            raise RunError(
                f"{path} holds what was measured under other settings ({', '.join(changed)}); "
                "take another --out, or remove it"
            )
    else:
        write_json(beside, settings)


class Windows:
    """The KL of plans, window by window; what was measured once is read from a file."""

    def __init__(
        self, evaluate: Evaluate, space: Space, path: Path, settings: Settings | None = None
    ) -> None:
        """Reads what is there.

        Args:
            evaluate: Measures what is new, on all windows.
            space: Of the plans.
            path: The file.
            settings: What the numbers depend on, besides the plans and the number of windows.

        Raises:
            RunError: See `check_settings`.
        """
        check_settings(path, {**(settings or {}), "windows": evaluate.num_windows})
        self.num_windows = evaluate.num_windows
        self.batch_size = evaluate.batch_size
        self._evaluate = evaluate
        self._space = space
        self._path = path
        self._known: dict[str, list[float]] = read_json(self._path) if self._path.exists() else {}

    @property
    def forward_seconds(self) -> float:
        """Seconds of this process spent measuring."""
        return self._evaluate.forward_seconds

    def __call__(
        self, plan: Plan, first: int = 0, last: int | None = None
    ) -> Mapping[str, FloatArray]:
        """The KL of a plan in a range of windows, measured on all where it is new."""
        if plan.digest not in self._known:
            self._known[plan.digest] = self._evaluate(plan)["kl"].tolist()
            write_json(self._path, self._known)
        return {"kl": np.array(self._known[plan.digest])[first:last]}

    def measure(self, some: Sequence[Choices]) -> None:
        """Measures the plans that were not measured before, and writes them down."""
        for choices in some:
            self(self._space.plan(choices))

    def windows(self, choices: Choices) -> FloatArray:
        """`[N]`: the KL of each window under a measured plan, nats a token."""
        return np.array(self._known[self._space.plan(choices).digest])


def against_optima(
    space: Space,
    fronts: Mapping[str, Sequence[Front]],
    answers: Mapping[str, Sequence[Answers]],
    heldout: Windows,
) -> dict[str, Any]:
    """Each sampler's fronts, one a seed, against the exact additive optimum, budget by budget.

    The rival of an optimum is the plan of the front that costs no more, which is the one whose KL
    was best on the search's own tokens; and, at the budgets that were asked for, the plan that the
    search answered. Of the seeds, the one of the median held-out gain speaks;
    its windows are paired with the optimum's (Student's paired t-test, two-sided), and the
    p-values of a sampler's budgets corrected together (Holm).

    Args:
        space: What was searched.
        fronts: Sampler -> the front of each seed.
        answers: Sampler -> the answers of each seed.
        heldout: Measures plans where the searches did not look.
    """
    optima = [optimum(space, space.damage, {"weight_bits": bits}) for bits in budgets_of(space)]
    heldout.measure(optima)
    tables: dict[str, list[dict[str, Any]]] = {}
    for sampler, seeds in fronts.items():
        if not seeds:  # none of its studies refines
            tables[sampler] = []
            continue
        rivals = [[plan_within(space, front, best) for front in seeds] for best in optima]
        tables[sampler] = judged(space, rivals, optima, heldout)
        for index, row in enumerate(tables[sampler]):
            row["rung"] = index % 2 == 0
    asked = {}
    for sampler, some in answers.items():
        solved = [best for best in optima if some and all(best in one for one in some)]
        asked[sampler] = judged(
            space, [[one[best] for one in some] for best in solved], solved, heldout
        )
    return {"windows": heldout.num_windows, "samplers": tables, "asked": asked}


def judged(
    space: Space, rivals: Sequence[Sequence[Choices]], optima: Sequence[Choices], heldout: Windows
) -> list[dict[str, Any]]:
    """The comparison of each optimum with its rivals, one a seed, and the verdict on it."""
    rows = []
    for plans, best in zip(rivals, optima, strict=True):
        heldout.measure(plans)
        rows.append(comparison(space, plans, best, heldout))
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row |= {"p": p, "verdict": verdict(row["gain"], p)}
    return rows


def between(space: Space) -> list[Choices]:
    """The additive optima at the budgets half-way between rungs, cheapest first."""
    return [
        optimum(space, space.damage, {"weight_bits": bits}) for bits in budgets_of(space)[1::2]
    ]


def budgets_of(space: Space) -> list[int]:
    """Bits, from the narrowest uniform plan to the widest: each rung, and half-way to the next.

    There are `STEPS_PER_BIT` rungs from one uniform plan to the next, the ladder whose optima are
    among the first trials of every study. Half-way between them a study may well have no plan.
    """
    costs = [space.bits("weight_bits", choices) for choices in space.uniform.values()]
    steps = 2 * STEPS_PER_BIT * (len(costs) - 1)
    return [costs[0] + (costs[-1] - costs[0]) * step // steps for step in range(steps + 1)]


def plan_within(space: Space, front: Front, rival: Choices) -> Choices:
    """The plan of the front with the least KL among those that cost no more than the rival."""
    limit = space.bits("weight_bits", rival)
    inside = [r for r in front if space.bits("weight_bits", r.choices) <= limit]
    return min(inside, key=lambda record: record.values[0]).choices


def comparison(
    space: Space, seeds: Sequence[Choices], best: Choices, heldout: Windows
) -> dict[str, Any]:
    """The plans of all seeds against one optimum: KL, gains, the p-value of the median seed."""
    rival = heldout.windows(best)
    ranked = sorted(seeds, key=lambda choices: -float(heldout.windows(choices).mean()))
    median = heldout.windows(ranked[(len(ranked) - 1) // 2])
    gains = [float((rival - heldout.windows(choices)).mean() / rival.mean()) for choices in seeds]
    return {
        "weight_bits": space.mean_bits("weight_bits", best),
        "optimum": float(rival.mean()),
        "refined": float(median.mean()),
        "gain": float((rival - median).mean() / rival.mean()),
        "gains": gains,
        "p": paired_p(rival, median),
    }


def paired_p(one: FloatArray, other: FloatArray) -> float:
    """Two-sided p-value of Student's paired t-test; 1 where nothing differs."""
    return float(ttest_rel(one, other).pvalue) if np.ptp(one - other) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    rising = np.maximum.accumulate(np.minimum(1.0, np.asarray(p_values)[order] * factors))
    adjusted = np.empty(len(p_values))
    adjusted[order] = rising
    return adjusted.tolist()


def verdict(gain: float, p: float) -> str:
    """Who has the better held-out KL: the front "won", "lost", or "tied" with the optimum."""
    if p >= SIGNIFICANCE:
        return "tied"
    return "won" if gain > 0 else "lost"
