"""The walk converts every architecture to what its checkpoint holds, and changes no model."""

from contextlib import contextmanager

import pytest
import torch

from mpq.convert.block import WalkOptions
from mpq.convert.conversion import prepare
from mpq.convert.finished import AFTER, BEFORE, block_key, open_finished
from mpq.convert.solver import SolverOptions
from mpq.convert.walk import walk
from mpq.errors import ModelError, PlanError
from mpq.measures import cross_entropy
from mpq.modeling.blockwise import run
from mpq.modeling.packed import unpack_weight
from mpq.modeling.residence import on_device, put
from mpq.modeling.sites import places
from mpq.modeling.weights import swapped
from mpq.modeling.wrap import apply_plan, uniform_plan
from mpq.plans.plan import Plan
from tests.modeling.families import FAMILIES, build, text

CPU = torch.device("cpu")
RTN = WalkOptions(solver=SolverOptions(method="rtn"), batch_size=2)
GPTQ = WalkOptions(batch_size=2)


def silent(*_):
    pass


def converted(model, plan, folder, options, heldout=None, calibration=None):
    tokens = text(6, 12) if calibration is None else calibration
    conversion = prepare(model, plan, tokens, heldout, options=options, device=CPU)
    finished = open_finished(folder, {})
    return conversion, finished, walk(conversion, finished, silent)


def blocks_of(finished):
    keys = [BEFORE, block_key(0), block_key(1), AFTER]
    return [finished.read(key) for key in keys]


def rows_of(finished):
    return [row for block in blocks_of(finished) for row in block.reports]


@contextmanager
def in_force(conversion, finished):
    """The model holds what was converted."""
    model, stored = conversion.model, conversion.stored
    with on_device([model], CPU), torch.no_grad():
        for block in blocks_of(finished):
            put([(stored[site], unpack_weight(p)) for site, p in block.packed.items()])
            for name, bias in block.biases.items():
                module = model.get_submodule(name.removesuffix(".bias"))
                module.register_parameter("bias", torch.nn.Parameter(bias))
        with conversion.under_activations():
            yield model


@torch.no_grad()
def loss_of(model, windows):
    logits = torch.cat([run(model, batch).logits for batch in torch.split(windows, 2)])
    return float(cross_entropy(logits[:, :-1], windows[:, 1:]).double().mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_to_nearest_is_what_a_plan_emulates(family, tmp_path):
    model = build(family)
    plan = uniform_plan(model, "bfp4", roles=("weight",))
    conversion, finished, _ = converted(model, plan, tmp_path, RTN)
    with apply_plan(model, plan), torch.no_grad():
        wanted = run(model, text(2, 12)).logits
    with in_force(conversion, finished), torch.no_grad():
        assert torch.equal(run(model, text(2, 12)).logits, wanted)
    assert {row.method for row in rows_of(finished)} == {"rtn"}
    assert {row.reason for row in rows_of(finished)} == {""}


@pytest.mark.parametrize("family", FAMILIES)
def test_gptq_loses_less_in_sum_and_leaves_the_model_as_it_was(family, tmp_path):
    model = build(family)
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    plan = uniform_plan(model, "int3", roles=("weight",))
    _, finished, _ = converted(model, plan, tmp_path, GPTQ)
    rows = rows_of(finished)
    assert [row.site for row in rows] != []
    assert {row.site for row in rows} == plan.formats.keys()
    assert {row.method for row in rows} == {"gptq"}
    assert sum(row.loss for row in rows) < sum(row.rtn_loss for row in rows)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (pointer, values) in before.items():
        assert after[name].data_ptr() == pointer
        assert torch.equal(after[name], values)


def test_what_is_judged_is_the_model_that_the_tensors_make(tmp_path):
    model, heldout = build("gemma3"), text(5, 12)
    formats = uniform_plan(model, "int4-g16", roles=("weight",)).formats
    flowing = uniform_plan(model, "bfp6", roles=("input", "k", "v")).formats
    plan = Plan(formats={**formats, **flowing})
    conversion, finished, report = converted(model, plan, tmp_path, GPTQ, heldout)
    assert report.num_tokens == heldout.numel()
    assert report.loss_before == pytest.approx(loss_of(model, heldout), abs=1e-12)
    with in_force(conversion, finished):
        assert report.loss_after == pytest.approx(loss_of(model, heldout), abs=1e-12)
    assert report.kl > 0


def test_tied_embeddings_and_a_head_of_its_own_are_converted(tmp_path):
    tied = build("gemma3")
    plan = Plan.of({"lm_head.weight": "int8", "model.layers.0.mlp.up_proj.weight": "int4"})
    conversion, finished, report = converted(tied, plan, tmp_path / "tied", GPTQ, text(2, 12))
    (row,) = finished.read(BEFORE).reports
    assert row.site == "model.embed_tokens.weight"
    assert row.method == "rtn"
    assert row.reason == "what it reads cannot be seen"
    with in_force(conversion, finished):
        assert report.loss_after == pytest.approx(loss_of(tied, text(2, 12)), abs=1e-12)
    own = build("llama")
    plan = Plan.of({"lm_head.weight": "int3", "model.embed_tokens.weight": "int8"})
    conversion, finished, report = converted(own, plan, tmp_path / "own", GPTQ, text(2, 12))
    (head,) = finished.read(AFTER).reports
    assert head.method == "gptq"
    assert head.loss < head.rtn_loss
    with in_force(conversion, finished):
        assert report.loss_after == pytest.approx(loss_of(own, text(2, 12)), abs=1e-12)


def test_an_interrupted_walk_goes_on_to_the_same_bits(tmp_path):
    model = build("llama")
    plan = uniform_plan(model, "bfp3", roles=("weight",))
    _, whole, wanted = converted(model, plan, tmp_path / "whole", GPTQ, text(2, 12))

    def stop(what, done, total):
        if done == 1:
            raise KeyboardInterrupt

    conversion = prepare(model, plan, text(6, 12), text(2, 12), options=GPTQ, device=CPU)
    finished = open_finished(tmp_path / "parts", {})
    with pytest.raises(KeyboardInterrupt):
        walk(conversion, finished, stop)
    assert block_key(0) in finished
    assert block_key(1) not in finished
    assert walk(conversion, finished, silent) == wanted
    for one, other in zip(blocks_of(whole), blocks_of(finished), strict=True):
        assert one.reports == other.reports
        for site, packed in one.packed.items():
            assert torch.equal(packed.encoded.codes, other.packed[site].encoded.codes)


def test_blocks_that_are_kept_bring_their_corrected_biases(tmp_path):
    model = build("llama")
    plan = uniform_plan(model, "int2", roles=("weight",))
    corrected = WalkOptions(batch_size=2, bias_correction=True)
    conversion, finished, wanted = converted(model, plan, tmp_path / "w", corrected, text(2, 12))
    assert blocks_of(finished)[1].biases
    assert walk(conversion, finished, silent) == wanted
    assert model.model.layers[0].mlp.down_proj.bias is None


def test_hidden_states_on_disk_change_nothing(tmp_path):
    model = build("llama")
    plan = uniform_plan(model, "bfp3", roles=("weight",))
    _, one, _ = converted(model, plan, tmp_path / "one", GPTQ)
    on_disk = WalkOptions(batch_size=2, activations=tmp_path / "states")
    _, other, _ = converted(model, plan, tmp_path / "other", on_disk)
    assert rows_of(one) == rows_of(other)


def test_true_sequential_calibrates_behind_what_is_converted(tmp_path):
    model = build("llama")
    plan = uniform_plan(model, "int3", roles=("weight",))
    _, one, _ = converted(model, plan, tmp_path / "one", GPTQ)
    at_once = WalkOptions(batch_size=2, true_sequential=False)
    _, other, _ = converted(model, plan, tmp_path / "other", at_once)
    first, second = rows_of(one), {row.site: row for row in rows_of(other)}
    differing = {row.site for row in first if row != second[row.site] and ".0." in row.site}
    kinds = {name.split(".")[-2] for name in differing}
    assert kinds >= {"o_proj", "down_proj"}
    assert not kinds & {"q_proj", "k_proj", "v_proj"}


def test_corrected_biases_take_the_mean_error_away(tmp_path):
    model = build("llama")
    plan = Plan.of({"model.layers.1.mlp.down_proj.weight": "int2"})
    corrected = WalkOptions(batch_size=2, bias_correction=True)
    means = {}
    for name, options in (("plain", GPTQ), ("corrected", corrected)):
        conversion, finished, _ = converted(model, plan, tmp_path / name, options)
        layer = model.model.layers[1].mlp.down_proj
        seen = {}

        def keep(_, args, output, seen=seen):
            seen["x"], seen["y"] = args[0].clone(), output.clone()

        handle = layer.register_forward_hook(keep)
        with in_force(conversion, finished), torch.no_grad():
            run(model, text(6, 12))
        handle.remove()
        if layer.bias is not None:
            layer.register_parameter("bias", None)
        wanted = seen["x"] @ layer.weight.detach().T
        means[name] = float((seen["y"].detach() - wanted).mean(dim=(0, 1)).abs().max())
        biases = finished.read(block_key(1)).biases
        assert list(biases) == (["model.layers.1.mlp.down_proj.bias"] if biases else [])
        assert bool(biases) == (name == "corrected")
    assert means["corrected"] < 1e-5 < means["plain"]


def test_a_bias_in_the_plan_is_packed_as_corrected(tmp_path):
    model = build("opt")
    name = "model.decoder.layers.0.fc1"
    plan = Plan.of({f"{name}.weight": "int2", f"{name}.bias": "int8"})
    corrected = WalkOptions(batch_size=2, bias_correction=True)
    conversion, finished, report = converted(model, plan, tmp_path, corrected, text(2, 12))
    block = finished.read(block_key(0))
    assert block.packed.keys() == plan.formats.keys()
    assert not block.biases
    own = model.get_submodule(name).bias
    assert not torch.allclose(unpack_weight(block.packed[f"{name}.bias"]), own, atol=1e-3)
    with in_force(conversion, finished):
        assert report.loss_after == pytest.approx(loss_of(model, text(2, 12)), abs=1e-12)


def test_experts_without_tokens_are_rounded_and_say_so(tmp_path):
    model = build("mixtral")
    router = model.model.layers[0].mlp.gate.weight
    with swapped([(router, torch.zeros_like(router))]):  # every token to the first experts
        plan = uniform_plan(model, "int3", roles=("weight",))
        _, finished, _ = converted(model, plan, tmp_path, GPTQ)
    rows = [r for r in rows_of(finished) if ".0.mlp.experts" in r.site]
    idle = [row for row in rows if row.method == "rtn"]
    assert idle
    assert {row.reason for row in idle} == {"no calibration token came by"}
    assert any(row.method == "gptq" for row in rows)


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = torch.nan
    plan = Plan.of({"model.layers.1.self_attn.o_proj.weight": "int4"})
    with pytest.raises((ModelError, ValueError), match=r"layers\.1\.self_attn\.o_proj\.weight"):
        converted(model, plan, tmp_path, GPTQ)


def test_an_activation_that_is_not_finite_is_named(tmp_path):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = torch.inf
    plan = Plan.of({"model.layers.0.mlp.down_proj.weight": "int4"})
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.down_proj\.weight must be finite"):
        converted(model, plan, tmp_path, GPTQ)


def test_a_plan_without_stored_tensors_is_refused():
    model = build("llama")
    plan = Plan.of({"model.layers.0.mlp.up_proj.input": "bfp6", "lm_head.weight": "fp32"})
    with pytest.raises(PlanError, match=r"needs a stored tensor .* of the plan's 2 sites none is"):
        prepare(model, plan, text(2, 8), options=GPTQ, device=CPU)


def test_biases_of_experts_cannot_be_corrected():
    model = build("mixtral")
    plan = uniform_plan(model, "int4", roles=("weight",))
    options = WalkOptions(bias_correction=True)
    with pytest.raises(ModelError, match=r"belong to fused experts: model\.layers\.0\.mlp"):
        prepare(model, plan, text(2, 8), options=options, device=CPU)


def test_a_plan_for_another_model_is_refused():
    plan = Plan.of({"model.layers.7.mlp.up_proj.weight": "int4"})
    with pytest.raises(PlanError, match=r"layers\.7\.mlp\.up_proj\.weight: no site of Llama"):
        prepare(build("llama"), plan, text(2, 8), options=GPTQ, device=CPU)


def test_the_calibrated_places_are_those_of_the_plan():
    model = build("llama")
    plan = uniform_plan(model, "int4", roles=("weight",), match="*.q_proj.weight")
    conversion = prepare(model, plan, text(2, 8), options=GPTQ, device=CPU)
    assert conversion.stored.keys() == plan.formats.keys()
    assert len(places(model)) > len(plan.formats)
