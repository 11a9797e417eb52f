import pytest

from mpq.plots.places import OUTSIDE, Place, place, row_keys, row_labels


@pytest.mark.parametrize(
    ("site", "path", "block", "role", "section"),
    [
        ("model.layers.3.mlp.up_proj.weight", "mlp.up_proj", 3, "weight", "weights"),
        ("model.layers.12.self_attn.probs", "self_attn", 12, "probs", "attention"),
        ("transformer.h.0.attn.c_attn.input", "attn.c_attn", 0, "input", "inputs"),
        ("lm_head.weight", "lm_head", OUTSIDE, "weight", "weights"),
        ("model.layers.0.moe.experts.7.w1.weight", "moe.experts.*.w1", 0, "weight", "weights"),
    ],
)
def test_a_name_says_where_its_site_stands(site, path, block, role, section):
    found = place(site)
    assert found == Place(path=path, block=block, role=role)
    assert found.section == section


def keys_of(*names):
    return row_keys(place(name) for name in names)


def test_rows_follow_the_matmuls_of_a_block_whatever_the_order_of_names():
    layers = ["down_proj", "gate_proj", "up_proj"]
    heads = ["k_proj", "o_proj", "q_proj", "v_proj"]
    names = [f"model.layers.0.mlp.{kind}.weight" for kind in layers]
    names += [f"model.layers.0.self_attn.{kind}.weight" for kind in heads]
    names += [f"model.layers.0.self_attn.{role}" for role in ("k", "probs", "q", "v")]
    names += ["model.layers.0.self_attn.q_proj.input", "lm_head.weight"]
    keys = keys_of(*names)
    assert [path.split(".")[-1] for path, role in keys if role == "weight"] == [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    ]
    assert [role for _, role in keys[8:]] == ["input", "q", "k", "v", "probs"]


def test_the_attention_half_comes_before_the_layer_of_the_same_name():
    keys = keys_of("h.0.mlp.c_proj.weight", "h.0.attn.c_proj.weight")
    assert [path for path, _ in keys] == ["attn.c_proj", "mlp.c_proj"]


def test_labels_are_short_and_tell_rows_apart():
    keys = keys_of(
        "layer.0.attention.self.query.weight",
        "layer.0.attention.output.dense.weight",
        "layer.0.intermediate.dense.weight",
        "layer.0.output.dense.weight",
        "layer.0.attention.self.k",
    )
    labels = row_labels(keys)
    assert labels["attention.self.query", "weight"] == "query"
    assert labels["intermediate.dense", "weight"] == "intermediate.dense"
    assert labels["attention.self", "k"] == "k"
    assert len(set(labels.values())) == len(keys)
