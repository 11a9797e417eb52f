"""Rungs: every plan is judged on a few windows, and on more as long as it may be worth it.

A trial climbs from rung to rung by itself: after each it is laid beside the finished trials that
cost no more, on the windows that both have seen, and stops when it is hopeless. So what a trial
does depends on finished trials only, there is nothing to promote later, and every trial of a
study has values on the first rung's windows. Baselines climb all the way.

Successive rungs are Jamieson and Talwalkar's, "Non-stochastic Best Arm Identification and
Hyperparameter Optimization" (2016); a trial that decides by itself, without waiting for others
of its rung, is Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020).
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpq.search.anchors import within
from mpq.search.front import TrialRecord, losses
from mpq.search.guided import Ladders
from mpq.search.objective import Evaluate, Objective
from mpq.search.paired import HOPELESS, p_better
from mpq.search.space import Choices, FloatArray, Space

PRUNER_RUNGS = 8
"""How often a pruner is asked about a trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a trial has seen so far of its plan.

    Attributes:
        choices: The plan.
        windows: The quality of each window.
        first_values: Its objectives on the first rung.
    """

    choices: Choices
    windows: FloatArray
    first_values: Sequence[float]


def rung_ranges(
    shares: Iterable[float], num_windows: int, batch_size: int
) -> list[tuple[int, int]]:
    """(first, last) windows of each rung beyond the one before, in whole batches.

    Args:
        shares: Of the windows that are seen up to each rung's end, ascending; the last is 1.
        num_windows: Windows in all.
        batch_size: Windows that are measured at once.
    """
    num_batches = -(-num_windows // batch_size)
    ends = {max(1, math.ceil(share * num_batches - 1e-9)) for share in shares}
    edges = [0, *(min(end * batch_size, num_windows) for end in sorted(ends))]
    return list(itertools.pairwise(edges))


def trial_ranges(
    shares: Iterable[float], evaluate: Evaluate, *, is_pruned: bool
) -> list[tuple[int, int]]:
    """(first, last) windows that a trial sees one after the other: rungs, or a pruner's steps."""
    windows, batch = evaluate.num_windows, evaluate.batch_size
    return rung_ranges(pruner_shares(windows, batch) if is_pruned else shares, windows, batch)


def pruner_shares(num_windows: int, batch_size: int) -> list[float]:
    """The shares at which a pruner is asked."""
    count = min(PRUNER_RUNGS, -(-num_windows // batch_size))
    return [(index + 1) / count for index in range(count)]


def bracket(
    space: Space, choices: Choices, ladders: Ladders, compared: Sequence[str]
) -> dict[str, int]:
    """Resource -> the most that others may spend to cost no more than this plan.

    That is the next step of a ladder: no two plans cost the same to the bit, and a plan that is
    cheaper by a few bits is not to go on for that.
    """
    found = {}
    for resource in compared:
        bits = space.bits(resource, choices)
        steps = ladders.get(resource, np.array([bits]))
        above = steps[steps >= bits]
        found[resource] = int(above[0]) if len(above) else bits
    return found


def is_hopeless(
    seen: Seen,
    space: Space,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    *,
    quality: Objective,
    limits: Mapping[str, int],
) -> bool:
    """True when a finished plan within `limits` is better as far as this one has been seen.

    The other is the best one on these windows that was judged on all windows, and is no worse in
    the other measures. It need not be better for certain: the paired test leaves plans alone
    that a few more windows may well put ahead.
    """
    index = objectives.index(quality)
    own = losses(seen.first_values, objectives)
    measured = [i for i, o in enumerate(objectives) if o.source != "cost" and i != index]
    sign = 1.0 if quality.direction == "minimize" else -1.0
    best: tuple[float, FloatArray] | None = None
    for record in records:
        if not record.is_candidate or record.windows is None or record.choices == seen.choices:
            continue
        theirs = losses(record.first_values, objectives)
        if any(theirs[i] > own[i] for i in measured) or not within(space, record.choices, limits):
            continue
        mean = sign * float(record.windows[: len(seen.windows)].mean())
        if best is None or mean < best[0]:
            best = mean, record.windows
    return best is not None and p_better(seen.windows, best[1], quality) > 1 - HOPELESS
