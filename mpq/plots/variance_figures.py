"""Rows of variances -> a figure: variance against block, a panel a section. Drawing only."""

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from mpq.plots.figures import FAINT, PAGE, STYLE, blank

if TYPE_CHECKING:
    import pandas as pd

# Okabe-Ito, yellow left out (too faint for a line); markers differ wherever colours do.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANELS_A_ROW = 2


def draw_variance(rows: "pd.DataFrame") -> Figure:
    """Variance against block on a log2 axis that all panels share; a line a kind of tensor."""
    sections = list(dict.fromkeys(rows["section"]))
    columns = min(PANELS_A_ROW, len(sections))
    lines = -(-len(sections) // columns)
    with mpl.rc_context(STYLE):
        figure, first = blank(PAGE if columns > 1 else PAGE / 2, 0.4 + 2.1 * lines)
        first.remove()
        shared: Axes | None = None
        marks = _marks(rows)
        for index, section in enumerate(sections):
            axes = figure.add_subplot(lines, columns, index + 1, sharey=shared)
            shared = shared or axes
            _draw_panel(axes, rows[rows["section"] == section], marks)
            axes.set_title(section, loc="left")
            if index % columns == 0:
                axes.set_ylabel("variance")
            else:
                axes.tick_params(labelleft=False)
            if index + columns >= len(sections):
                axes.set_xlabel("block")
    return figure


def _marks(rows: "pd.DataFrame") -> dict[int, int]:
    """Line -> index of its colour and marker: a layer has the same in every panel.

    A line that stands for several layers goes by the first. Attention operands are counted on
    their own.
    """
    known: dict[bool, dict[str, int]] = {True: {}, False: {}}
    marks = {}
    for row in rows.drop_duplicates("line").to_dict("records"):
        names = known[bool(row["section"] == "attention")]
        marks[int(row["line"])] = names.setdefault(str(row["label"]).split(",")[0], len(names))
    return marks


def _draw_panel(axes: Axes, rows: "pd.DataFrame", marks: dict[int, int]) -> None:
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(LogLocator(base=2, numticks=10))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(which="major", color=FAINT, linewidth=0.5)
    for line, some in rows.groupby("line", sort=True):
        mark = marks[int(str(line))]
        axes.plot(
            some["block"],
            # A tensor of one value (a bias of zeros) has no place on a logarithmic axis.
            some["variance"].where(some["variance"] > 0, np.nan),
            color=COLOURS[mark % len(COLOURS)],
            # A colour that comes round again comes with another marker.
            marker=MARKERS[(mark + mark // len(COLOURS)) % len(MARKERS)],
            markersize=3,
            linewidth=1.0,
            label=some["label"].iloc[0],
        )
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        handletextpad=0.4,
        labelspacing=0.3,
    )
