"""Rows -> figures: drawing only, every number comes from `frames`.

Figures are built on `matplotlib.figure.Figure` and never touch pyplot, so drawing opens no window
and leaves nothing open. Sizes are those of a paper's column or page, in inches; colours stay
apart for colour-blind readers and in grey print (Okabe & Ito, "Color Universal Design", 2008;
viridis is monotone in lightness), and markers differ wherever colours do.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mpq.files import write_atomic
from mpq.plots.frames import Axis, FrontRows

if TYPE_CHECKING:
    import pandas as pd

COLUMN, PAGE = 3.5, 7.2
DPI = 300

# matplotlib types this as a dict of literals, which no dict display satisfies.
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    # Text stays text in vector files, and the same rows give the same bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "mpq",
    "pdf.fonttype": 42,
}

# Okabe-Ito; dark to light in the order of importance, so that grey print keeps the order.
MARKS: dict[str, dict[str, Any]] = {
    "sampler": {"marker": "o", "s": 9, "facecolors": "#BBBBBB", "linewidths": 0.7},
    "refine": {"marker": "^", "s": 14, "facecolors": "#009E73", "linewidths": 0.7},
    "allocation": {"marker": "s", "s": 14, "facecolors": "#E69F00", "linewidths": 0.7},
    "uniform": {"marker": "D", "s": 18, "facecolors": "#0072B2", "linewidths": 0.7},
}
LEGEND = {
    "sampler": "sampler",
    "refine": "refined",
    "allocation": "additive optimum",
    "uniform": "uniform plans",
}
INK, FAINT = "#222222", "#E6E6E6"


class _ShownFigure(Figure):
    """A figure that a notebook shows without pyplot's help."""

    def _repr_png_(self) -> bytes:
        return _bytes(self, "png", dpi=150)


def save(figure: Figure, stem: Path) -> tuple[Path, ...]:
    """`stem`.png at 300 dpi and `stem`.svg, written; both replaced as a whole."""
    paths = (stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg"))
    for path in paths:
        write_atomic(path, _bytes(figure, path.suffix[1:], dpi=DPI))
    return paths


def _bytes(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    # A date inside the file would make equal figures differ.
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches, and its axes."""
    figure = _ShownFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def draw_front(front: FrontRows) -> Figure:
    """All trials by source, the front as a step line, uniform plans with their formats' names."""
    rows, x, y = front.rows, front.x, front.y
    with mpl.rc_context(STYLE):
        figure, axes = blank(COLUMN, 2.7)
        for scale, axis in ((axes.set_xscale, x), (axes.set_yscale, y)):
            if axis.logarithmic:
                scale("log")
        axes.grid(which="major", color=FAINT, linewidth=0.5)
        _draw_step(axes, rows[rows["front"]].sort_values(x.name), x, y)
        _draw_trials(axes, rows, x.name, y.name)
        _label_uniform(axes, rows[rows["label"] != ""], x, y)
        axes.set_xlabel(_axis_title(x))
        axes.set_ylabel(_axis_title(y))
        axes.legend(frameon=False, handletextpad=0.4, labelspacing=0.3)
    return figure


def _draw_trials(axes: Axes, rows: "pd.DataFrame", x: str, y: str) -> None:
    kept = rows["feasible"].astype(bool)
    for source, mark in MARKS.items():
        some = rows[kept & (rows["source"] == source)]
        if len(some):
            axes.scatter(
                some[x], some[y], label=LEGEND[source], zorder=3, edgecolors="none", **mark
            )
            best = some[some["front"]]
            axes.scatter(best[x], best[y], zorder=3, edgecolors=INK, **mark)
    over = rows[~kept]
    if len(over):
        axes.scatter(
            over[x], over[y], marker="x", s=8, color="#BBBBBB", linewidths=0.6, label="over budget"
        )


def _draw_step(axes: Axes, best: "pd.DataFrame", x: Axis, y: Axis) -> None:
    # Between two points, what is reached is the value of the cheaper one.
    where = "steps-post" if x.direction == "minimize" else "steps-pre"
    axes.plot(
        best[x.name],
        best[y.name],
        color=INK,
        linewidth=1.1,
        drawstyle=where,
        label="front",
        zorder=2,
    )


def _label_uniform(axes: Axes, rows: "pd.DataFrame", x: Axis, y: Axis) -> None:
    # The worse side of a point is the empty one: the front lies on the other.
    right = 1 if x.direction == "minimize" else -1
    up = 1 if y.direction == "minimize" else -1
    for _, row in rows.iterrows():
        axes.annotate(
            row["label"],
            (row[x.name], row[y.name]),
            xytext=(4 * right, 2 * up),
            textcoords="offset points",
            fontsize=6.5,
            color=MARKS["uniform"]["facecolors"],
            ha="left" if right > 0 else "right",
            va="bottom" if up > 0 else "top",
        )


def _axis_title(axis: Axis) -> str:
    unit = f" ({axis.unit})" if axis.unit else ""
    # On the vertical axis the text is turned, and "left" points down.
    return f"← {axis.title}{unit}" if axis.direction == "minimize" else f"{axis.title}{unit} →"
