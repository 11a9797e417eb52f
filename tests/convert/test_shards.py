import json

import pytest
import torch
from safetensors.torch import load_file

from mpq.convert.shards import load_dtype, read_tensor, weight_map, write_shards
from mpq.errors import ExportError

TENSORS = [(name, torch.full((10,), float(at))) for at, name in enumerate("abcde")]


def test_one_shard_needs_no_index(tmp_path):
    write_shards(tmp_path / "out", TENSORS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set("abcde")


def test_shards_keep_below_the_bound_and_the_index_finds_every_tensor(tmp_path):
    write_shards(tmp_path, TENSORS, max_bytes=80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    names = weight_map(tmp_path)
    for name, tensor in TENSORS:
        assert torch.equal(read_tensor(tmp_path, names, name), tensor)


def test_a_failure_on_the_way_leaves_no_file(tmp_path):
    def failing():
        yield from TENSORS
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write_shards(tmp_path, failing(), max_bytes=40)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_refused_and_kept(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ExportError, match="new or empty folder"):
        write_shards(tmp_path, TENSORS)
    assert (tmp_path / "mine").exists()


def test_a_name_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(ExportError, match="a comes twice"):
        write_shards(tmp_path, [TENSORS[0], TENSORS[0]])


def test_a_missing_shard_or_tensor_is_named(tmp_path):
    write_shards(tmp_path, TENSORS, max_bytes=80)
    with pytest.raises(ExportError, match="holds no tensor z"):
        read_tensor(tmp_path, weight_map(tmp_path), "z")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ExportError, match=r"model-00002-of-00003.safetensors is missing"):
        weight_map(tmp_path)


def test_the_dtype_is_the_one_that_the_config_names():
    assert load_dtype({"dtype": "bfloat16"}) == torch.bfloat16
    assert load_dtype({"torch_dtype": "float16"}) == torch.float16
    assert load_dtype({}) == torch.float32
    with pytest.raises(ExportError, match="names the dtype 'int8'"):
        load_dtype({"dtype": "int8"})
