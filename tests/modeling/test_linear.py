"""Linear layers: what fuses, what fills the cache, and hooks that leave nothing behind."""

import pytest
import torch
from torch import nn

from mpq.modeling.linear import (
    features,
    fusion_group,
    input_through,
    linear_layers,
    output_through,
    stores_cache_of,
    weight_axis,
)
from tests.modeling.families import build


def test_conv1d_and_linear_know_their_features():
    conv = build("gpt2").transformer.h[0].attn.c_attn
    assert (features(conv), weight_axis(conv)) == ((32, 96), 0)
    linear = nn.Linear(3, 5)
    assert (features(linear), weight_axis(linear)) == ((3, 5), -1)


def test_layers_are_found_in_model_order():
    names = [name for name, _ in linear_layers(build("gpt2"))]
    assert names[:4] == [
        f"transformer.h.0.{x}" for x in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert names[-1] == "lm_head"


def test_layers_fuse_only_with_all_their_siblings_there():
    parent = nn.Module()
    parent.mlp = nn.Module()
    parent.mlp.gate_proj = nn.Linear(2, 2)
    assert fusion_group(parent, "mlp.gate_proj") == "mlp.gate_proj"
    parent.mlp.up_proj = nn.Linear(2, 2)
    assert fusion_group(parent, "mlp.gate_proj") == "mlp.gate_proj+up_proj"
    assert fusion_group(parent, "mlp.up_proj") == "mlp.gate_proj+up_proj"


@pytest.mark.parametrize(
    ("leaf", "operands"),
    [("k_proj", {"k"}), ("value", {"v"}), ("c_attn", {"k", "v"}), ("q_proj", set())],
)
def test_which_operands_of_the_cache_a_layer_computes(leaf, operands):
    assert stores_cache_of(leaf) == operands


@pytest.mark.parametrize("call", [lambda m, x: m(x), lambda m, x: m(input=x)])
def test_inputs_and_outputs_pass_through_and_hooks_go(call):
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    with input_through(layer, lambda t: 2 * t), output_through(layer, lambda t: t + 1):
        assert torch.equal(call(layer, x), layer.forward(2 * x) + 1)
    assert torch.equal(call(layer, x), layer.forward(x))
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
