"""Finished blocks come back as they were, and only to the conversion that made them."""

import pytest
import torch

from mpq.convert.block import ConvertedBlock
from mpq.convert.finished import BEFORE, block_key, open_finished, refuse_other_settings
from mpq.errors import RunError
from mpq.kernels.fake_quant import encode
from mpq.modeling.packed import PackedWeight, unpack_weight
from tests.convert.test_report import report


def converted():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    packed = {
        f"{text}.weight": PackedWeight(encoded=encode(weight, text))
        for text in ("int3a-g16", "bfp4", "nvfp4", "minifloat-e4m3", "nf4-g64")
    }
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    packed["ordered.weight"] = PackedWeight(
        encoded=encode(weight.to(torch.bfloat16), "int4-g16"), order=order
    )
    biases = {"x.bias": torch.randn(6).to(torch.bfloat16)}
    rows = tuple(report(name, 240, p.num_bits) for name, p in packed.items())
    return ConvertedBlock(packed=packed, biases=biases, reports=rows)


def test_a_block_comes_back_bit_for_bit(tmp_path):
    made, key = converted(), block_key(3)
    finished = open_finished(tmp_path / "blocks", {"plan": "x"})
    assert key not in finished
    finished.write(key, made)
    back = open_finished(tmp_path / "blocks", {"plan": "x"}).read(key)
    assert key in finished
    assert BEFORE not in finished
    assert back.reports == made.reports
    assert torch.equal(back.biases["x.bias"], made.biases["x.bias"])
    assert back.packed.keys() == made.packed.keys()
    for name, packed in made.packed.items():
        assert torch.equal(unpack_weight(back.packed[name]), unpack_weight(packed))
        assert back.packed[name].num_bits == packed.num_bits
        assert back.packed[name].encoded.dtype == packed.encoded.dtype


def test_a_block_without_facts_is_not_done(tmp_path):
    finished = open_finished(tmp_path, {})
    finished.write("block-00000", converted())
    (tmp_path / "block-00000.json").unlink()
    assert "block-00000" not in finished


def test_other_settings_are_refused_by_name(tmp_path):
    open_finished(tmp_path, {"plan": "x", "solver": {"damping": 0.01, "groups": "static"}})
    open_finished(tmp_path, {"plan": "x", "solver": {"damping": 0.01, "groups": "static"}})
    with pytest.raises(RunError, match=r"solver\.damping: 0\.01 -> 0\.1\ntake them back"):
        open_finished(tmp_path, {"plan": "x", "solver": {"damping": 0.1, "groups": "static"}})


def test_tuples_and_lists_are_the_same_setting(tmp_path):
    refuse_other_settings(tmp_path, {"formats": ["a", "b"]}, {"formats": ("a", "b")})
