"""What lifting a tensor out of a plan gains, beside what a look at the plan and the profile say.

The plan is the additive optimum at a target. One group after another gets no format, and the KL
that the plan gains is set against the group's number within the plan (`mpq.profiling.in_plan`)
and against its damage alone. All three look at the same calibration windows.
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
from mpq.search.expansion import group_damage
from mpq.search.objective import make_objectives
from mpq.search.settings import anchors_of
from mpq.search.space import Space

COLUMNS = ("at the cost of", "KL of the plan", "groups lifted", "gains",
           "look: rank correlation", "look: sum over gains", "profile: rank correlation",
           "profile: sum over gains")  # fmt: skip


def measure_looks(
    out: Path,
    *,
    config: Path,
    every: int = 4,
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Gains and estimates at every target of a search, as plain values.

    A target that is in `out` already is not measured again.

    Args:
        out: Directory of the profile and of what was measured.
        config: A search with targets.
        every: Every how many of the groups that have a format to lose are lifted.
        overrides: Dotted keys of the config -> other values.
        say: Told about each target.
    """
    resolved = load_search_config(config, dict(overrides or {}))
    subject = load_subject(resolved)
    run = start(subject, out)
    space = make_space(subject, measure_damage(subject, out, lambda *_: None))
    evaluate = Evaluation(subject, subject.splits.calibration)
    objectives = make_objectives(resolved.search.objectives)
    path = out / "lifted.json"
    known: dict[str, Any] = dict(read_json(path)) if path.exists() else {}
    for anchor in anchors_of(space, settings_of(resolved), objectives):
        if anchor.name not in known:
            known[anchor.name] = lifted_at(anchor, space, evaluate, every)
            write_json(path, known)
        say(" | ".join(row_of(anchor.name, known[anchor.name])))
    return {
        "config": resolved.resolved(),
        "provenance": run.provenance,
        "every": every,
        "anchors": known,
    }


def lifted_at(anchor: Anchor, space: Space, evaluate: Evaluation, every: int) -> dict[str, Any]:
    """The KL of the optimum at an anchor, and of each lifted group name, gain and estimates."""
    choices = anchor.allocation
    plan = space.plan(choices)
    within = group_damage(space, evaluate.in_plan(plan))
    whole = mean_kl(evaluate, plan)
    chosen = [group.candidates[c] for group, c in zip(space.groups, choices, strict=True)]
    named = [index for index, fmt in enumerate(chosen) if not fmt.is_identity]
    rows = []
    for index in named[::every]:
        group = space.groups[index]
        formats = {name: f for name, f in plan.formats.items() if name not in group.sites}
        rows.append(
            {
                "group": group.name,
                "format": str(chosen[index]),
                "gain": whole - mean_kl(evaluate, Plan(formats=formats)),
                "look": float(within[index]),
                "profile": float(space.damage[index, choices[index]]),
            }
        )
    return {"kl": whole, "lifted": rows}


def mean_kl(evaluate: Evaluation, plan: Plan) -> float:
    """Nats a token over all windows."""
    return float(evaluate(plan)["kl"].mean())


def row_of(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of `COLUMNS`."""
    rows = found["lifted"]
    gains = [row["gain"] for row in rows]
    cells = []
    for estimate in ("look", "profile"):
        values = [row[estimate] for row in rows]
        cells += [f"{spearmanr(values, gains).statistic:.3f}", f"{sum(values) / sum(gains):.2f}"]
    span = f"{min(gains):.2g} to {max(gains):.2g}"
    return (name, f"{found['kl']:.4g}", str(len(rows)), span, *cells)


def look_rows(result: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """A row of `COLUMNS` for each target."""
    return [row_of(name, found) for name, found in result["anchors"].items()]
