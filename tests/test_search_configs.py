import json
from pathlib import Path

import pytest

from mpq.config import load_search_config, search_config
from mpq.cost import bit_limit, counted, site_bits
from mpq.formats.zoo import parse_format
from mpq.plans.rules import check_patterns, matches
from mpq.run import read_toml, write_toml
from tests.plans.llama import llama_sites

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "search_configs"
CONFIGS = sorted(FOLDER.glob("*.toml"))
SHIPPED = [path for path in CONFIGS if path.stem.startswith("tiny_llama")]


def test_the_configs_that_the_readme_speaks_of_are_there():
    names = {path.stem for path in CONFIGS}
    assert {"tiny_llama", "tiny_llama_w_a_kv", "llama", "opt_1.3b_sst2", "bert_sst2"} <= names
    assert all(path.suffix == ".toml" for path in FOLDER.iterdir())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_run_directory(path, tmp_path):
    config = load_search_config(path)
    write_toml(tmp_path / "config.toml", config.resolved())
    assert search_config(read_toml(tmp_path / "config.toml")).resolved() == config.resolved()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_begins_by_saying_what_it_is_for(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) < 100


def test_between_them_they_show_every_kind_of_search():
    configs = [load_search_config(path) for path in CONFIGS]
    assert {config.space.mode for config in configs} == {"guided", "direct"}
    assert {config.model.task for config in configs} == {"causal-lm", "classification"}
    assert any(config.search.budget for config in configs)
    assert any(config.search.pruner != "none" for config in configs)
    assert any(config.space.fixed for config in configs)
    assert len({config.search.sampler for config in configs}) >= 3
    assert {len(config.search.objectives) for config in configs} >= {1, 2, 3}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_model_needs_no_network(path):
    config = load_search_config(path)
    assert (config.model.id, config.data.source) == ("mpq/tiny-llama", "builtin")


def shipped_sites():
    shape = json.loads((ROOT / "mpq/assets/tiny_llama/config.json").read_text())
    return llama_sites(
        blocks=shape["num_hidden_layers"],
        hidden=shape["hidden_size"],
        inner=shape["intermediate_size"],
        heads=shape["num_attention_heads"],
        kv_heads=shape["num_key_value_heads"],
    )


def candidates(space, site):
    """The formats that a config leaves to a site; None is the model's own."""
    for pattern, text in space.fixed.items():
        if matches(pattern, site):
            return [parse_format(text)]
    if not any(matches(pattern, site) for pattern in space.sites):
        return [None]
    own = (texts for pattern, texts in space.formats_for.items() if matches(pattern, site))
    return [parse_format(text) for text in next(own, space.formats)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_patterns_match_and_budgets_are_within_reach_of_the_shipped_model(path):
    config, sites = load_search_config(path), shipped_sites()
    space, tokens = config.space, config.cost.tokens
    check_patterns([*space.sites, *space.formats_for, *space.fixed], sites)
    for measure, bound in config.search.budget.items():
        least, most = 0, 0
        for site in counted(measure, sites):
            bits = [site_bits(site, given, tokens) for given in candidates(space, site)]
            least, most = least + min(bits), most + max(bits)
        assert least < bit_limit(measure, bound, sites, tokens) < most, measure
