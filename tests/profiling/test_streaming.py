import logging
import os
import signal
import subprocess
import sys
import weakref
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from transformers.pytorch_utils import Conv1D

from mpq.errors import DataError
from mpq.modeling.sites import places, sites
from mpq.modeling.wrap import tap
from mpq.profiling import streaming
from mpq.profiling.streaming import batches_of, measure_values
from mpq.profiling.values import Values, ValueTable
from tests.modeling.families import build
from tests.profiling.models import classifier_and_examples, windows

ROOT = Path(__file__).parents[2]
EVERY = {"lm_head": True, "embeddings": True, "bias": True, "output": True}


def empty(batch_size=3):
    return ValueTable(tokens=1, batch_size=batch_size, fingerprint="f", data_sha256="d")


def measure(model, data, *, batch_size=3, chosen=None, table=None, **options):
    every = sites(model, **EVERY)
    return measure_values(model, data, chosen or every, table or empty(batch_size), **options)


def seen_by_hooks(model, batches):
    """Everything that flowed, by name of the site: plain hooks on layers, a tap on attention."""
    flowed = {}

    def keep(name, x):
        flowed.setdefault(name, []).append(x.detach().double().numpy().ravel())
        return x

    def hook(name):
        def watch(_, args, output):
            keep(f"{name}.input", args[0])
            keep(f"{name}.output", output)

        return watch

    inner = [s for s in sites(model, **EVERY) if s.role in {"q", "k", "v", "probs"}]
    inner += [s for s in sites(model) if "experts" in s.name and s.role == "input"]
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                stack.callback(module.register_forward_hook(hook(name)).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(tap(model, inner, lambda site, x: keep(site.name, x)))
        for batch in batches:
            model(**batch)
    return {name: np.concatenate(parts) for name, parts in flowed.items()}


def assert_matches(values, x, rtol=1e-9):
    assert values.moments.count == x.size == values.histogram.counts.sum()
    assert (values.moments.low, values.moments.high) == (x.min(), x.max())
    scale = np.abs(x).max()
    np.testing.assert_allclose(values.moments.mean, x.mean(), rtol=rtol, atol=rtol * scale)
    np.testing.assert_allclose(values.moments.variance, x.var(), rtol=rtol, atol=1e-30)
    if x.var() > 0:
        np.testing.assert_allclose(values.moments.kurtosis, stats.kurtosis(x), rtol=1e-7)


@pytest.mark.parametrize("family", ["llama", "opt", "bert", "gpt2", "gemma3", "mixtral", "bloom"])
def test_every_site_has_numpys_and_scipys_numbers_over_all_batches(family):
    model = build(family, torch.float64)
    tokens = windows(8)
    table = measure(model, tokens)
    flowed = seen_by_hooks(model, [{"input_ids": part} for part in torch.split(tokens, 3)])
    stored = {
        place.site.name: place.parameter.detach()
        for place in places(model)
        if place.site.is_stored and place.part is None
    }
    found = {site.name for site in sites(model, **EVERY)}
    assert found == table.values.keys()
    checked = 0
    for name in found:
        if name in stored:
            assert_matches(table.values[name], stored[name].numpy().ravel())
        elif name in flowed:
            assert_matches(table.values[name], flowed[name])
        else:
            assert "experts" in name, name
            continue
        checked += 1
    assert checked > 20


def test_experts_are_stored_one_by_one():
    model = build("mixtral", torch.float64)
    table = measure(model, windows(2))
    weight = model.model.layers[1].mlp.experts.down_proj.detach()
    for expert in range(4):
        values = table.values[f"model.layers.1.mlp.experts.{expert}.down_proj.weight"]
        assert_matches(values, weight[expert].numpy().ravel())


def assert_close(first, second, rtol):
    assert first.values.keys() == second.values.keys()
    for name, one in first.values.items():
        other = second.values[name]
        assert one.moments.count == other.moments.count, name
        np.testing.assert_allclose(one.moments.variance, other.moments.variance, rtol=rtol)
        np.testing.assert_allclose(one.moments.m4, other.moments.m4, rtol=rtol)


@pytest.mark.parametrize("family", ["llama", "bert", "mixtral"])
def test_the_size_of_batches_changes_rounding_only(family):
    model = build(family, torch.float64)
    tokens = windows(7)
    whole = measure(model, tokens, batch_size=7)
    for batch_size in (1, 2, 5):
        assert_close(measure(model, tokens, batch_size=batch_size), whole, rtol=1e-9)


def test_padding_does_not_count():
    model, examples = classifier_and_examples()
    model = model.double()
    table = measure(model, examples, batch_size=8)
    alone = [
        {"input_ids": row[kept.bool()][None]}
        for row, kept in zip(examples.input_ids, examples.attention_mask, strict=True)
    ]
    flowed = seen_by_hooks(model, alone)
    for site in sites(model, **EVERY):
        if not site.is_stored:
            x = flowed[site.name]
            values = table.values[site.name]
            assert values.moments.count == x.size, site.name
            np.testing.assert_allclose(values.moments.variance, x.var(), rtol=1e-9)
    tokens = int(examples.attention_mask.sum())
    assert table.values["bert.encoder.layer.0.output.dense.output"].moments.count == 32 * tokens


def test_more_padding_changes_nothing():
    model, examples = classifier_and_examples()
    wider = replace(
        examples,
        input_ids=torch.nn.functional.pad(examples.input_ids, (0, 9)),
        attention_mask=torch.nn.functional.pad(examples.attention_mask, (0, 9)),
    )
    first, second = measure(model, examples), measure(model, wider)
    for name, values in first.values.items():
        assert values.moments == second.values[name].moments


def test_batches_of_examples_hold_examples_of_one_length():
    _, examples = classifier_and_examples()
    batches = batches_of(examples, 5)
    assert sum(len(batch["input_ids"]) for batch in batches) == 48
    assert max(len(batch["input_ids"]) for batch in batches) == 5
    assert all(bool(batch["attention_mask"].all()) for batch in batches)
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert lengths == sorted(lengths)
    assert set(lengths) == set(range(3, 11))


@pytest.mark.parametrize(("data", "size"), [(windows(2), 0), (windows(2)[:0], 3)])
def test_nothing_to_run_on_is_refused(data, size):
    with pytest.raises(DataError, match=r"at least 1 window .* batch_size"):
        batches_of(data, size)


def test_no_activation_is_kept(monkeypatch):
    model = build("llama")
    seen = []

    def observed(x):
        seen.append(weakref.ref(x))
        return Values(moments=original(x).moments, histogram=original(x).histogram)

    original = Values.of
    monkeypatch.setattr(streaming.Values, "of", observed)
    flowing = [site for site in sites(model, output=True) if not site.is_stored]
    measure(model, windows(6), chosen=flowing)
    assert len(seen) > 50
    assert all(tensor() is None for tensor in seen)


def test_what_several_layers_read_is_looked_at_once(monkeypatch):
    model = build("llama")
    calls = []
    original = Values.of
    monkeypatch.setattr(streaming.Values, "of", lambda x: calls.append(x.shape) or original(x))
    inputs = [site for site in sites(model) if site.role == "input"]
    table = measure(model, windows(3), chosen=inputs)
    assert len(inputs) == 14
    assert len(calls) == 8  # q+k+v, o, gate+up, down in two blocks
    names = [f"model.layers.1.self_attn.{kind}_proj.input" for kind in "qkv"]
    assert len({table.values[name].moments for name in names}) == 1


def test_the_model_is_as_it_was():
    model = build("llama")
    before = model(windows(2)).logits
    measure(model, windows(4))
    assert torch.equal(model(windows(2)).logits, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_no_pass_reaches_is_told_and_left_out(caplog):
    model = build("llama")
    model.spare = nn.Linear(4, 4)
    with caplog.at_level(logging.WARNING, logger="mpq"):
        table = measure(model, windows(2))
    assert "spare.weight" in table.values
    assert "spare.input" not in table.values
    assert "at 2 of " in caplog.text
    assert "no value came by, so tables leave them out: spare.input, spare.output" in caplog.text


def test_values_that_are_not_finite_are_told(caplog):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = torch.inf
    with caplog.at_level(logging.WARNING, logger="mpq"):
        table = measure(model, windows(2))
    broken = table.values["model.layers.1.mlp.down_proj.weight"]
    assert broken.histogram.num_nonfinite == 1
    assert broken.moments.count == 32 * 48 - 1
    assert "infinities or NaN came by" in caplog.text
    assert "model.layers.1.mlp.down_proj.weight" in caplog.text
    assert "layers.0" not in caplog.text


# --- resuming -------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def stop_at(monkeypatch, forward):
    """The forward pass of that number is stopped half way."""
    original, calls = streaming.run, []

    def run(model, inputs):
        calls.append(inputs)
        with ExitStack() as stack:
            if len(calls) == forward:

                def stop(*_):
                    raise StoppedError

                layer = model.get_submodule("model.layers.1.mlp")
                stack.callback(layer.register_forward_pre_hook(stop).remove)
            return original(model, inputs)

    monkeypatch.setattr(streaming, "run", run)
    return calls


@pytest.mark.parametrize("forward", [1, 2, 3])
def test_a_profile_that_was_stopped_ends_with_the_same_bytes(tmp_path, monkeypatch, forward):
    model, tokens, path = build("llama"), windows(8), tmp_path / "values.json"
    measure(model, tokens, save=lambda table: table.write(tmp_path / "whole.json"))
    with monkeypatch.context() as patch:
        stop_at(patch, forward)
        with pytest.raises(StoppedError):
            measure(model, tokens, save=lambda table: table.write(path))
    half = ValueTable.read(path)
    assert set(half.batches.values()) <= {0, forward - 1}
    calls = stop_at(monkeypatch, 0)
    steps = []
    measure(
        model,
        tokens,
        table=half,
        save=lambda table: table.write(path),
        progress=lambda *step: steps.append(step),
    )
    assert len(calls) == 3 - (forward - 1)
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert [step for step in steps if step[0] == "weights"] == [("weights", 16, 16)]
    assert steps[-1] == ("forward passes", 3, 3)


KILLED = """
import os, signal, sys
from pathlib import Path
from mpq.profiling import streaming
from tests.profiling.test_streaming import build, measure, windows

path, victim = Path(sys.argv[1]), int(sys.argv[2])
streaming.SAVE_SECONDS = 0
saved = []
def save(table):
    table.write(path)
    saved.append(table)
    if len(saved) == victim:
        os.kill(os.getpid(), signal.SIGKILL)
measure(build("llama"), windows(8), save=save)
"""


def test_a_profile_that_was_killed_ends_with_the_same_bytes(tmp_path):
    saves = 18  # 16 weights, 2 of 3 forward passes
    path = tmp_path / "values.json"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(saves)], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    half = ValueTable.read(path)
    model = build("llama")
    measure(model, windows(8), table=half, save=lambda table: table.write(path))
    measure(model, windows(8), save=lambda table: table.write(tmp_path / "whole.json"))
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert set(half.batches.values()) == {0, 2}
    assert len(os.listdir(tmp_path)) == 2, "no temporary file stays"  # noqa: PTH208


def test_a_finished_profile_runs_nothing_and_saves_nothing(monkeypatch):
    model, tokens = build("llama"), windows(4)
    table = measure(model, tokens)
    calls = stop_at(monkeypatch, 0)
    saved = []
    assert measure(model, tokens, table=table, save=saved.append) is table
    assert (calls, saved) == ([], [])


def test_sites_that_join_later_catch_up_alone(tmp_path):
    model, tokens = build("llama"), windows(8)
    some = [site for site in sites(model) if site.role == "k"]
    first = measure(model, tokens, chosen=some)
    assert first.values.keys() == {site.name for site in some}
    both = measure(model, tokens, table=first)
    assert all(both.values[site.name] is first.values[site.name] for site in some)
    both.write(tmp_path / "both.json")
    measure(model, tokens).write(tmp_path / "whole.json")
    assert (tmp_path / "both.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
