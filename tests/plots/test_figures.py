import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mpq import plots
from mpq.plots.figures import COLUMN, LEGEND, MARKS, draw_front, save
from mpq.plots.frames import SOURCES, front_rows
from tests.plots.artefacts import make_run


@pytest.fixture
def front(tmp_path):
    return front_rows(make_run(tmp_path))


def line_of(axes):
    (line,) = (line for line in axes.lines if line.get_label() == "front")
    return line


def test_the_front_is_a_step_line_through_its_trials(front):
    axes = draw_front(front).axes[0]
    line = line_of(axes)
    assert line.get_xdata().tolist() == [3.5, 4.0, 4.4]
    assert line.get_ydata().tolist() == [0.9, 0.5, 0.15]
    assert line.get_drawstyle() == "steps-post"


def test_where_more_is_better_the_steps_run_the_other_way(front):
    turned = replace(front, x=replace(front.x, direction="maximize"))
    axes = draw_front(turned).axes[0]
    assert line_of(axes).get_drawstyle() == "steps-pre"
    assert axes.get_xlabel().endswith("→")


def test_every_trial_is_a_point_under_the_name_of_its_source(front):
    axes = draw_front(front).axes[0]
    points = {
        group.get_label(): len(group.get_offsets())
        for group in axes.collections
        if not group.get_label().startswith("_")
    }
    assert points == {
        "sampler": 2,
        "refined": 1,
        "additive optimum": 1,
        "uniform plans": 2,
        "over budget": 1,
    }
    assert {text.get_text() for text in axes.texts} == {"bfp3", "bfp4"}
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(legend) == {"front", *points}


def test_axes_say_measure_unit_scale_and_the_better_way(front):
    axes = draw_front(front).axes[0]
    assert axes.get_xlabel() == "← Weight size (bits/value)"
    assert axes.get_ylabel() == "← KL divergence (nats/token)"
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")


def test_sources_differ_in_marker_in_colour_and_in_grey():
    assert set(MARKS) == set(LEGEND) == set(SOURCES)
    assert len({mark["marker"] for mark in MARKS.values()}) == len(MARKS)
    greys = sorted(
        np.dot(to_rgb(mark["facecolors"]), (0.299, 0.587, 0.114)) for mark in MARKS.values()
    )
    assert min(np.diff(greys)) > 0.02


def test_a_figure_is_as_wide_as_a_column_and_saved_at_300_dpi(front, tmp_path):
    figure = draw_front(front)
    assert figure.get_figwidth() == COLUMN
    png, svg = save(figure, tmp_path / "plots" / "front")
    assert (png.name, svg.name) == ("front.png", "front.svg")
    width = int.from_bytes(png.read_bytes()[16:20], "big")
    assert abs(width - 300 * COLUMN) < 100
    texts = [node.text for node in ElementTree.parse(svg).iter() if node.tag.endswith("}text")]
    assert "bfp3" in texts


def test_equal_rows_give_equal_files(front, tmp_path):
    first = [path.read_bytes() for path in save(draw_front(front), tmp_path / "a")]
    second = [path.read_bytes() for path in save(draw_front(front), tmp_path / "b")]
    assert first == second


def test_a_notebook_shows_the_figure(front):
    assert draw_front(front)._repr_png_().startswith(b"\x89PNG")


def test_drawing_changes_no_setting_and_needs_no_pyplot(tmp_path):
    folder = make_run(tmp_path)
    before = dict(mpl.rcParams)
    for figure in (
        plots.pareto_front(folder),
        plots.allocation(folder),
        plots.sensitivity(folder),
    ):
        plots.save(figure, tmp_path / "figure")
    assert dict(mpl.rcParams) == before
    code = (
        "import sys; from mpq import plots\n"
        f"plots.pareto_front({str(folder)!r})._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_door_of_the_room_passes_choices_on(tmp_path):
    folder = make_run(tmp_path)
    axes = plots.pareto_front(folder, x="kl", y="weight_bits").axes[0]
    assert axes.get_xlabel() == "← KL divergence (nats/token)"
    assert plots.allocation(folder, plan="front_00").axes
    assert plots.sensitivity(folder, method="fisher").axes
