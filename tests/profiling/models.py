"""Small random models whose predictions are as sharp as a trained model's."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpq.formats.zoo import parse_format
from mpq.modeling.sites import sites
from tests.modeling.families import VOCABULARY, build

__all__ = ["candidates", "sharp", "windows"]


def sharp(family: str) -> PreTrainedModel:
    """A family's model with logits of a few nats: its labels are neither certain nor uniform."""
    model = build(family)
    tokens = windows(4)
    with torch.no_grad():
        head = model.get_output_embeddings()
        if head is not None:
            head.weight.mul_(2.0 / model(tokens).logits.std())
    return model


def windows(count: int = 8, tokens: int = 12, seed: int = 5) -> Tensor:
    """Token windows `[count, tokens]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count, tokens), generator=generator)


def candidates(model: PreTrainedModel, texts, *, keep=lambda _: True, **options):
    """The given formats for every site that `keep` is true of."""
    formats = tuple(parse_format(text) for text in texts)
    return {site: formats for site in sites(model, **options) if keep(site)}
