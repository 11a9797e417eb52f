"""What moving a tensor in a plan changes, beside what a look at the plan and the profile say.

The plan is the additive optimum at a target. One group after another gets the next narrower
format, the next wider one, and none, and the change of the plan's KL is set against what a look
at the plan says of it (`mpq.profiling.in_plan`, `mpq.search.expansion`) and against the change of
its damage alone. All three look at the same calibration windows.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from mpq.cli.evaluation import Evaluation
from mpq.cli.search import start
from mpq.cli.search_wiring import load_subject, make_space, measure_damage, settings_of
from mpq.config import load_search_config
from mpq.plans.plan import Plan
from mpq.run import read_json, write_json
from mpq.search.anchors import Anchor
from mpq.search.expansion import damage_around, group_moves
from mpq.search.objective import make_objectives
from mpq.search.settings import anchors_of
from mpq.search.space import Space

MOVES = ("narrower", "wider", "none")
"""Where a group goes."""

COLUMNS = ("at the cost of", "KL of the plan", "to", "groups", "changes",
           "look: rank correlation", "look: sum over changes", "profile: rank correlation",
           "profile: sum over changes")  # fmt: skip


def measure_looks(
    out: Path,
    *,
    config: Path,
    every: int = 6,
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Changes and estimates at every target of a search, as plain values.

    A target that is in `out` already is not measured again.

    Args:
        out: Directory of the profile and of what was measured.
        config: A search with targets.
        every: Every how many of the groups are moved.
        overrides: Dotted keys of the config -> other values.
        say: Told about each target.
    """
    resolved = load_search_config(config, dict(overrides or {}))
    subject = load_subject(resolved)
    run = start(subject, out)
    space = make_space(subject, measure_damage(subject, out, lambda *_: None))
    evaluate = Evaluation(subject, subject.splits.calibration)
    objectives = make_objectives(resolved.search.objectives)
    path = out / "moved.json"
    known: dict[str, Any] = dict(read_json(path)) if path.exists() else {}
    for anchor in anchors_of(space, settings_of(resolved), objectives):
        if anchor.name not in known:
            known[anchor.name] = moved_at(anchor, space, evaluate, every)
            write_json(path, known)
        for row in rows_of(anchor.name, known[anchor.name]):
            say(" | ".join(row))
    return {
        "config": resolved.resolved(),
        "provenance": run.provenance,
        "every": every,
        "anchors": known,
    }


def moved_at(anchor: Anchor, space: Space, evaluate: Evaluation, every: int) -> dict[str, Any]:
    """The KL of the optimum at an anchor, and of each move group, change and estimates."""
    choices = anchor.allocation
    plan = space.plan(choices)
    moves = group_moves(space, evaluate.in_plan(plan))
    around = damage_around(space.damage, choices, moves, 1.0)
    whole = mean_kl(evaluate, plan)
    rows = []
    for index in range(0, len(choices), every):
        own, group = space.damage[index, choices[index]], space.groups[index]
        formats = {name: f for name, f in plan.formats.items() if name not in group.sites}
        found = {"none": (Plan(formats=formats), 0.5 * moves.whole[index], -own)}
        for move, target in (("narrower", choices[index] - 1), ("wider", choices[index] + 1)):
            if 0 <= target < len(group.candidates):
                moved = space.plan((*choices[:index], target, *choices[index + 1 :]))
                found[move] = (moved, around[index, target], space.damage[index, target] - own)
        rows += [
            {
                "group": group.name,
                "format": str(group.candidates[choices[index]]),
                "to": move,
                "change": mean_kl(evaluate, moved) - whole,
                "look": float(look),
                "profile": float(profile),
            }
            for move, (moved, look, profile) in found.items()
        ]
    return {"kl": whole, "moved": rows}


def mean_kl(evaluate: Evaluation, plan: Plan) -> float:
    """Nats a token over all windows."""
    return float(evaluate(plan)["kl"].mean())


def rows_of(name: str, found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of `COLUMNS`, one for each direction in which groups were moved."""
    table = []
    for move in MOVES:
        rows = [row for row in found["moved"] if row["to"] == move]
        changes = [row["change"] for row in rows]
        if len(rows) < 3:
            continue
        cells = []
        for estimate in ("look", "profile"):
            values = [row[estimate] for row in rows]
            cells += [
                f"{spearmanr(values, changes).statistic:.3f}",
                f"{sum(values) / sum(changes):.2f}",
            ]
        span = f"{min(changes):.2g} to {max(changes):.2g}"
        table.append((name, f"{found['kl']:.4g}", move, str(len(rows)), span, *cells))
    return table


def look_rows(result: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """Rows of `COLUMNS`, target by target."""
    return [row for name, found in result["anchors"].items() for row in rows_of(name, found)]
