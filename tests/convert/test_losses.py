"""What weights lose in candidates: the solver's own numbers, of the weights as given."""

import json

import pytest
import torch

from mpq.convert import block as converting
from mpq.convert.block import WalkOptions
from mpq.convert.hessian import HessianSum
from mpq.convert.losses import LossWork, measure_losses
from mpq.convert.options import SolverOptions
from mpq.convert.solver import solve
from mpq.errors import PlanError
from mpq.formats.zoo import parse_format
from mpq.modeling.blockwise import run
from mpq.modeling.linear import input_through
from mpq.modeling.sites import places
from mpq.modeling.weights import swapped
from tests.modeling.families import build, text

FORMATS = tuple(map(parse_format, ("int2-g16", "int4-g16")))


def work(model, match=".weight"):
    weights = tuple(
        place
        for place in places(model)
        if place.site.role == "weight" and place.site.block >= 0 and match in place.site.name
    )
    return LossWork(
        model=model,
        places=weights,
        formats=FORMATS,
        calibration=text(6, 12),
        options=WalkOptions(batch_size=2),
        device=torch.device("cpu"),
    )


def silent(*_):
    pass


def test_losses_are_the_solvers_on_what_the_given_model_reads(tmp_path):
    model = build("llama")
    found = measure_losses(work(model), tmp_path, silent)
    layer = model.model.layers[1].mlp.down_proj
    seen = HessianSum(layer.in_features)

    def keep(x):
        seen.add(x.detach())
        return x

    with input_through(layer, keep), torch.no_grad():
        for batch in torch.split(text(6, 12), 2):
            run(model, batch)
    hessian, weight = seen.hessian(), layer.weight.detach()
    name = "model.layers.1.mlp.down_proj.weight"
    for fmt in FORMATS:
        wanted = solve(weight, hessian, fmt, options=SolverOptions()).loss
        assert found.losses[name][str(fmt)] == pytest.approx(wanted, rel=1e-9)
    energy = float((weight.double() @ hessian @ weight.double().T).trace()) / 2
    assert found.energies[name] == pytest.approx(energy, rel=1e-9)


def test_the_model_is_what_it_was_and_kept_blocks_are_not_solved_again(tmp_path, monkeypatch):
    model = build("mixtral")
    before = {name: p.clone() for name, p in model.named_parameters()}
    first = measure_losses(work(model), tmp_path, silent)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    kept = tmp_path / "losses-00001.json"
    rows = json.loads(kept.read_text())
    name = next(iter(rows))
    rows[name]["energy"] = 42.0
    kept.write_text(json.dumps(rows))
    again = measure_losses(work(model), tmp_path, silent)
    assert again.energies[name] == 42.0
    assert again.losses == first.losses


def test_what_lies_outside_of_the_blocks_is_refused(tmp_path):
    model = build("llama")
    asked = work(model)
    head = next(place for place in places(model) if place.site.name == "lm_head.weight")
    with pytest.raises(PlanError, match=r"outside of the blocks or out of reach: lm_head\.weight"):
        measure_losses(
            LossWork(
                model=model,
                places=(head, *asked.places),
                formats=FORMATS,
                calibration=asked.calibration,
                options=asked.options,
                device=asked.device,
            ),
            tmp_path,
            silent,
        )


def test_sums_in_portions_give_the_same_losses(tmp_path, monkeypatch):
    model = build("mixtral")
    whole = measure_losses(work(model), tmp_path / "whole", silent)
    monkeypatch.setattr(converting, "HESSIAN_BYTES", 1)
    assert measure_losses(work(model), tmp_path / "parts", silent) == whole


def test_an_expert_without_tokens_is_solved_with_the_mean_of_the_others(tmp_path):
    model = build("mixtral")
    router = model.model.layers[0].mlp.gate.weight
    asked = work(model, "layers.0.mlp.experts")
    with swapped([(router, torch.zeros_like(router))]):  # every token to the same experts
        found = measure_losses(asked, tmp_path, silent)
    name = "model.layers.0.mlp.experts.{}.gate_up_proj.weight"
    energies = sorted((found.energies[name.format(index)], index) for index in range(4))
    # Two experts a token: the others have the energy of one of the 72 tokens.
    (_, first), (less, second), (more, _), _ = energies
    assert less == pytest.approx(more / 72, rel=0.2)
    for index in (first, second):
        for fmt in map(str, FORMATS):
            row = name.format(index)
            assert 0 < found.losses[row][fmt] < found.rounded[row][fmt]
