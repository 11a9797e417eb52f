"""Rows of sites -> heat maps: a plan's formats, a table's damage. Drawing only."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from mpq.plots.figures import COLUMN, FAINT, INK, PAGE, STYLE, blank
from mpq.plots.grid_frames import AllocationRows

if TYPE_CHECKING:
    import pandas as pd

LABELLED_ROWS = 80
# Bits -> colour, the same in every figure, so that plans can be compared; beyond 9 bits all
# formats share the darkest.
SHADES = Normalize(2, 9, clip=True)
CHARACTER = 3.9  # width of a tick label's character, in points


def draw_allocation(allocation: AllocationRows) -> Figure:
    """Kinds of layer by block; a cell's colour is its format, its number the bits a value."""
    rows = allocation.rows
    blocks = sorted(rows["block"].unique(), key=lambda block: (block < 0, block))
    lines = rows[["row", "section", "label"]].drop_duplicates().sort_values("row")
    gaps = _gaps(list(lines["section"]))
    top = {row: at + gap for at, (row, gap) in enumerate(zip(lines["row"], gaps, strict=True))}
    with mpl.rc_context(STYLE):
        width = float(np.clip(1.9 + 0.26 * len(blocks), COLUMN, PAGE))
        cell = (width - 1.9) / len(blocks)
        figure, axes = blank(width, 0.7 + 0.19 * (len(lines) + gaps[-1]))
        _draw_cells(axes, allocation, top, {block: at for at, block in enumerate(blocks)}, cell)
        axes.set_yticks([top[row] for row in lines["row"]], list(lines["label"]))
        step = max(1, round(0.2 / cell))
        axes.set_xticks(range(0, len(blocks), step), [_block_name(b) for b in blocks[::step]])
        axes.set_xlabel("block")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.5, len(blocks) - 0.5)
        axes.set_ylim(max(top.values()) + 0.5, -0.5)
        _name_sections(axes, lines, top)
    return figure


def _gaps(sections: Sequence[str]) -> list[float]:
    """Empty rows above every row: half a row for every section that begins before it."""
    starts = [0] + [int(a != b) for a, b in pairwise(sections)]
    return [float(gap) for gap in np.cumsum(starts) * 0.5]


def _draw_cells(
    axes: Axes,
    allocation: AllocationRows,
    top: dict[int, float],
    left: dict[int, int],
    cell: float,
) -> None:
    palette = mpl.colormaps["viridis_r"]
    cells = allocation.rows[["row", "block", "bits"]].to_numpy(float)
    for row, block, bits in cells.tolist():
        x, y, colour = left[int(block)], top[int(row)], palette(SHADES(bits))
        axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, facecolor=colour, linewidth=0))
        if cell >= 0.2:
            ink = "white" if _lightness(colour) < 0.5 else INK
            axes.text(x, y, f"{bits:.3g}", ha="center", va="center", fontsize=6, color=ink)
    handles = [
        Patch(facecolor=palette(SHADES(bits)), label=text)
        for text, bits in allocation.formats[["format", "bits"]].to_numpy().tolist()
    ]
    axes.legend(
        handles=handles[::-1],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        handlelength=1.0,
        handleheight=1.0,
        title="format",
        alignment="left",
    )


def _lightness(colour: Sequence[float]) -> float:
    """Grey value of a colour in 0..1, as print shows it. Source: ITU-R BT.601, luma weights."""
    red, green, blue = colour[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _block_name(block: int) -> str:
    return "-" if block < 0 else str(block)


def _beside(labels: Iterable[str]) -> float:
    """How far left of the axis the longest of its labels ends, in points, and a bit."""
    return 14 + CHARACTER * max(map(len, labels))


def _name_sections(axes: Axes, lines: "pd.DataFrame", top: dict[int, float]) -> None:
    """The sections' names, turned, left of the rows' labels."""
    for section, some in lines.groupby("section", sort=False):
        middle = (top[some["row"].iloc[0]] + top[some["row"].iloc[-1]]) / 2
        axes.annotate(
            str(section),
            (0, middle),
            xycoords=("axes fraction", "data"),
            xytext=(-_beside(lines["label"]), 0),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="center",
            fontsize=7,
            color="#666666",
        )


def draw_sensitivity(rows: "pd.DataFrame") -> Figure:
    """Sites by formats; a cell's colour is the damage, on a logarithmic scale."""
    sites = rows[["row", "site", "label", "section", "block"]].drop_duplicates().sort_values("row")
    formats = list(dict.fromkeys(rows.sort_values(["bits", "format"])["format"]))
    grid = rows.pivot(index="row", columns="format", values="damage")[formats].to_numpy(float)
    shown = np.ma.masked_invalid(np.where(grid > 0, grid, np.nan))
    with mpl.rc_context(STYLE):
        height = float(np.clip(0.8 + 0.11 * len(sites), 2.0, 9.0))
        figure, axes = blank(COLUMN, height)
        axes.set_facecolor(FAINT)
        norm = LogNorm(*_limits(shown))
        image = axes.imshow(shown, aspect="auto", cmap="magma_r", norm=norm, interpolation="none")
        axes.set_xticks(
            range(len(formats)), formats, rotation=45, ha="right", rotation_mode="anchor"
        )
        _label_sites(axes, sites)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=9 * height)
        bar.set_label(f"damage ({rows['unit'].iloc[0]})")
        bar.outline.set_visible(False)
    return figure


def _limits(values: "np.ma.MaskedArray[Any, Any]") -> tuple[float, float]:
    """The range of the colours; six decades at most, so that one tiny value hides no contrast."""
    if values.count() == 0:
        return 0.1, 1.0
    high = float(values.max())
    low = max(float(values.min()), high * 1e-6)
    return (low, high) if low < high else (low / 2, high * 2)


def _label_sites(axes: Axes, sites: "pd.DataFrame") -> None:
    """Every row by its label and every block by its number; long tables name blocks only."""
    starts = sites.drop_duplicates("block")
    for row in starts["row"].iloc[1:]:
        axes.axhline(row - 0.5, color="white", linewidth=1.2)
    if len(sites) > LABELLED_ROWS:
        axes.set_yticks(starts["row"], [_block_name(block) for block in starts["block"]])
        axes.set_ylabel("block")
        return
    names = [
        label if section in ("weights", "attention") else f"{label} {section[:-1]}"
        for label, section in zip(sites["label"], sites["section"], strict=True)
    ]
    axes.set_yticks(sites["row"], names, fontsize=6)
    # A row above the first is the place of the column's own name.
    marks = [("block", -0.9)] if len(starts) > 1 else []
    for block in starts["block"].tolist():
        middle = float(sites["row"][sites["block"] == block].mean())
        marks.append((_block_name(block), middle))
    for text, y in marks:
        axes.annotate(
            text,
            (0, y),
            xycoords=("axes fraction", "data"),
            xytext=(-_beside(names), 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            color="#666666",
            annotation_clip=False,
        )
