import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpq.convert.export_gptq import export_gptq
from mpq.convert.gptq_layers import gptq_values
from mpq.convert.read_gptq import read_gptq, verify_gptq
from mpq.errors import ExportError
from mpq.modeling.packed import unpack_weight
from tests.convert.exports import CONFIG, packed, shuffled

SITES = {
    "a.weight": packed("int4-g32", order=shuffled(128)),
    "b.weight": packed("int3a-g64"),
    "c.weight": packed("int2-g16"),
    "d.weight": packed("int8", axis=0, rows=64, columns=32),
    "e.weight": packed("int4-g32"),
    "f.weight": packed("int4f-g32"),
}
DENSE = [("norm.weight", torch.ones(8)), ("a.bias", torch.zeros(32))]


@pytest.mark.parametrize("version", ["gptq_v2", "gptq"])
def test_an_export_reads_back_as_its_source(tmp_path, version):
    export_gptq(tmp_path, SITES.items(), DENSE, CONFIG, version=version, max_shard_bytes=5000)
    verify_gptq(tmp_path, SITES.items(), DENSE)
    for site, weight in read_gptq(tmp_path):
        values = gptq_values(weight).float()
        expected = unpack_weight(SITES[site], torch.float32)
        assert torch.equal(values.T if site == "d.weight" else values, expected)


def test_a_tied_head_is_compared_twice(tmp_path):
    tables = {"e.weight": "lm_head.weight"}
    sites = [("e.weight", packed("int8"))]
    export_gptq(tmp_path, sites, [], CONFIG, tables=tables)
    verify_gptq(tmp_path, sites, [], tables=tables)
    with pytest.raises(ExportError, match="lm_head"):
        verify_gptq(tmp_path, sites, [])


def test_what_was_changed_on_disk_is_named(tmp_path):
    export_gptq(tmp_path, SITES.items(), DENSE, CONFIG)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["b.qweight"][0, 0] ^= 1
    tensors["c.scales"][0, 0] *= 2
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match="2 tensors differ") as caught:
        verify_gptq(tmp_path, SITES.items(), DENSE)
    assert "b.weight: 1 of 4096 values differ" in str(caught.value)
    assert re.search(r"c.weight: \d+ of 4096 values differ", str(caught.value))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"checkpoint_format": "marlin"}, "has the checkpoint format 'marlin'"),
        ({"bits": 8, "dynamic": {}}, "e.weight: e is said to have 8 bits"),
    ],
)
def test_a_config_that_lies_is_refused(tmp_path, change, reason):
    export_gptq(tmp_path, SITES.items(), DENSE, CONFIG)
    written = json.loads((tmp_path / "config.json").read_text())
    written["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ExportError, match=reason):
        verify_gptq(tmp_path, SITES.items(), DENSE)
