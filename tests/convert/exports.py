"""Weights and models that the tests of the exports share."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from mpq.formats.zoo import parse_format
from mpq.kernels.fake_quant import encode
from mpq.modeling.loading import SHIPPED_MODELS
from mpq.modeling.packed import PackedWeight

SHIPPED = SHIPPED_MODELS["mpq/tiny-llama"]
CONFIG = json.loads((Path(SHIPPED) / "config.json").read_text())
HEAD = {"model.embed_tokens.weight": "lm_head.weight"}


def packed(
    text: str, rows: int = 32, columns: int = 128, dtype=torch.bfloat16, **layout
) -> PackedWeight:
    """A weight of normal values in a format; `order` and `axis` by name."""
    order = layout.pop("order", None)
    draw = torch.Generator().manual_seed(rows * columns)
    weight = torch.randn(rows, columns, generator=draw).to(dtype) * 0.05
    return PackedWeight(encoded=encode(weight, parse_format(text), **layout), order=order)


def shuffled(columns: int) -> torch.Tensor:
    return torch.randperm(columns, generator=torch.Generator().manual_seed(1))


def shipped_model(source: Path = SHIPPED) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()


def packed_sites(model: PreTrainedModel, formats: dict[str, str]) -> dict[str, PackedWeight]:
    """The model's weights in the formats, by site."""
    state = model.state_dict()
    return {
        site: PackedWeight(encoded=encode(state[site], parse_format(text)))
        for site, text in formats.items()
    }


def the_rest(model: PreTrainedModel, sites) -> list[tuple[str, torch.Tensor]]:
    """What the checkpoint holds beside the sites: the head is tied, so it has no tensor."""
    state = model.state_dict()
    return [(name, x) for name, x in state.items() if name not in {*sites, "lm_head.weight"}]


def logits(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.randint(0, 2048, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(tokens).logits
