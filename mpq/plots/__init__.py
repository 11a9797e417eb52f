"""The figures of a run: trials and front, what a plan gives to whom, what each format costs.

May import `run`, `cost`, `plans`, `formats` and `errors`: artefacts become rows in `frames` and
`grid_frames`, rows become figures in `figures` and `grid_figures`. What decides which trial is
best lives in `search`, not here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["allocation", "pareto_front", "save", "sensitivity"]


def pareto_front(source: Any, *, x: str | None = None, y: str | None = None) -> "Figure":
    """A figure of all trials in the plane of two measures, and the front as a step line.

    Uniform plans carry their format as a label; colours say where a trial came from.

    Args:
        source: A run directory (path or `mpq.run.Run`), or an Optuna study.
        x: The measure along; the first cost among the objectives when None.
        y: The measure up; the first quality among the objectives when None.

    Returns:
        A matplotlib figure: a notebook shows it, `save` writes it.

    Raises:
        RunError: The run has no trials, or no such measure (names those it has).
    """
    from mpq.plots import figures, frames

    return figures.draw_front(frames.front_rows(source, x=x, y=y))


def allocation(source: Any, *, plan: str | None = None) -> "Figure":
    """A figure of a plan: kinds of layer by block, coloured by the bits of a value.

    Args:
        source: A `mpq.Plan`, the TOML file of one, or a run directory (path or `mpq.run.Run`).
        plan: Which of the run's plans, by the name of its file; needed when there are several.

    Returns:
        A matplotlib figure: a notebook shows it, `save` writes it.

    Raises:
        RunError: The run has no such plan (names those it has).
        PlanError: The file is no plan of exact site names.
    """
    from mpq.plots import grid_figures, grid_frames

    return grid_figures.draw_allocation(grid_frames.allocation_rows(source, plan=plan))


def sensitivity(source: Any, *, method: str | None = None) -> "Figure":
    """A figure of a damage table: sites by formats, on a logarithmic colour scale.

    Args:
        source: A run directory (path or `mpq.run.Run`), the CSV of a table, or a damage table.
        method: Which of the run's tables, `fisher` or `kl`; needed when there are several.

    Returns:
        A matplotlib figure: a notebook shows it, `save` writes it.

    Raises:
        RunError: The run has no such table (names those it has).
    """
    from mpq.plots import grid_figures, grid_frames

    return grid_figures.draw_sensitivity(grid_frames.sensitivity_rows(source, method=method))


def save(figure: "Figure", stem: str | Path) -> tuple[Path, ...]:
    """The files that the figure was written to: `stem`.png at 300 dpi, and `stem`.svg.

    The folder is made when missing; what is there under these names is replaced at once.
    """
    from mpq.plots import figures

    return figures.save(figure, Path(stem))
