import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.data.tokenizers import byte_tokenizer


@pytest.fixture(autouse=True)
def logging_as_before():
    """Programs set up logging for their process; here the next test shares it."""
    root, own = logging.getLogger(), logging.getLogger("mpq")
    before = root.level, list(root.handlers), own.level
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    own.setLevel(before[2])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A small random Llama on disk, with a tokenizer of bytes and a text to profile it on."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return folder
