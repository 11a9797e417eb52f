"""The figures of a run: trials and front, what a plan gives to whom, what each format costs.

May import `run`, `cost`, `plans`, `formats` and `errors`: artefacts become rows in the `frames`
(by subject: `grid_`, `hypervolume_`, `variance_`), rows become figures in the `figures` of the
same name. What decides which trial is best lives in `search`, not here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["allocation", "hypervolume", "pareto_front", "save", "sensitivity", "variance"]


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


def hypervolume(
    source: Any,
    *,
    x: str | None = None,
    y: str | None = None,
    along: Literal["trials", "forward_seconds"] = "trials",
) -> "Figure":
    """A figure of how much the front covers as a search goes on: one line a run, or a group.

    The area that the front dominates up to the worst uniform value of each measure, as a share of
    the box that the uniform plans span (KL as log10): 1 is the damage of the best uniform plan at
    the cost of the cheapest. `hypervolume_frames` has the definition. A group of runs, such as
    the seeds of one setting, is drawn as its median and range.

    Args:
        source: A run directory (path or `mpq.run.Run`) or an Optuna study; several of them; or a
            mapping of a label to one or several of them.
        x: The measure along of the front; the first cost among the objectives when None.
        y: The measure up of the front; the first quality among the objectives when None.
        along: What runs along: finished trials, or seconds of their forward passes.

    Returns:
        A matplotlib figure: a notebook shows it, `save` writes it.

    Raises:
        RunError: A run has no trials, no such measure, or no record of seconds; or two lines
            have the same name.
    """
    from mpq.plots import hypervolume_figures, hypervolume_frames

    return hypervolume_figures.draw_hypervolume(
        hypervolume_frames.hypervolume_rows(source, x=x, y=y, along=along)
    )


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
        method: Which of the run's tables, a key of `mpq.run.DAMAGE_UNITS`; needed when there are
            several.

    Returns:
        A matplotlib figure: a notebook shows it, `save` writes it.

    Raises:
        RunError: The run has no such table (names those it has).
    """
    from mpq.plots import grid_figures, grid_frames

    return grid_figures.draw_sensitivity(grid_frames.sensitivity_rows(source, method=method))


def variance(source: Any) -> "Figure":
    """A figure of the variance of every kind of tensor against the block, on a log2 axis.

    Args:
        source: A run directory (path or `mpq.run.Run`), or the CSV of a variance table.

    Returns:
        A matplotlib figure: a notebook shows it, `save` writes it.

    Raises:
        RunError: There is no variance table, or it has no site inside of a block.
    """
    from mpq.plots import variance_figures, variance_frames

    return variance_figures.draw_variance(variance_frames.variance_rows(source))


def save(figure: "Figure", stem: str | Path) -> tuple[Path, ...]:
    """The files that the figure was written to: `stem`.png at 300 dpi, and `stem`.svg.

    The folder is made when missing; what is there under these names is replaced at once.
    """
    from mpq.plots import figures

    return figures.save(figure, Path(stem))
