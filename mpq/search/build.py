"""A space built from sites, candidates and damages: who is tied to whom, and what choices cost."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mpq.cost import counted, site_bits
from mpq.errors import PlanError
from mpq.formats.format import Format
from mpq.plans.plan import Plan
from mpq.plans.site import Site
from mpq.search.space import RESOURCES, Group, IntArray, Space, by_bits, texts_of


def build_space(  # noqa: PLR0913 (the last two only label the plans)
    sites: Sequence[Site],
    candidates: Mapping[str, Sequence[Format]],
    *,
    fixed: Mapping[str, Format] | None = None,
    damage: Callable[[str, str], float],
    tie: str = "fused",
    tokens: int = 256,
    model: str = "",
    fingerprint: str = "",
) -> Space:
    """The space of all plans over the searched sites.

    Args:
        sites: All sites of the model.
        candidates: Name of each searched site -> its candidate formats.
        fixed: Name of each site held at one format -> that format.
        damage: (site name, format text) -> nats per token; NaN where it was not measured.
        tie: "fused" joins the sites of one `Site.group`, "none" leaves each alone.
        tokens: Length of the sequence that activations are counted for.
        model: Id of the model, written into plans.
        fingerprint: Of the model's weights, written into plans.

    Raises:
        PlanError: No site is searched, a searched site is fixed or unknown, tied sites have
            different candidates, or a group has no candidate that was measured.
    """
    fixed = dict(fixed or {})
    searched = _searched(sites, candidates, fixed)
    members: dict[str, list[Site]] = {}
    for site in searched:
        members.setdefault(_group_key(site, tie), []).append(site)
    last_block = max((site.block for site in sites), default=0)
    groups = _groups(members, candidates, last_block, tokens)
    width = max(len(group.candidates) for group in groups)
    table = np.full((len(groups), width), np.inf)
    for row, group in enumerate(groups):
        for column, fmt in enumerate(group.candidates):
            table[row, column] = _group_damage(damage(name, str(fmt)) for name in group.sites)
    unmeasured = [g.name for g, row in zip(groups, table, strict=True) if np.isinf(row).all()]
    if unmeasured:
        raise PlanError(
            "a searched group needs the damage of at least one of its candidates; none was "
            f"measured for {', '.join(unmeasured)}; run the profile for these sites and formats"
        )
    named = Plan(formats={name: formats[0] for name, formats in candidates.items()} | fixed)
    costs, fixed_costs, values = {}, {}, {}
    for name in RESOURCES:
        paid = {site.name: site for site in counted(name, sites, named)}
        costs[name] = _cost_table(groups, paid, width, tokens)
        outside = [site for site in paid.values() if site.name not in candidates]
        fixed_costs[name] = sum(site_bits(s, fixed.get(s.name), tokens) for s in outside)
        values[name] = sum(math.prod(site.shape_at(tokens)) for site in paid.values())
    return Space(
        groups=groups,
        fixed=fixed,
        damage=table,
        costs=costs,
        fixed_costs=fixed_costs,
        values=values,
        sites=tuple(sites),
        tokens=tokens,
        model=model,
        fingerprint=fingerprint,
    )


def _searched(
    sites: Sequence[Site], candidates: Mapping[str, Sequence[Format]], fixed: Mapping[str, Format]
) -> list[Site]:
    searched = [site for site in sites if site.name in candidates]
    unknown = sorted((candidates.keys() | fixed.keys()) - {site.name for site in sites})
    if unknown:
        raise PlanError(f"searched or fixed sites must be sites of the model; unknown: {unknown}")
    both = sorted(candidates.keys() & fixed.keys())
    if both:
        raise PlanError(f"a site is searched or fixed, not both: {both}; remove it from one")
    if not searched:
        raise PlanError("a search needs at least one searched site; none was given")
    return searched


def _group_key(site: Site, tie: str) -> str:
    return site.group if tie == "fused" else site.name


def _groups(
    members: Mapping[str, Sequence[Site]],
    candidates: Mapping[str, Sequence[Format]],
    last_block: int,
    tokens: int,
) -> tuple[Group, ...]:
    groups, faults = [], []
    for key, tied in members.items():
        offered = {tuple(sorted(set(candidates[s.name]), key=by_bits)) for s in tied}
        if len(offered) > 1:
            faults.append(f"{key}: {' | '.join(sorted(texts_of(formats) for formats in offered))}")
            continue
        first = tied[0]
        kinds = "+".join(dict.fromkeys(site.kind for site in tied))
        groups.append(
            Group(
                name=key,
                sites=tuple(site.name for site in tied),
                kind=f"{kinds}.{first.role}",
                depth=0.5 if first.block < 0 else first.block / max(1, last_block),
                is_stored=first.is_stored,
                values=sum(math.prod(site.shape_at(tokens)) for site in tied),
                candidates=offered.pop(),
            )
        )
    if faults:
        raise PlanError(
            "tied sites need the same candidates:\n  "
            + "\n  ".join(faults)
            + '\ngive them the same formats, or set tie = "none"'
        )
    return tuple(groups)


def _group_damage(parts: Iterable[float]) -> float:
    total = math.fsum(parts)
    # An estimate a little below zero is noise of the profile; no format improves a tensor.
    return math.inf if math.isnan(total) else max(0.0, total)


def _cost_table(
    groups: Sequence[Group], paid: Mapping[str, Site], width: int, tokens: int
) -> IntArray:
    table = np.zeros((len(groups), width), dtype=np.int64)
    for row, group in enumerate(groups):
        sites = [paid[name] for name in group.sites if name in paid]
        for column in range(width):
            fmt = group.candidates[min(column, len(group.candidates) - 1)]
            table[row, column] = sum(site_bits(site, fmt, tokens) for site in sites)
    return table
