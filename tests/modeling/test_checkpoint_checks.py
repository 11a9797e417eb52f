"""Checkpoints that are not what was written are refused, each with its reason."""

import json

import pytest
import torch

from mpq import Plan, encode, load_model
from mpq.errors import CheckpointError, ModelError
from mpq.modeling.checkpoint import open_checkpoint, write_checkpoint
from mpq.modeling.packed import PackedWeight
from tests.modeling.checkpoints import rewrite, signed

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32"}
SITE = "a.weight"


@pytest.fixture
def path(tmp_path):
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    write_checkpoint(
        tmp_path,
        model_config=CONFIG,
        tensors=[(SITE, PackedWeight(encoded=encode(w, "int4a-g16"))), ("norm.weight", w[0])],
        plan=Plan.of({SITE: "int4a-g16"}),
    )
    return tmp_path


def shard_of(path):
    (shard,) = path.glob("*.safetensors")
    return shard


def edit(path, **changes):
    """config.json with other facts, its digest left as it was."""
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] |= changes
    (path / "config.json").write_text(json.dumps(config))


def test_a_directory_without_config_is_unfinished(path):
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json, which is written last: its conv"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="or it is no checkpoint"):
        open_checkpoint(path / "nowhere")


def test_one_changed_bit_is_found_and_only_then_when_bytes_are_verified(path):
    shard = shard_of(path)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"safetensors: its content was changed \(sha256"):
        open_checkpoint(path)
    assert open_checkpoint(path, verify=False).sites == (SITE,)


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_of_another_size_is_found(path, verify):
    shard = shard_of(path)
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=rf"{shard.name}: {size - 8} bytes, not {size}"):
        open_checkpoint(path, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
def test_missing_files_are_listed_together(path, verify):
    shard_of(path).unlink()
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"safetensors: missing; model.*index\.json: missing"
    ):
        open_checkpoint(path, verify=verify)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_version_is_refused(path, version):
    signed(path, version=version)
    with pytest.raises(CheckpointError, match=rf"version {version!r} of the layout, and this mpq"):
        open_checkpoint(path)


def test_another_method_is_refused(path):
    signed(path, quant_method="gptq")
    with pytest.raises(CheckpointError, match=r"quantised with 'gptq', not 'mpq'; load it with"):
        open_checkpoint(path)


def test_a_model_that_is_not_quantised_is_sent_to_load_model(path):
    (path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"not quantised .* mpq\.load_model"):
        open_checkpoint(path)


def test_a_changed_configuration_is_refused(path):
    edit(path, biases_added=["x.bias"])
    with pytest.raises(CheckpointError, match=r"config\.json was changed after it was written"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "match"), [("{", "not a JSON file"), ("[]", "holds no table")], ids=["cut", "list"]
)
def test_a_configuration_that_is_no_table_is_refused(path, text, match):
    (path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({f"{SITE}.codes": torch.zeros(119, dtype=torch.uint8)},
         r"codes is U8 of shape \(119,\), and int4a-g16 of shape \(6, 40\) takes .*\(120,\)"),
        ({f"{SITE}.codes": torch.zeros(120, dtype=torch.int8)}, r"codes is I8 of shape"),
        ({f"{SITE}.scales": torch.zeros(17).bfloat16()}, r"scales is BF16 of shape \(17,\)"),
        ({f"{SITE}.scales": torch.zeros(18)}, r"scales is F32 of shape .* takes torch\.bfloat16"),
        ({f"{SITE}.zero_points": None}, r"a\.weight\.zero_points is missing"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_format_and_shape_are_refused(path, changes, match):
    rewrite(path, changes)
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(path)


def test_an_index_that_names_what_no_shard_holds_is_refused(path):
    index = path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["gone"] = shard_of(path).name
    del table["weight_map"]["norm.weight"]
    index.write_text(json.dumps(table))
    signed(path)
    with pytest.raises(CheckpointError, match=r"disagree on where gone, norm\.weight lie"):
        open_checkpoint(path)


def test_a_shard_without_its_header_is_refused(path):
    from safetensors.torch import load_file, save_file

    save_file(load_file(shard_of(path)), shard_of(path))
    signed(path)
    with pytest.raises(CheckpointError, match="this header describes no packed weights"):
        open_checkpoint(path)


def test_a_plan_of_other_formats_is_refused(path):
    signed(path, plan={SITE: "int3"})
    with pytest.raises(CheckpointError, match=r"packed in int4a-g16, and the plan says int3"):
        open_checkpoint(path)


def test_load_model_sends_a_packed_checkpoint_to_load(path):
    with pytest.raises(ModelError, match=r"already quantised \(mpq\).*or run this one: mpq\.load"):
        load_model(str(path))
