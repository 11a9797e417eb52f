import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm

from mpq.plans.plan import Plan
from mpq.plots.figures import COLUMN, PAGE
from mpq.plots.grid_figures import LABELLED_ROWS, draw_allocation, draw_sensitivity
from mpq.plots.grid_frames import allocation_rows, sensitivity_rows
from tests.plots.artefacts import FORMATS, make_run


@pytest.fixture
def allocation():
    return draw_allocation(allocation_rows(Plan.of(FORMATS))).axes[0]


def ticks(labels):
    return [label.get_text() for label in labels]


def test_rows_are_kinds_and_columns_blocks_with_the_rest_last(allocation):
    assert ticks(allocation.get_yticklabels()) == [
        *("q_proj", "down_proj", "lm_head", "down_proj", "k")
    ]
    assert ticks(allocation.get_xticklabels()) == ["0", "1", "-"]
    assert allocation.yaxis_inverted()


def test_every_cell_tells_its_bits_in_number_and_in_colour(allocation):
    cells = {
        (round(patch.get_x() + 0.47), round(patch.get_y() + 0.45, 2)): patch.get_facecolor()
        for patch in allocation.patches
    }
    assert len(cells) == len(FORMATS)
    numbers = {text.get_position(): text.get_text() for text in allocation.texts}
    assert numbers[0, 0.0] == "4.5"
    assert numbers[1, 0.0] == "6.5"
    assert cells[0, 0.0] == cells[1, 1.0], "bfp4 twice"
    assert cells[0, 0.0] != cells[1, 0.0]
    names = ticks(allocation.get_legend().get_texts())
    assert names == ["bfp8", "bfp6", "bfp4"]


def test_more_bits_are_darker_so_that_grey_print_keeps_the_order(allocation):
    handles = allocation.get_legend().get_patches()
    greys = [np.dot(patch.get_facecolor()[:3], (0.299, 0.587, 0.114)) for patch in handles]
    assert greys == sorted(greys)


def test_a_format_has_one_colour_in_every_figure():
    colours = set()
    for others in ("bfp2", "bfp8"):
        plan = Plan.of({"h.0.a.weight": "bfp4", "h.1.a.weight": others})
        axes = draw_allocation(allocation_rows(plan)).axes[0]
        (patch,) = (p for p in axes.get_legend().get_patches() if p.get_label() == "bfp4")
        colours.add(patch.get_facecolor())
    assert len(colours) == 1


@pytest.mark.parametrize(("blocks", "numbered"), [(12, True), (80, False)])
def test_deep_models_fit_a_page_and_leave_numbers_to_the_colours(blocks, numbered):
    plan = Plan.of({f"h.{index}.mlp.up_proj.weight": "bfp4" for index in range(blocks)})
    figure = draw_allocation(allocation_rows(plan))
    assert COLUMN <= figure.get_figwidth() <= PAGE
    drawn = [text for text in figure.axes[0].texts if text.get_text() == "4.5"]
    assert bool(drawn) is numbered
    assert len(figure.axes[0].patches) == blocks


def test_one_format_and_one_site_can_be_drawn():
    figure = draw_allocation(allocation_rows(Plan.of({"lm_head.weight": "bfp4"})))
    assert len(figure.axes[0].patches) == 1


def test_the_heat_map_is_logarithmic_with_what_is_missing_left_out(tmp_path):
    axes, bar = draw_sensitivity(sensitivity_rows(make_run(tmp_path))).axes
    (image,) = axes.images
    assert isinstance(image.norm, LogNorm)
    grid = image.get_array()
    assert grid.shape == (3, 2)
    assert grid.mask.tolist() == [[False, False], [False, False], [False, True]]
    assert grid[0].tolist() == [2e-2, 1e-4]
    assert ticks(axes.get_xticklabels()) == ["bfp2", "bfp4"]
    assert ticks(axes.get_yticklabels()) == ["q_proj", "down_proj", "lm_head"]
    assert {text.get_text() for text in axes.texts} == {"block", "0", "1", "-"}
    assert bar.get_ylabel() == "damage (nats per token)"


def grid_of(num_blocks, damage):
    return pd.DataFrame(
        {
            "row": row,
            "site": f"h.{row}.mlp.up_proj.weight",
            "label": "up_proj",
            "section": "weights",
            "block": row,
            "format": "bfp4",
            "bits": 4.5,
            "damage": damage,
            "unit": "nats per token",
        }
        for row in range(num_blocks)
    )


def test_long_tables_name_their_blocks_only():
    axes = draw_sensitivity(grid_of(LABELLED_ROWS + 1, 0.1)).axes[0]
    assert ticks(axes.get_yticklabels())[:3] == ["0", "1", "2"]
    assert axes.get_ylabel() == "block"


@pytest.mark.parametrize("damage", [0.0, float("nan"), -1e-9, 1e-3])
def test_tables_of_one_value_or_of_none_above_zero_are_drawn(damage):
    draw_sensitivity(grid_of(2, damage)).canvas.draw()


def test_one_tiny_damage_does_not_wash_out_the_others():
    rows = grid_of(3, 0.1)
    rows["damage"] = [1e-30, 1e-2, 1e-1]
    (image,) = draw_sensitivity(rows).axes[0].images
    assert image.norm.vmin == pytest.approx(1e-7)
