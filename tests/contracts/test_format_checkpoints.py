"""Every format goes through a checkpoint and comes back bit for bit."""

import pytest
import torch

from mpq import Plan, encode, quantize
from mpq.modeling.checkpoint import open_checkpoint, write_checkpoint
from mpq.modeling.packed import PackedWeight, unpack_weight
from tests.contracts.zoo import ALL

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32"}
DTYPES = (torch.float32, torch.bfloat16)


def weight(dtype):
    spread = torch.logspace(-3, 1, 45)
    return (torch.randn(11, 45, generator=torch.Generator().manual_seed(0)) * spread).to(dtype)


def name_of(text, dtype, axis):
    return f"{text}/{dtype}/{axis}.weight".replace("torch.", "")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo")
    kinds = [(text, dtype, axis) for text in ALL for dtype in DTYPES for axis in (-1, 0)]
    write_checkpoint(
        path,
        model_config=CONFIG,
        tensors=(
            (name_of(*kind), PackedWeight(encoded=encode(weight(kind[1]), kind[0], kind[2])))
            for kind in kinds
        ),
        plan=Plan.of({name_of(*kind): kind[0] for kind in kinds}),
        max_shard_bytes=20_000,
    )
    return open_checkpoint(path)


@pytest.mark.parametrize("text", ALL)
def test_a_weight_reads_back_as_it_was_quantised(text, checkpoint):
    for dtype in DTYPES:
        for axis in (-1, 0):
            packed = checkpoint.packed(name_of(text, dtype, axis))
            assert packed.num_bits == packed.encoded.format.bits((11, 45), axis)
            assert torch.equal(unpack_weight(packed), quantize(weight(dtype), text, axis))
