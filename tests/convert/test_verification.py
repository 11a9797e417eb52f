from pathlib import Path

import pytest
import torch

from mpq.convert.verification import verify
from mpq.errors import ExportError
from mpq.modeling.packed import unpack_weight
from tests.convert.exports import packed

WEIGHT = packed("int4")
PACKED = [("a.weight", WEIGHT)]
DENSE = [("norm.weight", torch.tensor([1.0, torch.nan]))]
FOLDER = Path("export")


def stored(**changes):
    found = {"a.weight": unpack_weight(WEIGHT), "norm.weight": DENSE[0][1]}
    found |= {name.replace("_", "."): tensor for name, tensor in changes.items()}

    def read(name):
        if found[name] is None:
            raise ExportError("gone")
        return found[name]

    return read


def test_equal_numbers_pass_nan_among_them():
    verify(FOLDER, ["a.qweight", "norm.weight"], stored(), PACKED, DENSE, {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"norm_weight": torch.tensor([1.0, 2.0])}, "norm.weight: 1 of 2 values differ, by up to"),
        ({"norm_weight": torch.ones(3)}, r"norm.weight: torch.float32 of shape \(3,\), not"),
        ({"norm_weight": torch.ones(2).half()}, "norm.weight: torch.float16 of shape"),
        ({"a_weight": None}, "a.weight: gone"),
        ({"a_weight": unpack_weight(WEIGHT) * 2}, "a.weight: .* values differ"),
    ],
)
def test_what_differs_is_named(change, reason):
    with pytest.raises(ExportError, match=reason):
        verify(FOLDER, [], stored(**change), PACKED, DENSE, {})


def test_a_tensor_without_a_source_is_named():
    names = ["a.qweight", "norm.weight", "b.weight"]
    with pytest.raises(ExportError, match=r"b.weight: the source has no such tensor"):
        verify(FOLDER, names, stored(), PACKED, DENSE, {})
