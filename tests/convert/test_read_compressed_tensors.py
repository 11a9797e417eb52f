import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpq.convert.export_compressed_tensors import export_compressed_tensors
from mpq.convert.read_compressed_tensors import read_compressed_tensors, verify_compressed_tensors
from mpq.errors import ExportError
from mpq.formats.zoo import parse_format
from mpq.modeling.packed import unpack_weight
from tests.convert.exports import CONFIG, packed
from tests.convert.test_compressed_layers import HELD

SITES = {f"layers.{at}.weight": packed(text) for at, text in enumerate(HELD)}
DENSE = [("norm.weight", torch.ones(8)), ("layers.0.bias", torch.zeros(32))]


def test_an_export_of_every_kind_reads_back_as_its_source(tmp_path):
    sites = SITES | {"bf.weight": packed("bf16")}
    export_compressed_tensors(tmp_path, sites.items(), DENSE, CONFIG, max_shard_bytes=9000)
    verify_compressed_tensors(tmp_path, sites.items(), DENSE)
    found = dict(read_compressed_tensors(tmp_path))
    assert found.keys() == SITES.keys()
    for site, weight in SITES.items():
        assert torch.equal(found[site], unpack_weight(weight))


def test_inputs_and_tied_heads_read_back_too(tmp_path):
    sites = {"a.weight": packed("int8"), "embed.weight": packed("int4-g32")}
    tables = {"embed.weight": "lm_head.weight"}
    inputs = {"a.input": parse_format("int8")}
    export_compressed_tensors(tmp_path, sites.items(), [], CONFIG, inputs=inputs, tables=tables)
    verify_compressed_tensors(tmp_path, sites.items(), [], tables=tables)


def test_what_was_changed_on_disk_is_named(tmp_path):
    export_compressed_tensors(tmp_path, SITES.items(), DENSE, CONFIG)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["layers.1.weight_packed"][0, 0] ^= 1
    tensors["layers.8.weight_zero_point"][0, 0] += 1
    tensors["norm.weight"][0] = 2
    del tensors["layers.2.weight_scale"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match="4 tensors differ") as caught:
        verify_compressed_tensors(tmp_path, SITES.items(), DENSE)
    for part in ("layers.1.weight: 1 of", "layers.8.weight: 128 of", "norm.weight: 1 of 8"):
        assert part in str(caught.value)
    assert "holds no tensor layers.2.weight_scale" in str(caught.value)


def test_a_layout_that_no_export_writes_is_refused(tmp_path):
    export_compressed_tensors(tmp_path, [("a.weight", packed("int4"))], [], CONFIG)
    written = json.loads((tmp_path / "config.json").read_text())
    written["quantization_config"]["config_groups"]["group_0"]["format"] = "marlin-24"
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ExportError, match="'marlin-24' is a layout that no export"):
        dict(read_compressed_tensors(tmp_path))
