"""Small random models whose predictions are as sharp as a trained model's."""

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from mpq.data.examples import Examples
from mpq.formats.zoo import parse_format
from mpq.modeling.sites import sites
from tests.modeling.families import VOCABULARY, build

__all__ = ["candidates", "classifier_and_examples", "head_alone", "sharp", "windows"]


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


def classifier_and_examples() -> tuple[PreTrainedModel, Examples]:
    """A random BERT that tells three classes apart, and padded sentences of 3 to 10 tokens."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=3,
        initializer_range=0.25,
    )
    model = BertForSequenceClassification(config).eval()
    lengths = torch.arange(48) % 8 + 3
    mask = (torch.arange(10)[None] < lengths[:, None]).long()
    examples = Examples(
        input_ids=windows(48, 10) * mask,
        attention_mask=mask,
        labels=torch.arange(48) % 3,
        choice_ids=None,
        source="random",
        sha256="",
    )
    return model, examples


def head_alone() -> PreTrainedModel:
    """A Llama of no blocks: an embedding, a norm, and a head that is its only linear layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=0, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0 / model(windows(4)).logits.std())
    return model
