"""What kernels are given: found once, by a pass over rows, where no tile can find it alone."""

import pytest
import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.triton_given import given
from tests.kernels.test_triton import DEVICE, pytestmark  # noqa: F401


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("fixed8.4", "alone"), ("bf16", "alone"), ("bfp4", "powers"), ("int4-g16", "floats")),
        *(("int4a", "asymmetric"), ("int4f", "floats"), ("nvfp4", "floats"), ("nf4", "floats")),
    ],
)
def test_the_kind_of_scale_names_the_kernel(text, kind):
    assert given(torch.ones(2, 32, device=DEVICE), parse_format(text), 1).kind == kind


def test_blocks_within_a_tile_need_nothing_beside_it():
    x = torch.ones(2, 32, device=DEVICE)
    assert given(x, parse_format("bfp4"), 1).found is x
    assert given(x, parse_format("int4"), 1).found is x


def test_what_is_found_beside_it():
    x = torch.tensor([[1.0, -3.0, 2.0], [0.5, 0.0, -6.0]], device=DEVICE)
    peak = given(x, parse_format("int8-tensor"), 1).found
    assert peak.view(torch.float32).tolist() == [[6.0]]
    ends = given(x, parse_format("int4a-tensor"), 1).found
    assert ends.view(torch.float32).tolist() == [[6.0, -6.0, 2.0]]
    ends = given(x, parse_format("int8f-tensor"), 1).found
    assert ends.view(torch.float32).tolist() == [[6.0, -6.0, 2.0]]
    exact = [float(torch.tensor(value) / 2688.0) for value in (3.0, 6.0)]
    assert given(x, parse_format("nvfp4-token"), 1).found.tolist() == exact
    assert given(x, parse_format("nvfp4"), 1).found.tolist() == exact[1:]
    unit = given(x, parse_format("int8-tensor(absmax=127.0)"), 1).found
    assert unit.tolist() == [[1.0]]
