"""Streams carry hidden states through the blocks, in memory or on disk, to the same bits."""

import pytest
import torch

from mpq.convert.streams import HiddenStates, advance, passes, start_stream
from mpq.modeling.block_calls import leave_blocks
from mpq.modeling.blockwise import blocks, run
from tests.modeling.families import build, text

CPU = torch.device("cpu")


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_stream_behind_the_last_block_gives_the_model_its_logits(on_disk, tmp_path):
    model = build("gemma3")
    batches = torch.split(text(5, 12), 2)
    stream = start_stream(model, batches, tmp_path / "hidden" if on_disk else None)
    for index, (_, block) in enumerate(blocks(model)):
        advance(stream, block, index, CPU)
    for number, batch in enumerate(batches):
        with torch.no_grad():
            wanted = run(model, batch).logits
        assert torch.equal(leave_blocks(model, batch, stream.hidden[number]).logits, wanted)
    assert (tmp_path / "hidden").exists() == on_disk


def test_what_is_alike_in_windows_of_one_length_is_kept_once():
    stream = start_stream(build("llama"), [text(2, 12), text(2, 12), text(2, 10)])
    assert stream.calls[0] is stream.calls[1]
    assert stream.calls[1] is not stream.calls[2]


def test_a_pass_leaves_the_stream_where_it_is():
    model = build("llama")
    stream = start_stream(model, [text(2, 12)])
    before = stream.hidden[0].clone()
    (run_once,) = passes(stream, blocks(model)[0][1], 0, CPU)
    assert torch.equal(run_once(), run_once())
    assert torch.equal(stream.hidden[0], before)


def test_states_in_bfloat16_survive_the_disk(tmp_path):
    kept = HiddenStates(tmp_path)
    states = torch.randn(2, 3, 4).to(torch.bfloat16)
    kept[7] = states
    assert torch.equal(kept[7], states)
    assert kept[7].dtype == torch.bfloat16
