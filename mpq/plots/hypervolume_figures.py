"""Rows -> the figure of hypervolume: one line a run, or median and range of several."""

from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpq.plots.figures import COLUMN, FAINT, STYLE, blank
from mpq.plots.hypervolume_frames import HypervolumeRows

TITLES = {"trials": "Trials", "forward_seconds": "Forward passes (s)"}

# Okabe-Ito; the dashes keep lines apart in grey print, and where there are more than colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#222222")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (5, 1.2, 1.2, 1.2)),
    (0, (9, 2)),
)

OPENING = 0.2
"""Share of the lines that may run out of the figure below: a search starts from nothing, and its
first trials would flatten all others."""


def draw_hypervolume(hypervolume: HypervolumeRows) -> Figure:
    """The median of each line as steps, the range over its runs as a shade."""
    rows = hypervolume.rows
    with mpl.rc_context(STYLE):
        figure, axes = blank(COLUMN, 2.7)
        axes.grid(which="major", color=FAINT, linewidth=0.5)
        for index, (label, line) in enumerate(rows.groupby("line", sort=False)):
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(
                line["at"],
                line["median"],
                color=colour,
                linestyle=DASHES[index % len(DASHES)],
                linewidth=1.1,
                drawstyle="steps-post",
                label=str(label),
                zorder=3,
            )
            if int(line["runs"].max()) > 1:
                axes.fill_between(
                    line["at"], line["low"], line["high"], step="post", color=colour, alpha=0.15,
                    linewidth=0, zorder=2,
                )  # fmt: skip
        _crop(axes, hypervolume)
        if hypervolume.along == "trials":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(TITLES[hypervolume.along])
        axes.set_ylabel("Hypervolume (share of the box) →")
        axes.legend(frameon=False, labelspacing=0.3, loc="lower right")
    return figure


def _crop(axes: Any, hypervolume: HypervolumeRows) -> None:
    rows = hypervolume.rows
    length = rows.groupby("line")["at"].transform("max")
    shown = rows[rows["at"] >= OPENING * length]
    low, high = float(shown["low"].min()), float(rows["high"].max())
    margin = 0.05 * (high - low) or 0.05
    axes.set_ylim(low - margin, high + margin)
