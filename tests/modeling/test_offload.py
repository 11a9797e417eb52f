"""Offloaded models: the logits of resident ones, in the memory of one block."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mpq import Plan, apply_plan
from mpq.errors import CheckpointError, ModelError, PlanError
from mpq.modeling import offload
from mpq.modeling.blockwise import blocks
from mpq.modeling.checkpoint import model_of, open_checkpoint
from mpq.modeling.loading import fingerprint
from tests.modeling.checkpoints import saved
from tests.modeling.families import CAUSAL, FAMILIES, build, logits, text


def both(tmp_path, family="llama", plan="int4-g16"):
    saved(build(family), tmp_path, plan)
    checkpoint = open_checkpoint(tmp_path)
    return model_of(checkpoint), model_of(checkpoint, offload=True)


def held(model):
    """Bytes behind the parameters, each storage once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("family", [*FAMILIES, "bloom", "falcon"])
def test_the_logits_are_those_of_the_resident_model(family, tmp_path):
    resident, offloaded = both(tmp_path, family)
    for tokens in (text(), text(1, 7)):
        assert torch.equal(logits(offloaded, tokens), logits(resident, tokens))


@pytest.mark.parametrize("family", CAUSAL)
def test_text_is_generated_with_the_cache_as_by_the_resident_model(family, tmp_path):
    resident, offloaded = both(tmp_path, family)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        assert torch.equal(
            offloaded.generate(text(2, 5), **options), resident.generate(text(2, 5), **options)
        )


def deep(tmp_path, num_layers):
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": num_layers}
    saved(LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval(), tmp_path)
    return model_of(open_checkpoint(tmp_path), offload=True)


def test_one_block_is_decoded_at_a_time_and_none_afterwards(tmp_path):
    model = deep(tmp_path, 6)
    at_rest = held(model)
    seen = []
    for _, block in blocks(model):
        block.mlp.register_forward_hook(lambda *_: seen.append(held(model)))
    logits(model, text())
    one_block = sum(p.nbytes for p in model.model.layers[0].parameters())
    outside = sum(p.nbytes for n, p in model.named_parameters() if "layers" not in n)
    assert len(seen) == 6
    assert outside < at_rest < outside + one_block / 10
    assert max(seen) < at_rest + one_block + 1
    assert held(model) == at_rest


def test_every_block_takes_the_same_memory(tmp_path):
    model = deep(tmp_path, 4)
    seen, lowest = [], []
    for _, block in blocks(model):
        block.mlp.register_forward_hook(lambda *_: seen.append(held(model)))
        block.mlp.register_forward_hook(
            lambda mlp, *_: lowest.append(mlp.gate_proj.weight.untyped_storage().data_ptr())
        )
    for tokens in (text(), text(1, 7)):
        logits(model, tokens)
    assert len(lowest) == 8
    assert len(set(lowest)) == 1
    assert len(set(seen)) == 1


def test_a_larger_block_is_given_more_room():
    room = offload._Room(torch.device("cpu"))
    for count in (3, 100, 7):
        room.clear([count * 4, count * 2])
        whole = room.place(torch.Size([count]), torch.float32)
        half = room.place(torch.Size([count, 1]), torch.bfloat16)
        whole.fill_(1.0)
        half.fill_(2.0)
        assert whole.tolist() == [1.0] * count
        assert half.flatten().tolist() == [2.0] * count
        assert half.shape == (count, 1)
        assert whole.data_ptr() % offload.ALIGNMENT == half.data_ptr() % offload.ALIGNMENT == 0
    assert room.place(torch.Size([]), torch.float32).numel() == 1


def test_the_thread_reads_one_block_ahead_and_no_more(tmp_path, monkeypatch):
    fetched = []
    original = offload._Turns._fetch

    def fetch(turns, index):
        fetched.append((index, threading.current_thread() is not threading.main_thread()))
        return original(turns, index)

    monkeypatch.setattr(offload._Turns, "_fetch", fetch)
    model = deep(tmp_path, 4)
    assert fetched == []
    logits(model, text())
    logits(model, text())
    assert all(in_thread for _, in_thread in fetched)
    assert [index for index, _ in fetched[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert len(fetched) in {8, 9}  # the last fetch may not have begun


def test_a_pass_that_fails_leaves_no_block_behind(tmp_path):
    resident, model = both(tmp_path)
    at_rest = held(model)

    def fail(*_):
        raise RuntimeError("stop")

    handle = model.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        logits(model, text())
    assert held(model) == at_rest
    handle.remove()
    assert torch.equal(logits(model, text()), logits(resident, text()))


def in_two_threads(call):
    """What ten calls return, each made by whichever of two threads is free."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda _: call(), range(10)))


def in_another_thread(call):
    """What a call returns; nothing if it waits for ever, which is a failure and not a hang."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(60)
    return found


@pytest.mark.parametrize("part", ["the model", "what the head reads", "a block"])
def test_threads_that_call_at_once_take_turns(part, tmp_path):
    offloaded = deep(tmp_path, 4)
    resident = model_of(open_checkpoint(tmp_path))
    tokens = text(4, 128)

    @torch.no_grad()
    def run(model):
        if part == "the model":
            return model(tokens).logits
        if part == "what the head reads":
            return model.model(tokens).last_hidden_state
        hidden = model.model.embed_tokens(tokens)
        position = model.model.rotary_emb(hidden, torch.arange(tokens.shape[1])[None])
        return model.model.layers[2](hidden, position_embeddings=position)

    want = run(resident)
    for got in in_two_threads(lambda: run(offloaded)):
        assert torch.equal(got, want)


def test_a_pass_is_not_broken_into(tmp_path):
    model, order = deep(tmp_path, 3), []
    for index, (_, block) in enumerate(blocks(model)):
        block.mlp.register_forward_hook(
            lambda *_, index=index: order.append((index, threading.get_ident()))
        )
    in_two_threads(lambda: logits(model, text(4, 64)))
    assert [index for index, _ in order] == [0, 1, 2] * 10
    assert all(len({thread for _, thread in order[i : i + 3]}) == 1 for i in range(0, 30, 3))


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["model", "block", "inside"])
def test_a_pass_that_fails_lets_other_threads_pass(fault, where, tmp_path):
    resident, model = both(tmp_path)
    block = model.model.layers[1]

    def fail(*_):
        raise fault("stop")

    place = {"model": model, "block": block, "inside": block.mlp}[where]
    for register in (place.register_forward_pre_hook, place.register_forward_hook):
        handle = register(fail)
        with pytest.raises(fault, match="stop"):
            logits(model, text())
        handle.remove()
        got = in_another_thread(lambda: logits(model, text()))
        assert len(got) == 1
        assert torch.equal(got[0], logits(resident, text()))


def test_a_read_ahead_that_failed_is_not_remembered(tmp_path, monkeypatch):
    resident, model = both(tmp_path)
    original = offload._Turns._fetch

    def fetch(turns, index):
        if index == 1:
            monkeypatch.undo()
            raise OSError("the disk is away")
        return original(turns, index)

    monkeypatch.setattr(offload._Turns, "_fetch", fetch)
    with pytest.raises(OSError, match="the disk is away"):
        logits(model, text())
    assert torch.equal(logits(model, text()), logits(resident, text()))


def test_a_shard_that_is_gone_is_an_error_of_ours_when_its_block_runs(tmp_path):
    saved(build("llama"), tmp_path, max_shard_bytes=8_000)
    checkpoint = open_checkpoint(tmp_path)
    model = model_of(checkpoint, offload=True)
    checkpoint._shards._open.clear()
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read as a shard"):
        logits(model, text())


def test_no_parameter_asks_for_a_gradient_and_a_backward_pass_is_refused(tmp_path):
    _, model = both(tmp_path)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model(input_ids=text()).logits.requires_grad
    embedded = model.model.embed_tokens(text()).requires_grad_()
    with pytest.raises(ModelError, match=r"LlamaDecoderLayer is offloaded, .* torch\.no_grad"):
        model(inputs_embeds=embedded)


def test_weights_that_are_not_there_are_not_handed_out(tmp_path):
    _, model = both(tmp_path)
    for use in (model.state_dict, lambda: fingerprint(model)):
        with pytest.raises(ModelError, match="are offloaded, so it has no state dict to save"):
            use()


def test_a_plan_cannot_change_weights_that_are_offloaded(tmp_path):
    _, model = both(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    with (
        pytest.raises(PlanError, match=rf"{name} is offloaded: .* load the model without"),
        apply_plan(model, Plan.of({name: "bfp4"})),
    ):
        pass
    with apply_plan(model, Plan.of({"model.layers.0.mlp.up_proj.input": "bfp4"})):
        logits(model, text())


def test_a_model_without_blocks_is_refused(tmp_path, monkeypatch):
    saved(build("llama"), tmp_path)
    monkeypatch.setattr(offload, "blocks", lambda _: [])
    with pytest.raises(ModelError, match="has no list of blocks to offload"):
        model_of(open_checkpoint(tmp_path), offload=True)
