"""The prose of the running interpreter: complete, disjoint, the same every time."""

import re
import sys
import sysconfig
from pathlib import Path

import pytest

import mpq
from mpq.assets import prose
from mpq.assets.prose import PARTS, Document, digest, documents, part_of
from mpq.errors import DataError

SMALL = ("validation", "calibration")


def paragraphs(part):
    return [text for document in documents(part) for text in document.text.split("\n\n")]


def test_each_small_part_has_text_enough_to_search_and_prove():
    # About 3 characters a token of the shipped tokenizer: 50,000 tokens each.
    for part in SMALL:
        assert sum(len(document.text) for document in documents(part)) > 130_000


def test_both_kinds_of_text_are_in_both_small_parts():
    for part in SMALL:
        kinds = {document.name.partition(":")[0] for document in documents(part)}
        assert kinds == {"topic", "module"}


def test_no_paragraph_is_in_two_parts_or_twice_in_one():
    seen = set()
    for part in SMALL:
        found = [text for text in paragraphs(part) if text.strip()]
        assert len(found) == len(set(found))
        assert seen.isdisjoint(found)
        seen.update(found)


def test_no_topic_dominates_a_part():
    for part in SMALL:
        sizes = [len(document.text) for document in documents(part)]
        assert max(sizes) < 0.35 * sum(sizes)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("topic:string-methods", "validation"),
        ("module:configparser", "validation"),
        ("topic:debugger", "calibration"),
        ("module:threading", "calibration"),
        ("module:email", "train"),
        ("module:tkinter", "train"),
    ],
)
def test_a_document_stays_in_its_part(name, part):
    """Facts of the shipped model's split: a change here would leak trained text into the proof."""
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("name", "twin"), [("module:_pydecimal", "module:decimal"), ("module:_pyio", "module:io")]
)
def test_a_module_and_its_python_twin_are_in_one_part(name, twin):
    assert part_of(name) == part_of(twin)


def test_what_some_installations_lack_is_read_for_training_only():
    for name in ("tkinter", "distutils", "ensurepip", "sqlite3", "telnetlib"):
        assert part_of(f"module:{name}") == "train"


def test_a_docstring_of_the_standard_library_is_found_and_cleaned():
    import threading

    names = {document.name: document.text for document in documents("calibration")}
    assert threading.Event.__doc__.split("\n")[0] in names["module:threading"]
    assert "\n\n\n" not in names["module:threading"]


def test_tests_and_installed_packages_are_not_read():
    names = {document.name for part in SMALL for document in documents(part)}
    assert names.isdisjoint({"module:test", "module:site-packages", "module:pytest"})


def test_digest_sees_names_texts_and_order():
    one, two = (Document(name=name, text="x") for name in "ab")
    assert len({digest([one, two]), digest([two, one]), digest([one])}) == 3
    assert digest([one, two]) == digest(iter([one, two]))
    assert len(digest([one])) == 64


def test_the_order_has_no_meaning():
    names = [document.name for document in documents("calibration")]
    assert names != sorted(names)
    assert names == [document.name for document in documents("calibration")]


def test_the_text_is_nowhere_in_the_package():
    """Read from the interpreter, never copied: no long paragraph stands in any file of mpq."""
    held = {re.sub(r"\s+", " ", text) for part in SMALL for text in paragraphs(part)}
    long = {text for text in held if len(text) > 200}
    assert len(long) > 100
    for path in Path(mpq.__file__).parent.rglob("*"):
        if path.suffix in {".py", ".md", ".json", ".csv", ".toml", ".txt"}:
            words = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
            copied = [text for text in long if text in words]
            assert not copied, f"{path} holds {copied[0][:60]!r}"


def test_a_python_without_sources_is_an_error_with_a_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    prose._read.cache_clear()
    with pytest.raises(DataError, match=r"holds no sources .* use a full CPython"):
        documents("validation")
    prose._read.cache_clear()


def test_a_python_without_the_language_reference_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    prose._read.cache_clear()
    with pytest.raises(DataError, match=r"installed without; use a full CPython"):
        documents("validation")
    prose._read.cache_clear()


def test_the_parts_are_three():
    assert set(PARTS) == {"train", "calibration", "validation"}
