import numpy as np
import pandas as pd
import pytest

from mpq.plots import save, variance
from mpq.plots.figures import PAGE
from mpq.plots.variance_figures import COLOURS, MARKERS, draw_variance
from tests.plots.artefacts import make_variance


def rows_of(sections, blocks=3):
    """Lines (section, label) -> rows of variances 2^(line - block)."""
    return pd.DataFrame(
        {
            "section": section,
            "line": line,
            "label": label,
            "block": block,
            "variance": 2.0 ** (line - block),
        }
        for line, (section, label) in enumerate(sections)
        for block in range(blocks)
    )


FOUR = [
    *(("weights", name) for name in ("q_proj", "k_proj", "o_proj")),
    *(("inputs", name) for name in ("q_proj, k_proj", "o_proj")),
    *(("outputs", name) for name in ("q_proj", "k_proj")),
    *(("attention", name) for name in ("q", "k")),
]


def drawn(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_a_panel_a_section_a_line_a_kind_on_one_log2_axis():
    figure = draw_variance(rows_of(FOUR))
    assert [axes.get_title("left") for axes in figure.axes] == [
        *("weights", "inputs", "outputs", "attention")
    ]
    assert figure.get_figwidth() <= PAGE
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        assert axes.yaxis.get_transform().base == 2
        assert axes.get_ylim() == figure.axes[0].get_ylim()
    lines = drawn(figure.axes[1])
    assert lines.keys() == {"q_proj, k_proj", "o_proj"}
    assert list(lines["o_proj"].get_xdata()) == [0, 1, 2]
    assert list(lines["o_proj"].get_ydata()) == [16, 8, 4]
    names = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert names == ["q_proj, k_proj", "o_proj"]


def test_axes_are_named_once_and_blocks_are_whole():
    figure = draw_variance(rows_of(FOUR, blocks=2))
    assert [axes.get_ylabel() for axes in figure.axes] == ["variance", "", "variance", ""]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "block", "block"]
    for axes in figure.axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_layer_looks_alike_in_every_panel_and_unlike_its_neighbours():
    figure = draw_variance(rows_of(FOUR))
    looks = [
        {label: (line.get_color(), line.get_marker()) for label, line in drawn(axes).items()}
        for axes in figure.axes
    ]
    assert looks[0]["o_proj"] == looks[1]["o_proj"]
    assert looks[0]["q_proj"] == looks[1]["q_proj, k_proj"] == looks[2]["q_proj"]
    for panel in looks:
        for part in zip(*panel.values(), strict=True):
            assert len(set(part)) == len(part)


def test_more_lines_than_colours_are_told_apart_by_their_markers():
    rows = rows_of([("weights", f"w{index}") for index in range(2 * len(COLOURS))], blocks=1)
    (axes,) = draw_variance(rows).axes
    looks = {(line.get_color(), line.get_marker()) for line in axes.get_lines()}
    assert len(looks) == 2 * len(COLOURS)
    assert len(COLOURS) == len(MARKERS)


def test_a_variance_of_zero_is_a_gap():
    rows = rows_of([("biases", "fc1")])
    rows.loc[1, "variance"] = 0.0
    (axes,) = draw_variance(rows).axes
    drawn_values = axes.get_lines()[0].get_ydata()
    assert np.isnan(drawn_values[1])
    assert np.isfinite(drawn_values[[0, 2]]).all()


@pytest.mark.parametrize("sections", [FOUR[:1], FOUR[:5], FOUR])
def test_any_number_of_sections_can_be_saved(tmp_path, sections):
    for path in save(draw_variance(rows_of(sections)), tmp_path / "variance"):
        assert path.stat().st_size > 1000


def test_the_front_door_draws_a_run(tmp_path):
    figure = variance(make_variance(tmp_path))
    assert len(figure.axes) == 2
    assert set(drawn(figure.axes[0])) == {"q_proj", "down_proj"}
