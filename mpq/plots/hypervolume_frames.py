"""Trials -> rows: how much the front of a search covers, trial by trial.

The *hypervolume* of a set of plans is the area that they dominate, up to a reference point
(Zitzler and Thiele, "Multiobjective Optimization Using Evolutionary Algorithms", 1998). Both
measures are taken such that less is better, a logarithmic one as log10. The reference point has
the worst value of each measure among the uniform plans: for KL and bits, log10 of the highest KL
of a uniform plan, and the bits of the widest one. What is covered is given as a share of the
*box* from there to the best value of each measure among the uniform plans: 1 is a plan as good
as the best uniform one at the cost of the cheapest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mpq.errors import RunError
from mpq.plots.frames import Axis, finished_trials, is_study, named, sign

Along = Literal["trials", "forward_seconds"]
Floats = npt.NDArray[np.float64]
Key = tuple[str, int]
"""A run: the label of its line, and its place among the runs of that line."""
Curve = tuple[Floats, Floats]
"""What was spent, and the share that was covered, after each trial; `[N]` each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervolumeRows:
    """The hypervolume of one or several lines, as a search went on.

    Attributes:
        rows: One row a line and place: `line`, `at` (trials that have ended, or seconds of
            forward passes), `runs` (how many runs the line stands for), `low`, `median`, `high`
            (over the runs, shares of the box).
        along: What `at` counts.
        x: The measure along of the front.
        y: The measure up of the front.
        worst: The reference point `(x, y)`, in the measures' own units (not as log10).
        best: The opposite corner of the box, likewise.
    """

    rows: pd.DataFrame
    along: Along
    x: Axis
    y: Axis
    worst: tuple[float, float]
    best: tuple[float, float]


def hypervolume_rows(
    source: Any, *, x: str | None = None, y: str | None = None, along: Along = "trials"
) -> HypervolumeRows:
    """The hypervolume of the front after each trial, by line; see the module's page.

    Every finished trial counts as one, also those that were stopped early or over budget; only
    plans within budget that were measured in full add to the front. (Where trials differ in what
    they cost, forward seconds compare them better.) Trials are taken in the order of their
    numbers. A line of several runs shows their median and range, and ends with the shortest.

    All lines share one box. Where the uniform plans span none (another tool's study; one format),
    it is spanned by all measured plans within budget; where those do not either, everything is 0.

    Args:
        source: A run directory (path or `Run`) or an Optuna study; several of them, each a line
            of its own; or a mapping of a line's label to one or several of them.
        x: The measure along of the front; as in `front_rows`.
        y: The measure up of the front; as in `front_rows`.
        along: "trials", or "forward_seconds" for the time that trials spent in the model.

    Raises:
        RunError: There are no finished trials, no such measure, two lines of one name, or no
            record of forward seconds.
    """
    tables, axes = _read(_lines(source), x, y, along)
    losses = _losses(tables, axes)
    worst, best = _box(tables, losses)
    curves: dict[str, list[Curve]] = {}
    for key, trials in tables.items():
        spent = pd.Series(1.0, index=trials.index) if along == "trials" else trials[along]
        share = hypervolume_history(losses[key], worst, best)
        curves.setdefault(key[0], []).append((np.asarray(spent, float).cumsum(), share))
    rows = pd.concat([_line_rows(*item) for item in curves.items()], ignore_index=True)
    corners = [_in_units(corner, axes) for corner in (worst, best)]
    return HypervolumeRows(
        rows=rows, along=along, x=axes[0], y=axes[1], worst=corners[0], best=corners[1]
    )


def hypervolume_history(points: Floats, worst: Floats, best: Floats) -> Floats:
    """The share of the box that the first 1, 2, … N points dominate, float [N].

    A point beyond the best corner adds what lies outside of the box too, so that a share may pass
    1. A box without area is covered to the share 0.

    Args:
        points: `[N, 2]`, both to be minimised; NaN or infinite rows dominate nothing.
        worst: `[2]`, the reference point: what is worse than it in either dominates nothing.
        best: `[2]`, the opposite corner.
    """
    box = float(np.prod(worst - best))
    shares = np.zeros(len(points))
    if not box > 0:
        return shares
    front = np.empty((0, 2))
    for index, point in enumerate(points):
        is_inside = bool(np.isfinite(point).all() and (point < worst).all())
        if is_inside and not (front <= point).all(axis=1).any():
            kept = front[~(point <= front).all(axis=1)]
            front = np.vstack([kept, point])
            front = front[np.argsort(front[:, 0])]
        # Along the front one measure falls as the other rises: each step is a rectangle.
        widths = np.append(front[1:, 0], worst[0]) - front[:, 0]
        shares[index] = float(widths @ (worst[1] - front[:, 1])) / box if len(front) else 0.0
    return shares


def _lines(source: Any) -> dict[str, list[Any]]:
    """Label -> sources of one line."""
    if isinstance(source, Mapping):
        groups = {
            str(label): list(some) if _is_several(some) else [some]
            for label, some in source.items()
        }
    else:
        sources = list(source) if _is_several(source) else [source]
        groups = {_label(one): [one] for one in sources}
        if len(groups) < len(sources):
            raise RunError(
                "lines go by the names of their runs, and these are not all different: "
                f"{', '.join(_label(one) for one in sources)}; give a mapping of label -> run"
            )
    if not groups or not all(groups.values()):
        raise RunError("a hypervolume needs one run or study for each line; got none")
    return groups


def _is_several(source: Any) -> bool:
    return isinstance(source, Sequence) and not isinstance(source, str)


def _label(source: Any) -> str:
    return named(source) if is_study(source) else Path(named(source)).name


def _read(
    lines: Mapping[str, Sequence[Any]], x: str | None, y: str | None, along: Along
) -> tuple[dict[Key, pd.DataFrame], tuple[Axis, Axis]]:
    """The trials of every run, and the axes: what the first run has, all others need."""
    tables: dict[Key, pd.DataFrame] = {}
    found: list[tuple[Axis, Axis]] = []
    for label, sources in lines.items():
        for index, source in enumerate(sources):
            if found:
                x, y = (axis.name for axis in found[0])
            trials, axes = finished_trials(source, x=x, y=y)
            if along != "trials" and along not in trials:
                raise RunError(
                    f"{named(source)}: its trials have no {along}; draw it along the trials"
                )
            tables[label, index] = trials
            found.append(axes)
    return tables, found[0]


def _losses(tables: Mapping[Key, pd.DataFrame], axes: tuple[Axis, Axis]) -> dict[Key, Floats]:
    """Each run's trials as points to minimise, `[N, 2]`; NaN where one cannot be on a front."""
    columns = [_column_of(list(tables.values()), axis) for axis in axes]
    return {key: np.column_stack(pair) for key, *pair in zip(tables, *columns, strict=True)}


def _column_of(tables: Sequence[pd.DataFrame], axis: Axis) -> list[Floats]:
    """The measure of an axis for each run, `[N]`, in the terms of `_losses`."""
    found = [
        np.asarray(trials[axis.name].where(trials["measured"] & trials["feasible"]), float)
        for trials in tables
    ]
    if axis.logarithmic:
        # Nothing at all has no logarithm: it counts as the least there is.
        together = np.concatenate(found)
        least = together[together > 0].min(initial=np.inf)
        found = [np.log10(np.maximum(values, least)) for values in found]
    return [values * sign(axis.direction) for values in found]


def _box(
    tables: Mapping[Key, pd.DataFrame], losses: Mapping[Key, Floats]
) -> tuple[Floats, Floats]:
    """The worst and the best corner, `[2]` each: of the uniform plans, or else of all plans."""
    points = np.concatenate(list(losses.values()))
    uniform = np.concatenate([np.asarray(trials["label"] != "") for trials in tables.values()])
    finite = np.isfinite(points).all(axis=1)
    for some in (points[finite & uniform], points[finite]):
        if len(some) and (np.ptp(some, axis=0) > 0).all():
            return some.max(axis=0), some.min(axis=0)
    return np.zeros(2), np.zeros(2)


def _in_units(corner: Floats, axes: tuple[Axis, Axis]) -> tuple[float, float]:
    x, y = (
        value * sign(axis.direction) for value, axis in zip(corner.tolist(), axes, strict=True)
    )
    return (10**x if axes[0].logarithmic else x), (10**y if axes[1].logarithmic else y)


def _line_rows(label: str, curves: Sequence[Curve]) -> pd.DataFrame:
    """Median and range over the runs of a line, wherever one of them takes a step."""
    end = min(float(at[-1]) for at, _ in curves)
    places = np.unique(np.concatenate([at for at, _ in curves]))
    places = places[places <= end]
    shares = np.zeros((len(curves), len(places)))
    for row, (at, share) in enumerate(curves):
        before = np.searchsorted(at, places, side="right")
        shares[row] = np.append(0.0, share)[before]
    return pd.DataFrame(
        {
            "line": label,
            "at": places,
            "runs": len(curves),
            "low": shares.min(axis=0),
            "median": np.median(shares, axis=0),
            "high": shares.max(axis=0),
        }
    )
