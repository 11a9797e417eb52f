from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpq.cli.evaluation import Evaluation, data_of, memory_bytes
from mpq.cli.search_wiring import load_subject, make_space
from tests.cli.test_search_wiring import config_of


@pytest.fixture(scope="module")
def subject():
    return load_subject(config_of())


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


def test_memory_is_counted_in_bytes():
    assert memory_bytes(torch.device("cpu")) > 1 << 28


def test_examples_are_scored_as_they_are():
    examples = SimpleNamespace(labels=[1])
    assert data_of(examples) is examples
    assert data_of(SimpleNamespace(tokens=3)) == 3
