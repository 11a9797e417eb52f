import pytest
import torch

from mpq.cli.inputs import load_data_of, load_model_of
from mpq.config import search_config
from mpq.data import examples as examples_of
from mpq.errors import ModelError
from tests.data.tokenizers import byte_tokenizer


def config_of(model=None, data=None, seed=0):
    return search_config(
        {
            "model": {"id": "x", **(model or {})},
            "data": data or {},
            "space": {"formats": ["bfp4", "bfp6"]},
            "search": {"seed": seed},
        }
    )


def test_windows_are_cut_as_the_config_says(tmp_path):
    (tmp_path / "t.txt").write_text("abcdefghij " * 200)
    data = {
        "source": "file",
        "path": str(tmp_path / "t.txt"),
        "window": 16,
        "calibration_tokens": 64,
        "search_tokens": 96,
        "heldout_tokens": 32,
    }
    splits = [load_data_of(config_of(data=data, seed=seed), byte_tokenizer()) for seed in (0, 1)]
    shapes = [tuple(getattr(splits[0], name).tokens.shape) for name in ("calibration", "search")]
    assert shapes == [(4, 16), (6, 16)]
    assert tuple(splits[0].heldout.tokens.shape) == (2, 16)
    assert not torch.equal(splits[0].search.tokens, splits[1].search.tokens)


def test_examples_get_every_key_of_the_config(monkeypatch):
    given = {}
    monkeypatch.setattr(examples_of, "load_examples", lambda **keys: given.update(keys))
    data = {
        "source": "sst2",
        "calibration_examples": 3,
        "search_examples": 4,
        "heldout_examples": 5,
        "max_length": 6,
        "prompt": "{sentence}:",
        "choices": [" bad", " good"],
        "path": "sentences.tsv",
    }
    tokenizer = object()
    load_data_of(config_of(data=data, seed=7), tokenizer)
    assert given == {
        **data,
        "choices": (" bad", " good"),
        "tokenizer": tokenizer,
        "seed": 7,
    }


def test_the_model_is_loaded_as_the_config_says():
    with pytest.raises(ModelError, match="'mpq/no-such-model'"):
        load_model_of(config_of(model={"id": "mpq/no-such-model", "device": "cpu"}))
