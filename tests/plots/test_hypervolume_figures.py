import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from mpq import plots
from mpq.plots.frames import Axis
from mpq.plots.hypervolume_figures import COLOURS, DASHES, draw_hypervolume
from mpq.plots.hypervolume_frames import HypervolumeRows
from tests.plots.artefacts import make_run

BITS = Axis(name="weight_bits", title="", unit="", direction="minimize", logarithmic=False)


def rows_of(lines, along="trials"):
    """Lines of (runs, medians); the range is 0.1 either way."""
    tables = [
        pd.DataFrame({"line": label, "at": np.arange(1.0, len(medians) + 1), "runs": runs})
        .assign(median=medians)
        .assign(low=lambda t: t["median"] - 0.1, high=lambda t: t["median"] + 0.1)
        for label, (runs, medians) in lines.items()
    ]
    rows = pd.concat(tables, ignore_index=True)
    return HypervolumeRows(rows=rows, along=along, x=BITS, y=BITS, worst=(8, 1), best=(2, 0.1))


def test_each_line_is_its_median_as_steps_under_its_label():
    rows = rows_of({"tpe": (3, [0.0, 0.5, 0.6]), "random": (1, [0.0, 0.4, 0.5])})
    axes = draw_hypervolume(rows).axes[0]
    assert [line.get_label() for line in axes.lines] == ["tpe", "random"]
    assert axes.lines[0].get_ydata().tolist() == [0.0, 0.5, 0.6]
    assert {line.get_drawstyle() for line in axes.lines} == {"steps-post"}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["tpe", "random"]


def test_only_a_line_of_several_runs_has_a_shade():
    rows = rows_of({"tpe": (3, [0.5, 0.6]), "random": (1, [0.4, 0.5])})
    (shade,) = draw_hypervolume(rows).axes[0].collections
    heights = shade.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (pytest.approx(0.4), pytest.approx(0.7))


@pytest.mark.parametrize(
    ("along", "title"), [("trials", "Trials"), ("forward_seconds", "Forward passes (s)")]
)
def test_axes_say_what_runs_along_and_which_way_is_better(along, title):
    axes = draw_hypervolume(rows_of({"a": (1, [0.1, 0.2])}, along)).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (title, "Hypervolume (share of the box) →")


def test_the_first_trials_do_not_flatten_the_rest():
    axes = draw_hypervolume(rows_of({"a": (1, [0.0, *np.linspace(0.8, 0.9, 9)])})).axes[0]
    low, high = axes.get_ylim()
    assert 0.6 < low < 0.7
    assert 1.0 < high < 1.1


def test_a_line_without_a_slope_can_be_drawn():
    rows = rows_of({"a": (1, [0.5])})
    rows.rows[["low", "high"]] = 0.5
    assert draw_hypervolume(rows).axes[0].get_ylim() == pytest.approx((0.45, 0.55))


def test_neighbouring_lines_differ_in_colour_in_dashes_and_in_grey():
    assert len(set(COLOURS)) == len(COLOURS)
    assert len(set(map(str, DASHES))) == len(DASHES)
    greys = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in COLOURS]
    assert min(abs(np.diff(greys))) > 0.02
    # Together they tell more lines apart than a legend has room for.
    pairs = {(n % len(COLOURS), n % len(DASHES)) for n in range(35)}
    assert len(pairs) == 35


def test_the_door_draws_a_run_and_passes_choices_on(tmp_path):
    folder = make_run(tmp_path)
    figure = plots.hypervolume({"twice": [folder, folder]}, x="kl", y="weight_bits")
    (line,) = figure.axes[0].lines
    assert line.get_label() == "twice"
    assert figure._repr_png_().startswith(b"\x89PNG")
    table = pd.read_csv(folder / "trials.csv").assign(forward_seconds=0.5)
    table.to_csv(folder / "trials.csv", index=False)
    axes = plots.hypervolume(folder, along="forward_seconds").axes[0]
    assert axes.lines[0].get_xdata()[0] == 0.5
