"""The profile's damages, corrected by what whole plans were measured to suffer.

A profile looks at one site at a time and at small errors; in a plan errors add up on the way
through the model, and large ones grow faster than a second-order estimate says. Both show in the
trials that a search has run anyway.
"""

from collections.abc import Mapping

import numpy as np

from mpq.search.space import Choices, FloatArray

POWERS = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
PRIOR = 0.01
"""Weight of "the profile is right about this group", beside one trial that says otherwise."""

NEARBY = 0.5
"""Width of the weights of trials, in the natural logarithm of their measured damage."""

LARGEST_FACTOR = 4.0


def corrected_damage(
    damage: FloatArray, measured: Mapping[Choices, float], near: Choices
) -> FloatArray:
    """`[G, C]`: `damage ** power`, each group's scaled to what measured plans showed.

    A plan's damage is modelled as the sum of its groups' `scale * factor * damage ** power`. The
    factors come from ridge regression towards 1 on relative errors, weighted by how near a plan's
    damage is to that of `near`; the power is the one that predicts plans best which the fit did
    not see (leave-one-out residuals of a linear smoother, Hastie, Tibshirani and Friedman, The
    Elements of Statistical Learning, 2009, section 7.10). With fewer than three plans the
    damages stay as they are.

    Args:
        damage: `[G, C]` of the profile; inf where a choice is forbidden.
        measured: Plan -> what it was measured to suffer.
        near: The measured plan around which the correction is to be right.
    """
    groups = np.arange(len(damage))
    plans = [
        plan
        for plan, value in measured.items()
        if value > 0 and np.isfinite(damage[groups, list(plan)]).all()
    ]
    if len(plans) < 3 or not measured[near] > 0:
        return damage
    y = np.array([measured[plan] for plan in plans])
    own = np.array([damage[groups, list(plan)] for plan in plans])
    weight = np.exp(-0.5 * (np.log(y / measured[near]) / NEARBY) ** 2)
    fits = {power: _fit(own**power, y, weight) for power in POWERS}
    power = min(POWERS, key=lambda power: fits[power][0])
    return np.asarray(damage**power * fits[power][1][:, None], dtype=np.float64)


def _fit(own: FloatArray, y: FloatArray, weight: FloatArray) -> tuple[float, FloatArray]:
    """Squared error on plans left out, and the factor of every group `[G]`."""
    root = np.sqrt(weight)
    total = np.maximum(own.sum(axis=1), np.finfo(np.float64).tiny)
    scale = np.exp(np.average(np.log(y / total), weights=weight))
    features = own * (scale * root / y)[:, None]
    missing = root - features.sum(axis=1)
    solved = np.linalg.solve(
        features.T @ features + PRIOR * np.eye(own.shape[1]),
        np.column_stack([features.T @ missing, features.T]),
    )
    hat = np.einsum("ng,gn->n", features, solved[:, 1:])
    left_out = (missing - features @ solved[:, 0]) / np.maximum(1 - hat, 1e-9)
    factors = np.clip(1 + solved[:, 0], 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return float(left_out @ left_out), factors
