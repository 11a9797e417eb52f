from pathlib import Path

import pytest

from mpq.config import load_search_config, search_config
from mpq.run import read_toml, write_toml

FOLDER = Path(__file__).parents[1] / "search_configs"
CONFIGS = sorted(FOLDER.glob("*.toml"))


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


def test_the_quickstart_needs_no_network():
    for path in CONFIGS:
        if path.stem.startswith("tiny_llama"):
            config = load_search_config(path)
            assert (config.model.id, config.data.source) == ("mpq/tiny-llama", "builtin")
