"""What is asked of a profile: which formats of which sites, and who is told how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mpq.errors import PlanError
from mpq.formats.format import Format
from mpq.plans.rules import matches
from mpq.plans.site import Site

Candidates = Mapping[Site, tuple[Format, ...]]
"""The formats that each site is measured in."""

Progress = Callable[[str, int, int], None]
"""Told (what is being done, how much of it is done, how much there is)."""


def candidates_of(
    sites: Sequence[Site],
    *,
    patterns: Sequence[str],
    formats: Sequence[Format],
    formats_for: Mapping[str, Sequence[Format]],
) -> Candidates:
    """The formats of every site that a pattern matches, in the order of `sites`.

    Args:
        sites: The model's.
        patterns: Whole names, or globs over them; a site is taken if one matches.
        formats: For every site that `formats_for` has none for.
        formats_for: Pattern -> formats instead; the first pattern that matches counts.

    Raises:
        PlanError: Lists all patterns that match no site.
    """
    idle = [
        pattern
        for pattern in (*patterns, *formats_for)
        if not any(matches(pattern, site) for site in sites)
    ]
    if idle:
        raise PlanError(
            f"a pattern must match a site's whole name; these match none: {', '.join(idle)}. "
            f"There are {len(sites)}, such as {', '.join(site.name for site in sites[:3])}"
        )
    return {
        site: tuple(
            next(
                (some for pattern, some in formats_for.items() if matches(pattern, site)), formats
            )
        )
        for site in sites
        if any(matches(pattern, site) for pattern in patterns)
    }
