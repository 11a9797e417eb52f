"""Which trials of a study count, and which one is one too many: what several workers agree on."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mpq.search.workers import QUEUED


def claims_of(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Every trial that counts: finished, running or queued; not the failed ones."""
    return [trial for trial in trials if trial.state != TrialState.FAIL]


def is_refinement(trial: FrozenTrial) -> bool:
    """True for an exchange; all others are the sampler's, seeds included."""
    return bool(trial.user_attrs.get(QUEUED, {}).get("source") == "refine")


def is_surplus(
    number: int, queued: Mapping[str, Any] | None, trials: Sequence[FrozenTrial], *, quota: int
) -> bool:
    """True when trials of lower numbers fill the quota, or have the same queued plan.

    Args:
        number: Of the trial that is about to run.
        queued: What the queue says of it; None for a trial of the sampler's.
        trials: All trials of lower numbers, at least.
        quota: How many trials of its sort (exchanges, or all others) the study is to have.
    """
    is_refined = queued is not None and queued["source"] == "refine"
    before = [other for other in claims_of(trials) if other.number < number]
    num_alike = sum(is_refinement(other) == is_refined for other in before)
    has_twin = queued is not None and any(
        other.user_attrs.get(QUEUED, {}).get("choices") == queued["choices"] for other in before
    )
    return num_alike >= quota or has_twin
