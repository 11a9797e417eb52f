from typing import get_args

import pytest
from pydantic import ValidationError

from mpq.config import search_config
from mpq.config_sections import (
    DataSection,
    SearchConfig,
    Section,
    Source,
    SpaceSection,
    data_keys,
)
from mpq.run import read_toml, write_toml

LEAST = {"model": {"id": "mpq/tiny-llama"}, "space": {"formats": ["bfp4", "bfp6"]}}
SECTIONS = [field.annotation for field in SearchConfig.model_fields.values()]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_says_what_it_means(section):
    assert issubclass(section, Section)
    silent = [name for name, field in section.model_fields.items() if not field.description]
    assert not silent


def test_a_config_cannot_be_changed():
    config = search_config(LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        config.search.seed = 3


def test_formats_are_kept_in_their_canonical_spelling():
    space = SpaceSection.model_validate({"formats": ["bfp4-b16"], "fixed": {"*": "bfp6-b16"}})
    assert space.formats == ("bfp4",)
    assert space.fixed == {"*": "bfp6"}


def test_the_order_of_patterns_is_kept():
    patterns = {"*.b": ["bfp4"], "*.a": ["bfp6"], "*": ["bfp8"]}
    space = SpaceSection.model_validate({"formats": ["bfp4"], "formats_for": patterns})
    assert list(space.formats_for) == list(patterns)


def test_the_resolved_config_reads_back_as_itself(tmp_path):
    config = search_config(
        LEAST | {"search": {"budget": {"weight_bits": 4}, "timeout_minutes": 5}}
    )
    write_toml(tmp_path / "config.toml", config.resolved())
    assert search_config(read_toml(tmp_path / "config.toml")) == config


def test_the_resolved_config_has_every_default_and_no_none():
    table = search_config(LEAST).resolved()
    assert table.keys() == SearchConfig.model_fields.keys()
    assert table["search"]["sampler"] == "tpe"
    assert "revision" not in table["model"]
    assert "storage" not in table["search"]


@pytest.mark.parametrize("source", get_args(Source))
def test_the_resolved_config_has_the_keys_of_its_source_alone(source):
    extra = {"file": {"path": "a"}, "messages": {"path": "a"}, "dataset": {"dataset": "d"}}
    asked = {"sst2": {"prompt": "{sentence}", "choices": ["a", "b"]}}
    data = {"source": source, **extra.get(source, {}), **asked.get(source, {})}
    config = search_config(LEAST | {"data": data})
    table = config.resolved()["data"]
    assert table.keys() <= set(data_keys(source)) <= DataSection.model_fields.keys()
    assert ("window" in table) == (source != "sst2")
    assert search_config(config.resolved()).resolved() == config.resolved()
