"""Blocks that are run one after the other give the logits of a whole pass, bit for bit."""

import pytest
import torch
from transformers import AlbertConfig, AlbertForMaskedLM

from mpq.errors import ModelError
from mpq.modeling.block_calls import BlockCall, enter_blocks, leave_blocks, moved, run_block
from mpq.modeling.blockwise import blocks, run
from tests.modeling.families import FAMILIES, UNREACHABLE, build, text


def batch_of():
    tokens = text(2, 12)
    mask = torch.ones_like(tokens)
    mask[1, -4:] = 0
    return {"input_ids": tokens, "attention_mask": mask}


@pytest.mark.parametrize("family", [*FAMILIES, *UNREACHABLE])
@torch.no_grad()
def test_blocks_run_by_themselves_give_the_logits_of_the_whole_pass(family):
    model, batch = build(family), batch_of()
    wanted = run(model, batch).logits
    entrance = enter_blocks(model, batch)
    hidden = entrance.hidden
    for (_, block), call in zip(blocks(model), entrance.calls, strict=True):
        hidden = run_block(block, hidden, call)
    assert torch.equal(leave_blocks(model, batch, hidden).logits, wanted)
    assert torch.equal(run(model, batch).logits, wanted)
    assert not [m for m in model.modules() if "forward" in vars(m)]


def test_entering_runs_no_block_and_no_head():
    model = build("llama")
    run(model, batch_of())
    enter_blocks(model, batch_of())  # the model has been probed from here on
    called = []
    for module in (model.model.layers[0].mlp, model.model.layers[1].mlp, model.lm_head):
        module.register_forward_hook(lambda *_: called.append(1))
    enter_blocks(model, batch_of())
    assert not called


def test_a_block_that_is_called_several_times_is_refused():
    config = AlbertConfig(
        vocab_size=96,
        embedding_size=16,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=32,
        num_hidden_layers=3,
    )
    model = AlbertForMaskedLM(config).eval()
    with pytest.raises(ModelError, match=r"must call each of its 1 blocks once, in order"):
        enter_blocks(model, text(1, 8))


def test_arguments_move_with_every_tensor_in_them():
    call = BlockCall(
        args=(torch.ones(2),), kwargs={"pair": (torch.ones(1), None), "n": 3}, by_name=True
    )
    there = moved(call, torch.device("meta"))
    assert there.args[0].is_meta
    assert there.kwargs["pair"][0].is_meta
    assert there.kwargs["pair"][1] is None
    assert there.kwargs["n"] == 3
    assert there.by_name
