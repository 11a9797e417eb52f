from typing import get_args

import numpy as np
import pytest

from mpq.config_sections import ProfileSection
from mpq.errors import PlanError, RunError
from mpq.profiling import sensitivity
from mpq.profiling.resuming import start_table
from mpq.profiling.sensitivity import METHODS, empty_table, measure_sensitivity
from mpq.profiling.table import DamageTable
from mpq.run import DAMAGE_UNITS
from tests.profiling.models import candidates, classifier_and_examples, sharp, windows


def new_table(method, **facts):
    return DamageTable.empty(
        **{"method": method, "tokens": 96, "fingerprint": "f", "data_sha256": "d", **facts}
    )


@pytest.fixture(scope="module")
def model():
    return sharp("llama")


@pytest.fixture(scope="module")
def asked(model):
    """Attention operands, which the methods of all roles measure."""
    return candidates(model, ["bfp3", "bfp4"], keep=lambda s: s.kind == "self_attn")


@pytest.fixture(scope="module")
def weights(model):
    """What every method measures."""
    return candidates(model, ["bfp3", "bfp4"], keep=lambda s: s.role == "weight")


def test_the_methods_are_the_same_everywhere():
    assert get_args(ProfileSection.model_fields["method"].annotation) == METHODS
    assert tuple(DAMAGE_UNITS) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_pair_is_measured_and_saved(model, weights, method, tmp_path):
    path = tmp_path / "t.csv"
    table = measure_sensitivity(
        model, windows(), weights, new_table(method), save=lambda table: table.write(path)
    )
    assert set(table.sites) == {site.name for site in weights}
    # In company, errors may make up for each other.
    assert (table.damage >= 0).all()
    assert (table.damage > 0).all() or method == "shares"
    assert (table.damage > 0).mean() > 0.8
    np.testing.assert_array_equal(DamageTable.read(path).damage, table.damage)


def test_the_methods_rank_alike(model, asked):
    fisher, kl = (
        measure_sensitivity(model, windows(64), asked, new_table(method))
        for method in ("fisher", "kl")
    )
    assert fisher.rank_correlation(kl).overall > 0.9


@pytest.mark.parametrize("method", ["fisher", "fisher-output"])
def test_expansions_rank_weights_like_the_divergence(model, weights, method):
    estimate, kl = (
        measure_sensitivity(model, windows(64), weights, new_table(name))
        for name in (method, "kl")
    )
    assert estimate.rank_correlation(kl).overall > 0.8


def test_the_methods_agree_on_a_classifier():
    model, examples = classifier_and_examples()
    asked = candidates(model, ["bfp4", "bfp6"], keep=lambda s: s.block >= 0)
    assert {site.role for site in asked} == {"weight", "input", "q", "k", "v", "probs"}
    fisher, kl = (
        measure_sensitivity(model, examples, asked, new_table(method))
        for method in ("fisher", "kl")
    )
    found = fisher.rank_correlation(kl)
    assert found.overall > 0.9
    assert 0.7 < found.total / found.other_total < 1.4


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_profile_goes_on_where_it_was(
    model, weights, method, tmp_path, monkeypatch
):
    path = tmp_path / "t.csv"
    whole = measure_sensitivity(model, windows(), weights, new_table(method), batch_size=4)
    by_format = method in ("first-order", "shares")
    counted = "backward passes" if by_format else "sites"

    def stop(what, done, total):
        if what in (counted, "forward passes") and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(
            model,
            windows(),
            weights,
            new_table(method),
            save=lambda table: table.write(path),
            batch_size=4,
            progress=stop,
        )
    kept = start_table(path, new_table(method))
    pairs = {(site.name, str(fmt)) for site, formats in weights.items() for fmt in formats}
    known = {(row["site"], row["format"]) for row in kept.rows()}
    assert 0 < len(known) < len(pairs)

    measured = set()
    original = sensitivity._steps

    def spy(model_, data, missing, *rest):
        measured.update((site.name, str(fmt)) for site, some in missing.items() for fmt in some)
        return original(model_, data, missing, *rest)

    monkeypatch.setattr(sensitivity, "_steps", spy)
    resumed = measure_sensitivity(model, windows(), weights, kept, batch_size=4)
    assert measured == pairs - known
    names = [site.name for site in weights]
    np.testing.assert_allclose(
        resumed.select(names, resumed.formats), whole.select(names, whole.formats), rtol=1e-3
    )


def test_sites_are_saved_while_the_profile_runs(model, asked, monkeypatch):
    monkeypatch.setattr(sensitivity, "_SAVE_SECONDS", 0.0)
    saved = []
    measure_sensitivity(
        model, windows(2), asked, new_table("kl"), save=lambda table: saved.append(table.sites)
    )
    assert [len(sites) for sites in saved[:-1]] == list(range(1, len(asked) + 1))


def test_a_finished_table_is_not_measured_again(model, asked, monkeypatch):
    table = measure_sensitivity(model, windows(), asked, new_table("fisher"))
    monkeypatch.setattr(sensitivity, "_steps", None)
    assert measure_sensitivity(model, windows(), asked, table) is table


def test_a_profile_stopped_before_its_first_site_leaves_no_file(model, asked, tmp_path):
    def stop(what, done, total):
        raise KeyboardInterrupt

    path = tmp_path / "t.csv"
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(
            model,
            windows(),
            asked,
            new_table("fisher"),
            save=lambda table: table.write(path),
            progress=stop,
        )
    assert not path.exists()
    assert start_table(path, new_table("fisher")).sites == ()


def test_large_models_take_several_passes_to_the_same_table(model, monkeypatch):
    weights = candidates(model, ["bfp3"], keep=lambda s: s.role == "weight")
    once = measure_sensitivity(model, windows(), weights, new_table("fisher"))
    monkeypatch.setattr(sensitivity, "MAX_FISHER_BYTES", 20_000)
    passes = []
    several = measure_sensitivity(
        model,
        windows(),
        weights,
        new_table("fisher"),
        progress=lambda *step: passes.append(step[:2]),
    )
    assert passes.count(("backward passes", 0)) > 1
    np.testing.assert_allclose(several.damage, once.damage, rtol=1e-3)


@pytest.mark.parametrize(
    "facts", [{"tokens": 95}, {"fingerprint": "g"}, {"data_sha256": "e"}, {"seed": 1}]
)
def test_a_table_of_something_else_is_not_gone_on_with(facts, tmp_path):
    path = tmp_path / "t.csv"
    new_table("fisher").with_damage({("a", "bfp4"): 1.0}).write(path)
    assert start_table(path, new_table("fisher")).sites == ("a",)
    with pytest.raises(RunError, match=f"these differ in {next(iter(facts))}"):
        start_table(path, new_table("fisher", **facts))


def test_formats_that_a_site_cannot_take_are_all_named(model):
    inputs = candidates(model, ["int8-tensor", "bfp4", "nvfp4"], keep=lambda s: s.role == "input")
    with pytest.raises(PlanError, match=r"q_proj\.input: int8-tensor[\s\S]*input: nvfp4"):
        measure_sensitivity(model, windows(), inputs, new_table("kl"))


def test_an_operand_and_the_output_that_it_is_can_both_be_profiled(model):
    both = candidates(
        model,
        ["bfp4"],
        keep=lambda s: (
            s.name in ("model.layers.0.self_attn.k", "model.layers.0.self_attn.k_proj.output")
        ),
        output=True,
    )
    assert len(both) == 2
    assert (measure_sensitivity(model, windows(), both, new_table("kl")).damage > 0).all()


@pytest.mark.parametrize(
    ("method", "measured"),
    [
        ("fisher-output", "weights and inputs of linear layers"),
        ("first-order", "weights of linear layers and experts"),
        ("mse", "stored tensors"),
    ],
)
def test_sites_that_a_method_cannot_measure_are_all_named(model, asked, method, measured):
    names = ", ".join(site.name.replace(".", r"\.") for site in asked)
    match = rf"{method} measures {measured}.*none: {names}\. Leave them out, or .* fisher or kl"
    with pytest.raises(PlanError, match=match):
        measure_sensitivity(model, windows(), asked, new_table(method))


def test_a_table_names_what_its_method_looks_at_and_nothing_else():
    facts = {"tokens": 96, "fingerprint": "f", "data_sha256": "d", "seed": 3}

    def looked_at(method):
        table = empty_table(method, **facts)
        assert (table.method, table.fingerprint, table.sites) == (method, "f", ())
        return table.tokens, table.data_sha256, table.seed

    assert looked_at("fisher") == (96, "d", 3)
    assert looked_at("kl") == looked_at("fisher-output") == looked_at("first-order")
    assert looked_at("kl") == (96, "d", 0)
    assert looked_at("mse") == (0, "", 0)


def test_a_table_without_data_is_read_as_it_was_written(model, weights, tmp_path):
    facts = {"tokens": 96, "fingerprint": "f", "data_sha256": "d", "seed": 3}
    table = measure_sensitivity(model, windows(), weights, empty_table("mse", **facts))
    table.write(tmp_path / "t.csv")
    start_table(tmp_path / "t.csv", empty_table("mse", **facts | {"data_sha256": "other"}))


def test_an_unknown_method_is_refused(model, asked):
    with pytest.raises(RunError, match="fisher-output, first-order, mse; 'hessian' is none"):
        measure_sensitivity(model, windows(), asked, new_table("hessian"))
