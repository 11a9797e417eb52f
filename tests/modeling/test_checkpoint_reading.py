"""Packed checkpoints opened: what is lazy, and what is asked for in vain."""

import pytest
import torch

from mpq import Plan, encode
from mpq.errors import CheckpointError
from mpq.modeling.checkpoint import open_checkpoint, write_checkpoint
from mpq.modeling.packed import PackedWeight, unpack_weight
from tests.modeling.checkpoints import same

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32"}


@pytest.fixture
def order():
    return torch.randperm(40, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(tmp_path, order):
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    write_checkpoint(
        tmp_path,
        model_config=CONFIG | {"nested": {"sizes": (1, 2)}},
        tensors=[
            ("a.weight", PackedWeight(encoded=encode(w[:, order], "int3-g16"), order=order)),
            ("b.weight", PackedWeight(encoded=encode(w.bfloat16(), "nvfp4", 0))),
            ("norm.weight", w[0].bfloat16()),
        ],
        plan=Plan.of({"a.weight": "int3-g16", "b.weight": "nvfp4", "a.input": "int8-token"},
                     model="m", fingerprint="f"),
    )  # fmt: skip
    return tmp_path


def test_the_facts_are_known_before_a_tensor_is_read(path):
    found = open_checkpoint(path)
    assert found.sites == ("a.weight", "b.weight")
    assert found.dense_names == ("norm.weight",)
    assert found.plan.formats["a.input"] == Plan.of({"x": "int8-token"}).formats["x"]
    assert (found.plan.model, found.plan.fingerprint) == ("m", "f")
    assert found.config["nested"] == {"sizes": [1, 2]}
    assert found.biases_added == ()
    assert found.packed_facts["b.weight"].axis == 0
    assert len(found.digest) == 64


def test_an_order_of_columns_travels_with_its_weight(path, order):
    packed = open_checkpoint(path).packed("a.weight")
    assert packed.order.dtype == torch.int64
    assert torch.equal(packed.order, order)
    values = unpack_weight(packed)
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    again = PackedWeight(encoded=encode(w[:, order], "int3-g16"), order=order)
    assert same(packed, again)
    assert torch.equal(values, unpack_weight(again))


def test_the_dtype_of_a_tensor_stays(path):
    found = open_checkpoint(path)
    assert found.dense("norm.weight").dtype == torch.bfloat16
    assert unpack_weight(found.packed("b.weight")).dtype == torch.bfloat16


def test_names_that_are_not_there_are_errors(path):
    found = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"no packed weight 'norm\.weight': see \.sites"):
        found.packed("norm.weight")
    with pytest.raises(CheckpointError, match=r"no tensor 'a\.weight\.codes': see \.dense_names"):
        found.dense("a.weight.codes")


def test_a_shard_that_is_no_safetensors_file_is_named_where_hashes_are_not_read(path):
    (shard,) = path.glob("*.safetensors")
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(CheckpointError, match=r"-00001\.safetensors cannot be read as a shard"):
        open_checkpoint(path, verify=False)
