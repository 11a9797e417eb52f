"""Trials -> rows: what the figure of a front shows, as a pandas frame that needs no drawing.

A run directory or an Optuna study goes in; what comes out says everything that the figure shows
(which points are on the front, which keep the budget), so it can be tested, printed, or drawn by
another library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from mpq.cost import COST_MEASURES
from mpq.errors import RunError
from mpq.files import read_toml
from mpq.run import CONFIG, TRIALS

Direction = Literal["minimize", "maximize"]

SOURCES = ("uniform", "allocation", "sampler", "refine")
"""Where a trial came from, in the order in which legends list them."""

TITLES: Mapping[str, tuple[str, str]] = {
    "kl": ("KL divergence", "nats/token"),
    "loss": ("Cross entropy", "nats/token"),
    "perplexity": ("Perplexity", ""),
    "accuracy": ("Accuracy", ""),
    "weight_bits": ("Weight size", "bits/value"),
    "weight_bytes": ("Weight size", "bytes"),
    "activation_bits": ("Activation size", "bits/value"),
    "memory_density": ("Memory density", "times 32-bit"),
    "kv_bytes": ("KV cache", "bytes/token"),
}
"""Measure -> (title, unit) of its axis; any other measure goes by its own name."""

QUALITIES = ("kl", "loss", "perplexity", "accuracy")
LOGARITHMIC = {"kl", "perplexity"}
_FLAGS = ("feasible", "evaluated")
_KEPT = ("source", "anchor", *_FLAGS, "seconds", "forward_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What an axis shows: a measure, its title and unit, which way is better, and its scale."""

    name: str
    title: str
    unit: str
    direction: Direction
    logarithmic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRows:
    """The trials of a search in the plane of two measures.

    Attributes:
        rows: One row a finished and measured trial: `number`, `source` (one of `SOURCES`),
            `label` (the format of a uniform plan, else empty), the two measures by name,
            `feasible` (keeps every budget), `front` (feasible, and no feasible trial is better
            in one of the two measures and at least as good in the other).
        x: The measure along.
        y: The measure up.
    """

    rows: pd.DataFrame
    x: Axis
    y: Axis


def front_rows(source: Any, *, x: str | None = None, y: str | None = None) -> FrontRows:
    """The trials of a run directory or an Optuna study in the plane of two measures.

    Args:
        source: A run directory (path or `Run`), or anything with an Optuna study's `trials`.
        x: The measure along; the first cost among the objectives when None, else the first cost.
        y: The measure up; the first objective that is no cost when None.

    Raises:
        RunError: There are no finished trials, or no such measure (names those there are).
    """
    ended, axes = finished_trials(source, x=x, y=y)
    names = [axis.name for axis in axes]
    rows = ended[ended["measured"]].dropna(subset=names).reset_index(drop=True)
    rows = rows.reindex(columns=["number", "source", "label", *names, "feasible"])
    better = [np.asarray(rows[axis.name], float) * sign(axis.direction) for axis in axes]
    rows["front"] = on_front(better[0], better[1], np.asarray(rows["feasible"], bool))
    return FrontRows(rows=rows, x=axes[0], y=axes[1])


def finished_trials(
    source: Any, *, x: str | None = None, y: str | None = None
) -> tuple[pd.DataFrame, tuple[Axis, Axis]]:
    """The finished trials of a run directory or an Optuna study, and the axes along and up.

    The frame has the columns of trials.csv that the source has, by number, and `label` (the
    format of a uniform plan) and `measured` (False for a pruned trial, which saw fewer tokens
    than the others, and for a plan over budget that was never run).

    Args:
        source: See `front_rows`.
        x: See `front_rows`.
        y: See `front_rows`.

    Raises:
        RunError: No finished trial was measured, or there is no such measure.
    """
    trials, directions = _study_trials(source) if is_study(source) else _run_trials(source)
    measured = trials[trials["measured"]]
    if measured.empty:
        raise RunError(f"{named(source)}: there is no finished trial to draw; search first")
    costs = [name for name in (*directions, *COST_MEASURES) if name in COST_MEASURES]
    qualities = [name for name in (*directions, *QUALITIES) if name not in COST_MEASURES]
    x_name = _choose(source, x, costs, measured)
    y_name = _choose(source, y, [name for name in qualities if name != x_name], measured)
    return trials, (_axis(x_name, directions), _axis(y_name, directions))


def on_front(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], feasible: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which points no feasible point beats, bool [N]; both measures minimised, float [N].

    Of points that agree in both measures, the first is on the front.
    """
    front = np.zeros(len(x), dtype=bool)
    best = np.inf
    for index in np.lexsort((np.arange(len(x)), y, x)):
        if feasible[index] and y[index] < best:
            front[index] = True
            best = y[index]
    return front


def is_study(source: Any) -> bool:
    """True for an Optuna study; optuna itself stays behind its door in `search`."""
    return hasattr(source, "trials") and hasattr(source, "directions")


def _study_trials(study: Any) -> tuple[pd.DataFrame, dict[str, Direction]]:
    # mpq's own studies carry their measures' names; others may have `metric_names` set.
    named = [text.split(" ", 1)[1] for text in study.user_attrs.get("objectives", ())]
    names = named or study.metric_names or [f"value_{i}" for i in range(len(study.directions))]
    directions = [cast(Direction, direction.name.lower()) for direction in study.directions]
    records = []
    for trial in study.trials:
        result = trial.user_attrs.get("result", {})
        records.append(
            {"number": trial.number, "state": result.get("state", trial.state.name)}
            | {key: result[key] for key in _KEPT if key in result}
            | dict(result.get("costs", {}))
            # A study holds what its trials show on the first rung of windows; a result says what
            # they show on all windows that they have seen, as trials.csv does.
            | dict(zip(names, result.get("values") or trial.values or (), strict=False))
        )
    return _finished(pd.DataFrame(records)), dict(zip(names, directions, strict=True))


def _run_trials(source: Any) -> tuple[pd.DataFrame, dict[str, Direction]]:
    folder = run_path(source)
    if not (folder / TRIALS).is_file():
        raise RunError(f"{folder / TRIALS}: this artefact is missing; mpq-search writes it")
    config = read_toml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    objectives = config.get("search", {}).get("objectives", [])
    directions = {name: _known_direction(name) for name in objectives}
    return _finished(pd.read_csv(folder / TRIALS)), directions


def _finished(trials: pd.DataFrame) -> pd.DataFrame:
    """The finished trials by number, with the columns that a writer may leave out."""
    usual: dict[str, Any] = {"source": "sampler", "anchor": ""} | dict.fromkeys(_FLAGS, True)
    usual |= {"state": "complete", "number": 0}
    missing = {name: value for name, value in usual.items() if name not in trials}
    trials = trials.assign(**missing).fillna(usual).astype(dict.fromkeys(_FLAGS, bool))
    states = trials["state"].str.lower()
    trials = trials.assign(
        label=trials["anchor"].where(trials["source"] == "uniform", ""),
        measured=(states == "complete") & trials["evaluated"],
    )
    ended = states.isin(["complete", "dropped", "pruned"])
    return trials[ended].sort_values("number", ignore_index=True)


def _choose(source: Any, asked: str | None, wanted: Sequence[str], trials: pd.DataFrame) -> str:
    numbers = trials.select_dtypes(include="number", exclude="bool")
    there = [str(name) for name in numbers.columns if name != "number"]
    chosen = asked or next((name for name in wanted if name in there), None)
    if chosen not in there:
        raise RunError(
            f"{named(source)}: the trials have no measure {chosen or ' or '.join(wanted)!r}; "
            f"choose x and y among {', '.join(sorted(there))}"
        )
    return chosen


def _axis(name: str, directions: Mapping[str, Direction]) -> Axis:
    title, unit = TITLES.get(name, (name, ""))
    return Axis(
        name=name,
        title=title,
        unit=unit,
        direction=directions.get(name, _known_direction(name)),
        logarithmic=name in LOGARITHMIC,
    )


def _known_direction(name: str) -> Direction:
    if name in COST_MEASURES:
        return COST_MEASURES[name].direction
    return "maximize" if name == "accuracy" else "minimize"


def sign(direction: Direction) -> int:
    """What a measure is multiplied with so that less is better."""
    return 1 if direction == "minimize" else -1


def run_path(source: Any) -> Path:
    """The directory of a run given as a path or as a `Run`.

    Raises:
        RunError: There is no such directory.
    """
    path = Path(getattr(source, "path", source))
    if not path.is_dir():
        raise RunError(f"{path}: there is no such run directory; mpq-search makes one")
    return path


def named(source: Any) -> str:
    """What messages and legends call a study or a run: its name, its path."""
    return str(getattr(source, "study_name", None) or getattr(source, "path", source))
