"""Sources: which settings each takes. What they read is tested where it is cut and labelled."""

import pytest

from mpq.data.sources import PARTED_SOURCES, SOURCES, parted_texts, refuse_settings
from mpq.errors import DataError

UNSET = {
    "path": None,
    "heldout_path": None,
    "dataset": None,
    "subset": None,
    "split": "train",
    "column": "text",
}


def test_the_sources():
    assert SOURCES == ("builtin", "wikitext2", "file", "messages", "dataset")
    assert set(SOURCES) > PARTED_SOURCES


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("builtin", {}),
        ("wikitext2", {}),
        ("file", {"path": "a.txt"}),
        ("messages", {"path": "a.jsonl"}),
        ("dataset", {"dataset": "a/b", "subset": "c", "split": "test", "column": "d"}),
    ],
)
def test_settings_that_fit(source, settings):
    refuse_settings(source, {**UNSET, **settings})


def test_settings_without_meaning_are_listed_together():
    with pytest.raises(DataError, match="no use for column, dataset, split; it takes heldout"):
        refuse_settings(
            "file", {**UNSET, "path": "a", "dataset": "b", "column": "c", "split": "test"}
        )


def test_a_needed_setting():
    with pytest.raises(DataError, match=r"source 'dataset' needs 'dataset', .* set data.dataset"):
        refuse_settings("dataset", UNSET)


def test_an_unknown_source():
    with pytest.raises(DataError, match="not from 'fil'; nearest: file"):
        refuse_settings("fil", UNSET)


def test_the_builtin_parts_differ():
    seen, unseen = parted_texts("builtin", UNSET)
    assert not set(seen) & set(unseen)
