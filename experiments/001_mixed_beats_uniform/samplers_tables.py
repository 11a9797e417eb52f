"""The results of samplers.py as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHOWN = (0.25, 0.5, 1.0)
"""Parts of the budget of passes after which the hypervolume is shown; looks at plans come last."""


def tables_of(results: Mapping[str, Any]) -> str:
    """The results as three Markdown tables."""
    parts = (growth_rows(results), direct_rows(results), optima_rows(results))
    return "\n".join("".join("| " + " | ".join(row) + " |\n" for row in rows) for rows in parts)


def growth_rows(results: Mapping[str, Any]) -> list[Sequence[str]]:
    """Hypervolume by trial: median of the seeds [least, most]."""
    trials = max(study["trials"] for study in results["studies"])
    places = [round(part * trials) for part in SHOWN]
    columns = [f"after {place} passes" for place in places]
    rows: list[Sequence[str]] = [
        ("sampler", "search", *columns, "passes", "seconds a study", "in the model")
    ]
    rows.append(("---",) * len(rows[0]))
    for sampler in results["samplers"]:
        for arm in results["arms"]:
            cells = []
            for place in places:
                shares = shares_at(results, sampler, arm, place)
                cells.append(f"{np.median(shares):.4f} [{min(shares):.4f}, {max(shares):.4f}]")
            count, seconds, forward = (
                float(np.median([study[key] for study in studies_of(results, sampler, arm)]))
                for key in ("passes", "seconds", "forward_seconds")
            )
            rows.append(
                (
                    sampler,
                    arm,
                    *cells,
                    f"{count:.0f}",
                    f"{seconds:.0f}",
                    f"{forward / seconds:.0%}",
                )
            )
    return rows


def shares_at(results: Mapping[str, Any], sampler: str, arm: str, place: int) -> list[float]:
    """The hypervolume of each seed after so many trials, or the last kept before."""
    found = []
    for study in studies_of(results, sampler, arm):
        kept = [int(count) for count in study["hypervolume"] if int(count) <= place]
        found.append(study["hypervolume"][str(max(kept))])
    return found


def studies_of(results: Mapping[str, Any], sampler: str, arm: str) -> list[Mapping[str, Any]]:
    """The studies of all seeds."""
    wanted = (sampler, arm)
    return [one for one in results["studies"] if (one["sampler"], one["arm"]) == wanted]


def direct_rows(results: Mapping[str, Any]) -> list[Sequence[str]]:
    """Guided against direct: when all trials are spent, and after as many measured plans."""
    columns = ["sampler"]
    for when in ("all trials", "as many measured plans"):
        columns += [f"{when}: direct", "guided", "guided - direct", "seeds won"]
    rows: list[Sequence[str]] = [(*columns, "plans")]
    rows.append(("---",) * len(rows[0]))
    for sampler in results["samplers"]:
        spent = [shares_at(results, sampler, arm, 10**9) for arm in ("direct", "guided")]
        curves = [
            [one["hypervolume_by_measured_plan"] for one in studies_of(results, sampler, arm)]
            for arm in ("direct", "guided")
        ]
        # The seeds' own numbers of plans: each pair ends where its shorter search ends.
        ends = [min(len(one), len(other)) for one, other in zip(*curves, strict=True)]
        alike = [[c[end - 1] for c, end in zip(arm, ends, strict=True)] for arm in curves]
        plans = f"{min(ends)} to {max(ends)}"
        rows.append((sampler, *versus(*spent), *versus(*alike), plans))
    return rows


def versus(direct: Sequence[float], guided: Sequence[float]) -> tuple[str, str, str, str]:
    """Both medians, their difference, and in how many seeds guided is ahead."""
    medians = float(np.median(direct)), float(np.median(guided))
    won = sum(one > other for one, other in zip(guided, direct, strict=True))
    return (
        f"{medians[0]:.4f}",
        f"{medians[1]:.4f}",
        f"{medians[1] - medians[0]:+.4f}",
        f"{won} of {len(direct)}",
    )


def optima_rows(results: Mapping[str, Any]) -> list[Sequence[str]]:
    """How often each sampler's refined front won, tied and lost against the additive optimum.

    Between the rungs also what the search answered when it was asked for that budget.
    """
    outcomes = ("won", "tied", "lost")
    places = ("at the rungs", "between them", "between them, asked")
    columns = [f"{where}: won / tied / lost" for where in places]
    rows: list[Sequence[str]] = [("sampler", *columns, "worst", "best", "asked: worst", "best")]
    rows.append(("---",) * len(rows[0]))
    asked = results["against_optima"].get("asked", {})
    for sampler, table in results["against_optima"]["samplers"].items():
        answered = asked.get(sampler, [])
        parts = [[row for row in table if row["rung"] == rung] for rung in (True, False)]
        cells = []
        for part in (*parts, answered):
            verdicts = [row["verdict"] for row in part]
            counts = (str(verdicts.count(outcome)) for outcome in outcomes)
            cells.append(" / ".join(counts) if part else "")
        rows.append((sampler, *cells, *ends_of(table), *ends_of(answered)))
    return rows


def ends_of(table: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The worst and the best gain in a table; empty where nothing was compared."""
    gains = [row["gain"] for row in table]
    return (f"{min(gains):+.1%}", f"{max(gains):+.1%}") if gains else ("", "")
