"""What a search leaves behind: the artefacts of its run directory, and the tables it prints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mpq.cli.console import print_table

if TYPE_CHECKING:
    from pathlib import Path

    from mpq.run import Run
    from mpq.search.front import TrialRecord
    from mpq.search.prove import Comparison, Interval, Proof
    from mpq.search.study import Search

WRITE_SECONDS = 5.0
"""The tables of a running search are rewritten at most this often."""

MAX_ROWS = 24


class Artefacts:
    """trials.csv and front.csv of a running search, kept up to date."""

    def __init__(self, run: Run, search: Search) -> None:
        """Writes nothing yet."""
        self._run = run
        self._search = search
        self._written = 0.0

    def update(self, records: Sequence[TrialRecord], *, force: bool = False) -> None:
        """Rewrites both tables from the finished trials, unless that was done a moment ago."""
        from mpq.run import FRONT, TRIALS, write_csv
        from mpq.search.front import pareto_front, trial_row

        if not force and time.monotonic() - self._written < WRITE_SECONDS:
            return
        search = self._search
        front = pareto_front(records, search.objectives)
        ordered = sorted(records, key=lambda record: record.number)
        for name, rows in ((TRIALS, ordered), (FRONT, front)):
            write_csv(
                self._run.artefact(name), [trial_row(row, search.objectives) for row in rows]
            )
        self._written = time.monotonic()


def write_plans(run: Run, search: Search, proof: Proof | None) -> list[Path]:
    """The files of the front's plans, and of what stands at each anchor.

    `front_<trial>.toml` for the front; `at_<anchor>.toml` for the plan that the proof left
    standing there (`at_bfp4.toml`, `at_3.5_bits.toml`), `best.toml` where only a budget bounds
    the search.
    """
    from mpq.run import PLANS
    from mpq.search.front import pareto_front

    written = []
    front = pareto_front(search.records(), search.objectives)
    for record in front:
        plan = search.space.plan(record.choices)
        written.append(run.write_plan(f"front_{record.number:04d}", plan))
    if proof is not None:
        for comparison in proof.comparisons:
            name = plan_name(search, comparison)
            written.append(run.write_plan(name, search.space.plan(comparison.choices)))
    for path in run.artefact(PLANS).glob("front_*.toml"):
        if path not in written:
            path.unlink(missing_ok=True)
    return written


def plan_name(search: Search, comparison: Comparison) -> str:
    """Name of the file of the plan that stands in a comparison."""
    if all(objective.source != "cost" for objective in search.objectives):
        return "best"
    return "at_" + "".join(c if c.isalnum() or c in "-._" else "_" for c in comparison.anchor)


def summary(
    search: Search, proof: Proof | None, *, window_tokens: int | None = None
) -> dict[str, Any]:
    """What summary.json holds: counts, times, and the proof.

    Args:
        search: Whose trials.
        proof: Where there is one.
        window_tokens: Tokens a window; None where windows are examples.
    """
    from mpq.search.front import pareto_front

    records = search.records()
    front = pareto_front(records, search.objectives)
    table: dict[str, Any] = {
        "trials": len(records),
        "by_source": {
            source: sum(record.source == source for record in records)
            for source in ("uniform", "allocation", "sampler", "refine")
        },
        "dropped": sum(record.state == "dropped" for record in records),
        "pruned": sum(record.state == "pruned" for record in records),
        "over_budget": sum(not record.is_feasible for record in records),
        "reused": sum(record.is_reused for record in records),
        "front": [record.number for record in front],
        "objectives": {o.name: o.direction for o in search.objectives},
        "seconds": sum(record.seconds for record in records),
        "forward_seconds": sum(record.forward_seconds for record in records),
    }
    table["windows_judged"] = sum(record.num_judged for record in records)
    if window_tokens is not None:
        table["tokens_judged"] = table["windows_judged"] * window_tokens
    if table["seconds"]:
        table["trials_a_minute"] = 60 * len(records) / table["seconds"]
        table["forward_share"] = table["forward_seconds"] / table["seconds"]
    if proof is not None:
        table["proof"] = {
            "measure": proof.measure,
            "windows": proof.num_windows,
            "comparisons": [
                comparison_entry(search, one, plan_name(search, one)) for one in proof.comparisons
            ],
            "plans": [
                {"trial": contender.trial, "role": contender.role, **asdict(interval)}
                for contender, interval in proof.contenders
            ],
        }
    return table


def comparison_entry(search: Search, comparison: Comparison, name: str) -> dict[str, Any]:
    """A comparison as summary.json holds it, with the cost of the plan left and its file."""
    entry = asdict(comparison)
    del entry["choices"]
    entry["plan"] = f"plans/{name}.toml"
    entry["cost"] = asdict(search.space.cost(comparison.choices))
    return entry


def print_front(search: Search, proof: Proof | None) -> None:
    """Prints the Pareto front, with the held-out measure of the plans that were proven."""
    from mpq.search.front import pareto_front
    from mpq.search.prove import spread

    proven: Mapping[int | None, Interval] = {}
    if proof is not None:
        proven = {contender.trial: interval for contender, interval in proof.contenders}
    front = pareto_front(search.records(), search.objectives)
    shown = spread(front, MAX_ROWS)
    columns = ["trial", "source", *(_heading(search, i) for i in range(len(search.objectives)))]
    if proof is not None:
        columns.append(f"held-out {proof.measure}")
    rows = []
    for record in shown:
        row = [str(record.number), _origin(record), *(number(v) for v in record.values)]
        if proof is not None:
            found = proven.get(record.number)
            row.append("" if found is None else interval_text(found))
        rows.append(row)
    more = f", {len(shown)} of them" if len(shown) < len(front) else ""
    print_table(f"Pareto front: {len(front)} plans{more}", columns, rows, num_text_columns=2)


def print_comparisons(proof: Proof, confidence: float) -> None:
    """Prints what was found at each anchor, against the uniform plan and the allocation."""
    columns = ["at the cost of", "uniform", "allocation", "found", "returned"]
    columns += ["better than uniform by", "", "than allocation by"]
    rows = [
        [
            one.anchor,
            _uniform_text(one),
            *(number(interval.mean) for interval in (one.allocation, one.found)),
            one.returned,
            "" if one.gain_over_uniform is None else interval_text(one.gain_over_uniform),
            _share(one),
            interval_text(one.gain_over_allocation),
        ]
        for one in proof.comparisons
    ]
    print_table(
        f"Held-out {proof.measure}, {proof.num_windows} windows: each plan at no more than that "
        f"cost; paired {confidence:.0%} intervals",
        columns,
        rows,
    )
    contested = [one for one in proof.comparisons if one.is_contested]
    beaten = [one.anchor for one in contested if one.returned != "found"]
    if beaten:
        print(
            f"At the cost of {', '.join(beaten)} the search found nothing better than the "
            "baseline, which is returned."
        )


def print_times(search: Search) -> None:
    """Prints how fast trials were, and what share of their time was not spent in forwards."""
    if not search.num_run or not search.loop_seconds:
        return
    rest = search.loop_seconds - search.forward_seconds
    print(
        f"{search.num_run} trials in {search.loop_seconds:.1f} s "
        f"({60 * search.num_run / search.loop_seconds:.0f} a minute): "
        f"{search.forward_seconds:.1f} s in the model and its measures; what is left of a trial's "
        f"time is {1000 * rest / search.num_run:.0f} ms ({rest / search.loop_seconds:.1%})"
    )


def number(value: float) -> str:
    """A number in four significant digits."""
    if math.isfinite(value) and value == round(value) and abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}"


def interval_text(interval: Interval) -> str:
    """`mean [low, high]`."""
    return f"{interval.mean:.4g} [{interval.low:.3g}, {interval.high:.3g}]"


def _share(one: Comparison) -> str:
    """The margin over the uniform plan as a share of its measure."""
    if one.uniform is None or one.gain_over_uniform is None or not one.uniform.mean:
        return ""
    return f"{one.gain_over_uniform.mean / abs(one.uniform.mean):.1%}"


def _uniform_text(one: Comparison) -> str:
    """The uniform plan's measure, and its format where the anchor is not its own."""
    if one.uniform is None:
        return "none"
    text = number(one.uniform.mean)
    return text if one.rival == one.anchor else f"{one.rival} {text}"


def _heading(search: Search, index: int) -> str:
    objective = search.objectives[index]
    return f"{objective.name} ({objective.unit})" if objective.unit else objective.name


def _origin(record: TrialRecord) -> str:
    return f"uniform {record.anchor}" if record.source == "uniform" else record.source


def objective_texts(search: Search, values: Sequence[float]) -> str:
    """`kl 0.12, weight_bits 4.5`."""
    named = zip(search.objectives, values, strict=True)
    return ", ".join(f"{objective.name} {number(value)}" for objective, value in named)
