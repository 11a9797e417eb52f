"""Formats assigned by what a solver loses in them: under a budget, or by a threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpq.errors import PlanError
from mpq.formats.block import WHOLE
from mpq.formats.format import Format
from mpq.plans.allocate import allocate
from mpq.plans.site import Site

Damages = Mapping[str, Mapping[str, float]]
"""Site -> format's text -> damage of a sensitivity profile."""

ORDER_BITS = 32
"""Bits of an entry of a stored order of columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateLosses:
    """What each weight loses in each candidate format.

    Attributes:
        sites: The weights.
        formats: The candidates, in the order in which they were given.
        losses: Site -> candidate's text -> loss, ½ tr(ΔW·H·ΔWᵀ).
        rounded: The same of rounding to nearest.
        energies: Site -> ½ tr(W·H·Wᵀ), the output's own energy.
        stores_order: Whether formats with groups store an order of columns beside their codes.
    """

    sites: tuple[Site, ...]
    formats: tuple[Format, ...]
    losses: Mapping[str, Mapping[str, float]]
    rounded: Mapping[str, Mapping[str, float]]
    energies: Mapping[str, float]
    stores_order: bool = False


def assign_under_budget(
    found: CandidateLosses,
    target_bits: float,
    *,
    tied: bool,
    relative: bool = False,
    damages: Damages | None = None,
) -> dict[str, Format]:
    """Site -> format with the least sum of losses at a mean of `target_bits` a weight.

    Exact (see `mpq.plans.allocate`); scales and all else that is stored counts. The rule that
    Sparsebit's threshold stands for, with the budget given in place of the threshold.

    Args:
        found: The losses.
        target_bits: Bits a value that the weights may take on average.
        tied: Weights that an engine fuses take one format.
        relative: Each loss as a share of its output's energy; else in its own unit.
        damages: What rounding each weight does to the model. Then a weight counts by its damage
            times the share of rounding's loss that the solver leaves: a loss says how much a
            layer's output changes, and not what the model makes of it.

    Raises:
        BudgetError: The candidates do not go as low; names what they reach.
        PlanError: A damage is missing.
    """
    if damages is not None:
        _require_damages(found, damages)
    groups = _groups(found.sites, tied=tied)
    damage = np.array(
        [
            [_weighed(found, group, fmt, relative, damages) for fmt in found.formats]
            for group in groups
        ]
    )
    costs = np.array(
        [[[_bits(found, group, fmt) for fmt in found.formats] for group in groups]], dtype=np.int64
    )
    values = sum(int(np.prod(site.shape)) for site in found.sites)
    choices = allocate(damage, costs, np.array([int(target_bits * values)]))
    return {
        site.name: found.formats[choice]
        for group, choice in zip(groups, choices, strict=True)
        for site in group
    }


def assign_by_threshold(
    found: CandidateLosses, threshold: float, *, tied: bool
) -> dict[str, Format]:
    """Site -> the first candidate whose loss a weight is below the threshold, else the last.

    Sparsebit's rule (its LLaMA tool's `convert.py`), with H averaged over tokens: its threshold
    of 1e-3 is over the tokens of a window, so 1e-3 divided by their number here.

    Args:
        found: The losses; candidates are looked at in their order, so give the narrowest first.
        threshold: Loss divided by the number of weights.
        tied: Weights that an engine fuses take one format: the loss is theirs together.

    Raises:
        PlanError: The threshold is not above 0.
    """
    if not threshold > 0:
        raise PlanError(f"a loss threshold is above 0, not {threshold}; give, for example, 1e-6")
    chosen: dict[str, Format] = {}
    for group in _groups(found.sites, tied=tied):
        values = sum(int(np.prod(site.shape)) for site in group)
        accepted = (
            fmt for fmt in found.formats if _weighed(found, group, fmt, False) / values < threshold
        )
        format = next(accepted, found.formats[-1])
        chosen |= {site.name: format for site in group}
    return chosen


def _groups(sites: Sequence[Site], *, tied: bool) -> list[list[Site]]:
    members: dict[str, list[Site]] = {}
    for site in sites:
        members.setdefault(site.group if tied else site.name, []).append(site)
    return list(members.values())


def _require_damages(found: CandidateLosses, damages: Damages) -> None:
    missing = [
        f"{site.name} in {fmt}"
        for site in found.sites
        for fmt in found.formats
        if str(fmt) not in damages.get(site.name, {})
    ]
    if missing:
        raise PlanError(
            f"a profile has the damage of every weight in every candidate, and lacks "
            f"{len(missing)}: {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; "
            "profile these formats (mpq-profile sensitivity --formats …)"
        )


def _weighed(
    found: CandidateLosses,
    group: Sequence[Site],
    format: Format,
    relative: bool,
    damages: Damages | None = None,
) -> float:
    total, text = 0.0, str(format)
    for site in group:
        loss = found.losses[site.name][text]
        rounded, energy = found.rounded[site.name][text], found.energies[site.name]
        if damages is not None:
            loss = damages[site.name][text] * (loss / rounded if rounded > 0 else 1.0)
        elif relative and energy > 0:
            loss /= energy
        total += loss
    return total


def _bits(found: CandidateLosses, group: Sequence[Site], format: Format) -> int:
    return sum(
        format.bits(site.shape, site.axis)
        + (
            ORDER_BITS * site.shape[site.axis]
            if found.stores_order and has_groups(site, format)
            else 0
        )
        for site in group
    )


def has_groups(site: Site, format: Format) -> bool:
    """Whether several blocks of a format lie along the axis that a weight's matmul reduces."""
    columns = WHOLE if format.block is None else format.block.columns
    return columns not in (WHOLE, site.shape[site.axis])
