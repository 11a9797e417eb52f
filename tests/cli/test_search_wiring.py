from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpq.cli.search_wiring import (
    Evaluation,
    data_of,
    load_functions,
    load_subject,
    make_space,
    memory_bytes,
    settings_of,
)
from mpq.config import search_config
from mpq.errors import ConfigError, PlanError
from mpq.search.objective import make_objectives


def config_of(**sections):
    table = {
        "model": {"id": "mpq/tiny-llama"},
        "data": {
            "window": 32,
            "calibration_tokens": 64,
            "search_tokens": 96,
            "heldout_tokens": 64,
            "batch_size": 2,
        },
        "space": {"formats": ["bfp3", "bfp5"]},
    }
    for name, section in sections.items():
        table[name] = table.get(name, {}) | section
    return search_config(table)


@pytest.fixture(scope="module")
def subject():
    return load_subject(config_of())


def test_every_weight_is_searched_and_nothing_else(subject):
    assert {site.role for site in subject.candidates} == {"weight"}
    space = make_space(subject, None)
    assert sum(len(group.sites) for group in space.groups) == len(subject.candidates)
    assert (space.damage == 0).all()
    assert space.model == "mpq/tiny-llama"
    assert space.fingerprint == subject.loaded.fingerprint


def test_a_fixed_site_is_not_searched():
    subject = load_subject(config_of(space={"fixed": {"*.o_proj.weight": "bfp8"}}))
    assert not any(site.kind == "o_proj" for site in subject.candidates)
    assert {str(fmt) for fmt in subject.fixed.values()} == {"bfp8"}
    assert len(make_space(subject, None).fixed) == len(subject.fixed)


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(PlanError, match="nowhere"):
        load_subject(config_of(space={"fixed": {"nowhere*": "bfp8"}}))


def test_an_evaluation_measures_every_window_in_ranges_or_at_once(subject):
    evaluate = Evaluation(subject, subject.splits.search)
    space = make_space(subject, None)
    plan = space.plan((0,) * len(space.groups))
    assert (evaluate.num_windows, evaluate.batch_size) == (3, 2)
    whole = evaluate(plan)
    assert {name: len(values) for name, values in whole.items()} == {
        "kl": 3,
        "loss": 3,
        "accuracy": 3,
    }
    parts = [evaluate(plan, 0, 2), evaluate(plan, 2, 3)]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)
    assert (whole["kl"] > 0).all()
    assert evaluate.forward_seconds > 0


def test_a_users_function_sees_the_model_under_the_plan(subject):
    evaluate = Evaluation(subject, subject.splits.search)
    model = subject.loaded.model
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()

    def changed(plan, model):
        return (model.model.layers[0].self_attn.q_proj.weight != weight).float().mean()

    space = make_space(subject, None)
    before = evaluate.forward_seconds
    assert evaluate.bind(changed)(space.plan((0,) * len(space.groups))) > 0.5
    assert evaluate.forward_seconds > before
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, weight)


def test_identity_formats_do_no_damage():
    subject = load_subject(config_of(space={"formats": ["bfp3", "fp32"]}))
    names = [site.name for site in subject.candidates]
    table = SimpleNamespace(select=lambda rows, columns: np.full((len(rows), len(columns)), 7.0))
    space = make_space(subject, table)
    assert space.damage[:, 1].tolist() == [0.0] * len(space.groups)
    assert space.damage[:, 0].sum() == 7.0 * len(names)


def test_settings_follow_the_config():
    config = config_of(search={"timeout_minutes": 2.0, "budget": {"weight_bits": 4.0}, "seed": 5})
    settings = settings_of(config)
    assert settings.timeout_seconds == 120
    assert settings.budget == {"weight_bits": 4.0}
    assert settings.seed == 5
    assert settings_of(config_of()).timeout_seconds is None


def test_functions_come_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_measure.py").write_text("def f(plan, model):\n    return 1.0\nN = 3\n")
    objectives = make_objectives(["maximize:own_measure:f", "kl"])
    functions = load_functions(objectives)
    assert list(functions) == ["maximize:own_measure:f"]
    assert functions["maximize:own_measure:f"](None, None) == 1.0
    with pytest.raises(ConfigError, match=r"'own_measure:g' names a function .* no attribute 'g'"):
        load_functions(make_objectives(["own_measure:g"]))
    with pytest.raises(ConfigError, match="'own_measure:N' is a int; expected a function"):
        load_functions(make_objectives(["own_measure:N"]))


def test_memory_is_counted_in_bytes():
    assert memory_bytes(torch.device("cpu")) > 1 << 28


def test_examples_are_scored_as_they_are():
    examples = SimpleNamespace(labels=[1])
    assert data_of(examples) is examples
    assert data_of(SimpleNamespace(tokens=3)) == 3
