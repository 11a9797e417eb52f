"""Windows that a model writes itself: repeatable, spread over the vocabulary, greedy at first."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from mpq.errors import DataError
from mpq.modeling.generation import GREEDY_TOKENS, generate_windows
from tests.modeling.families import VOCABULARY, build


class Tokens:
    def __init__(self, bos):
        self.bos_token_id = bos


def test_windows_are_repeatable_and_another_seed_gives_others():
    model = build("llama")
    one = generate_windows(model, Tokens(1), 6, 10, seed=3, batch_size=2)
    assert one.shape == (6, 10)
    assert one.dtype == torch.int64
    assert torch.equal(one, generate_windows(model, Tokens(1), 6, 10, seed=3, batch_size=2))
    assert not torch.equal(one, generate_windows(model, Tokens(1), 6, 10, seed=4, batch_size=2))


def test_progress_is_told_token_by_token_up_to_all():
    told = []
    generate_windows(
        build("llama"), Tokens(1), 5, 10, seed=3, batch_size=2, progress=lambda *x: told.append(x)
    )
    assert {what for what, _, _ in told} == {"tokens written"}
    assert {total for _, _, total in told} == {50}
    done = [done for _, done, _ in told]
    assert done[:3] == [4, 6, 8]  # two rows of bos and a first token, then one more in each
    assert done == sorted(done)
    assert done[-1] == 50


def test_no_first_token_comes_twice_before_all_have_come():
    found = generate_windows(build("llama"), Tokens(None), VOCABULARY + 4, 2, seed=0)
    assert sorted(found[:VOCABULARY, 0].tolist()) == list(range(VOCABULARY))
    with_bos = generate_windows(build("llama"), Tokens(1), 5, 3, seed=0)
    assert with_bos[:, 0].tolist() == [1] * 5
    assert len(set(with_bos[:, 1].tolist())) == 5


@torch.no_grad()
def test_the_first_tokens_are_the_likeliest_and_later_ones_are_drawn():
    model = build("llama")
    found = generate_windows(model, Tokens(1), 4, 24, seed=0, batch_size=4)
    likeliest = model(found).logits.argmax(dim=-1)
    greedy = GREEDY_TOKENS[0]
    assert torch.equal(found[:, 2 : 2 + greedy], likeliest[:, 1 : 1 + greedy])
    assert not torch.equal(found[:, 2 + greedy :], likeliest[:, 1 + greedy : -1])


def test_nothing_to_write_is_refused():
    with pytest.raises(DataError, match="at least 1 window of at least 2 tokens, not 0 of 8"):
        generate_windows(build("llama"), Tokens(1), 0, 8, seed=0)


def test_a_model_that_writes_no_text_is_refused():
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16}
    config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForSequenceClassification(config)
    with pytest.raises(DataError, match="LlamaForSequenceClassification writes no text"):
        generate_windows(model, Tokens(1), 1, 8, seed=0)
