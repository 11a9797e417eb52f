"""Small random models of every family that mpq promises, built from configs with fixed seeds."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tests.data.tokenizers import byte_tokenizer

VOCABULARY = 96
WINDOW = 6  # of the families with a sliding window: shorter than the texts of the tests
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2, "head_dim": 8}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_GROUPED))


def _opt() -> PreTrainedModel:
    sizes = {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
    return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32))


def _bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**_SIZES))


def _roberta() -> PreTrainedModel:
    return RobertaForMaskedLM(RobertaConfig(**_SIZES))


def _gpt2() -> PreTrainedModel:
    sizes = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **tokens))


def _gemma3() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        **_GROUPED, sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=8
    )
    return Gemma3ForCausalLM(config)


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_GROUPED))


def _mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=WINDOW))


def _mixtral() -> PreTrainedModel:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    return MixtralForCausalLM(MixtralConfig(**_GROUPED, **experts))


def _phi3() -> PreTrainedModel:
    sizes = {key: value for key, value in _GROUPED.items() if key != "head_dim"}
    return Phi3ForCausalLM(Phi3Config(**sizes, sliding_window=None))


def _gpt_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES))


def _bloom() -> PreTrainedModel:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    return BloomForCausalLM(BloomConfig(**sizes))


def _falcon() -> PreTrainedModel:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
    return FalconForCausalLM(FalconConfig(**sizes, num_attention_heads=4))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "opt": _opt,
    "bert": _bert,
    "roberta": _roberta,
    "gpt2": _gpt2,
    "gemma3": _gemma3,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "phi3": _phi3,
    "gpt_neox": _gpt_neox,
}
"""The families that mpq promises, by name."""

UNREACHABLE = {"bloom": _bloom, "falcon": _falcon}
"""Families that never call a registered attention implementation."""

ENCODERS = ("bert", "roberta")
CAUSAL = tuple(name for name in FAMILIES if name not in ENCODERS)


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A small random model in eval mode; weights large enough that every tensor matters."""
    torch.manual_seed(seed)
    model = (FAMILIES | UNREACHABLE)[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.25 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    if dtype == torch.float64 and family == "mixtral":
        model.set_experts_implementation("eager")  # the grouped matmul knows no float64
    return model.to(dtype).eval()


def text(batch: int = 2, tokens: int = 20, seed: int = 1) -> Tensor:
    """Token ids [batch, tokens] without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)


def logits(model: PreTrainedModel, tokens: Tensor, **inputs: Tensor) -> Tensor:
    """The model's logits, without gradients."""
    with torch.no_grad():
        return model(input_ids=tokens, **inputs).logits


def positions(family: str, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Position ids [batch, tokens] counted from each sequence's first unmasked token."""
    mask = torch.ones_like(tokens) if mask is None else mask
    counted = (mask.cumsum(dim=-1) - 1).clamp_min(0)
    return counted + 1 if family == "roberta" else counted  # RoBERTa counts from behind its pad id


def save_llama(folder: Path, **sizes: int) -> Path:
    """The folder, with a small random Llama, a tokenizer of bytes, and a text of 2,700 letters."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    given = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2} | sizes
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        **given,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return folder
