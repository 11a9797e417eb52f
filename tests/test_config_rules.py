"""Keys that do not go together."""

import re

import pytest

from mpq.config import search_config
from tests.test_config import SST2, fault, faults, table


@pytest.mark.parametrize("source", ["file", "messages"])
def test_a_file_has_a_path(source):
    assert (
        fault(table(data={"source": source})) == f'data.path: source = "{source}" needs this key'
    )


def test_a_data_set_has_a_name():
    assert "data.dataset: source" in fault(table(data={"source": "dataset"}))


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"path": "a.txt"}, "path"),
        ({"source": "wikitext2", "split": "test"}, "split"),
        ({"source": "file", "path": "a.txt", "column": "text"}, "column"),
        ({"search_examples": 5}, "search_examples"),
        (SST2 | {"window": 64}, "window"),
        ({"prompt": "{sentence}"}, "prompt"),
    ],
)
def test_a_key_that_the_source_has_no_use_for_is_refused(data, key):
    assert re.match(
        rf"data\.{key}: source = .* has no use for this key; it takes", fault(table(data=data))
    )


def test_a_causal_model_needs_a_prompt_and_choices():
    text = faults(table(data={"source": "sst2"}))
    assert 'data.prompt: source = "sst2" needs this key' in text
    assert 'data.choices: source = "sst2" needs this key' in text


def test_a_classifier_needs_neither_and_takes_neither():
    model = {"task": "classification"}
    search_config(table(model=model, data={"source": "sst2"}))
    text = faults(table(model=model, data=SST2))
    assert 'data.choices: source = "sst2" with task = "classification" has no use' in text
    assert "data.prompt: " in text


def test_a_classifier_needs_labels():
    assert 'data.source: task = "classification" needs labelled' in fault(
        table(model={"task": "classification"})
    )


def test_every_window_has_a_position_to_judge():
    assert search_config(table(data={"judge_every": 127})).data.judge_every == 127
    assert "data.judge_every: expected less than data.window, 128" in fault(
        table(data={"judge_every": 128})
    )


@pytest.mark.parametrize("key", ["calibration_tokens", "search_tokens", "heldout_tokens"])
@pytest.mark.parametrize(("tokens", "nearest"), [(100, 128), (300, 256)])
def test_numbers_of_tokens_are_whole_windows(key, tokens, nearest):
    assert fault(table(data={key: tokens})) == (
        f"data.{key}: expected whole windows of 128 tokens, given {tokens}; nearest: {nearest}"
    )


def test_a_prompt_has_room_for_the_sentence():
    assert fault(table(data=SST2 | {"prompt": "is it?"})).startswith(
        "data.prompt: expected text with {sentence} in it, given 'is it?'"
    )


def test_there_is_a_choice_for_each_label():
    assert "one completion for each of 2 labels, given ('a',)" in fault(
        table(data=SST2 | {"choices": ["a"]})
    )


def test_one_candidate_is_nothing_to_search():
    assert "expected at least two candidates" in fault(table(space={"formats": ["bfp4"]}))
    search_config(table(space={"formats": ["bfp4"], "formats_for": {"*.input": ["bfp4", "bfp6"]}}))


def test_a_site_is_searched_or_held():
    space = {"formats_for": {"*.input": ["bfp4"]}, "fixed": {"*.input": "bfp4"}}
    assert fault(table(space=space)).startswith(
        'space.fixed."*.input": expected either candidates (formats_for) or one format (fixed)'
    )


def test_the_cheapest_plan_needs_no_search():
    assert "expected at least one measure of damage (kl, loss" in fault(
        table(search={"objectives": ["weight_bits", "kv_bytes"]})
    )
    search_config(table(search={"objectives": ["my.own:damage", "kv_bytes"]}))


def test_text_has_no_accuracy_and_examples_have_no_perplexity():
    assert 'source = "builtin" is text without labels and has no accuracy' in fault(
        table(search={"objectives": ["accuracy"]})
    )
    assert 'source = "sst2" is labelled examples and has no perplexity' in fault(
        table(data=SST2, search={"objectives": ["perplexity"]})
    )


def test_cmaes_takes_one_objective():
    assert fault(table(search={"sampler": "cmaes"})).startswith(
        "search.sampler: cmaes takes one objective, given ['kl', 'weight_bits']"
    )


def test_cmaes_cannot_see_a_budget_in_the_direct_space():
    search = {"sampler": "cmaes", "objectives": ["kl"], "budget": {"weight_bits": 4}}
    search_config(table(search=search))
    assert "search.sampler: cmaes cannot see a budget" in fault(
        table(search=search, space={"mode": "direct"})
    )


def test_pruning_needs_one_objective_that_grows_window_by_window():
    assert fault(table(search={"pruner": "median"})).startswith(
        "search.pruner: pruning needs one objective, given ['kl', 'weight_bits']"
    )
    assert "search.pruner: pruning needs values that grow window by window" in fault(
        table(search={"pruner": "median", "objectives": ["my:own"]})
    )
    search_config(table(search={"pruner": "wilcoxon", "objectives": ["kl"]}))


def test_targets_are_weight_bits_and_ascend():
    found = search_config(table(search={"targets": [3.5, 5], "anchors": "targets"}))
    assert found.search.targets == (3.5, 5.0)
    assert fault(table(search={"targets": [5.0, 3.5]})).startswith(
        "search.targets: expected ascending numbers, each once; given [5.0, 3.5]"
    )
    assert "search.anchors: expected search.targets beside" in fault(
        table(search={"anchors": "targets"})
    )
    assert "search.targets: these are values of weight_bits, which must be among" in fault(
        table(search={"targets": [3.5], "objectives": ["kl", "memory_density"]})
    )


def test_rungs_end_with_all_windows_and_need_a_measure_of_windows():
    assert search_config(table(search={"rungs": [0.25, 1]})).search.rungs == (0.25, 1.0)
    assert "search.rungs: expected 1 at the end" in fault(table(search={"rungs": [0.25, 0.5]}))
    assert "search.rungs: expected ascending numbers" in fault(table(search={"rungs": [1, 1]}))
    assert "search.rungs: expected one way to stop trials early" in fault(
        table(search={"rungs": [0.5, 1], "pruner": "median", "objectives": ["kl"]})
    )
    assert "search.rungs: plans are judged by the windows of the first measure" in fault(
        table(search={"rungs": [0.5, 1], "objectives": ["my:function", "kl", "weight_bits"]})
    )
