import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import RunError
from mpq.files import (
    read_csv,
    read_json,
    read_toml,
    write_atomic,
    write_csv,
    write_json,
    write_toml,
)

ROOT = Path(__file__).parents[1]


# --- atomic writes --------------------------------------------------------------------------


def test_a_write_makes_folders_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomic(path, "old")
    write_atomic(path, "nëw\n")
    assert path.read_bytes() == "nëw\n".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def full_disk(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_content_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), fsync(handle))[1])
    monkeypatch.setattr(
        Path, "replace", lambda own, to: (order.append("move"), replace(own, to))[1]
    )
    write_atomic(tmp_path / "file.txt", "new")
    assert order == ["sync", "move", "sync"]


WRITER = """
import sys
from mpq.files import write_csv, write_json, write_toml
folder = sys.argv[1]
print("ready", flush=True)
step = 0
while True:
    step += 1
    rows = [{"trial": i, "kl": step / (i + 1)} for i in range(2000)]
    write_csv(folder + "/trials.csv", rows)
    write_json(folder + "/summary.json", {"step": step, "rows": rows[:300]})
    formats = {f"a.{i}": "x" for i in range(300)}
    write_toml(folder + "/plan.toml", {"step": step, "formats": formats})
"""


@pytest.mark.parametrize("attempt", range(4))
def test_a_writer_killed_at_any_moment_leaves_whole_files(tmp_path, attempt):
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            # Long enough for the first round of files at the first kill, then at any moment.
            while not (tmp_path / "plan.toml").exists():
                time.sleep(0.005)
            time.sleep(np.random.default_rng(os.getpid() + attempt).uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        assert len(read_csv(tmp_path / "trials.csv")) == 2000
        assert len(read_json(tmp_path / "summary.json")["rows"]) == 300
        assert len(read_toml(tmp_path / "plan.toml")["formats"]) == 300
    visible = {entry.name for entry in tmp_path.iterdir() if entry.name[0] != "."}
    assert visible == {"trials.csv", "summary.json", "plan.toml"}


# --- TOML -----------------------------------------------------------------------------------

GOOD = {
    "nested": {"search": {"trials": 60, "budget": {"weight_bits": 4.5}}},
    "dotted names": {"formats": {"model.layers.0.self_attn.k": "bfp4", "*.[kq]": "bfp6"}},
    "quotes and lines": {"prompt": 'a "b"\n\tc', 'a"b': {"c\nd": 1}},
    "unicode": {"a": "é 😀 \u2028"},
    "empty things": {"a": [], "b": {}, "c": "", "": 1},
    "numbers": {"a": 1e-7, "b": 1e22, "c": 10**30, "d": float("inf"), "e": -0.0, "f": True},
    "lists": {"a": [[1, 2], ["x"]], "b": [{"c": 1}, {"c": 2, "d": [{"e": 3}]}], "f": [1, "x"]},
}

# What `toml` 0.10 drops, changes, or writes as something that is no TOML.
BAD = {
    "backslash x becomes a letter": {"prompt": "\\x41"},
    "backslash x": {"path": "c:\\new\\x"},
    "backslash x in a list": {"choices": ["\\x"]},
    "a control character": {"a": "\x00"},
    "an escape sequence": {"a": "\x1b[0m"},
    "half a surrogate": {"a": "\ud800"},
    "a table in a list in a list": {"a": [[{"b": 1}]]},
    "tables and numbers in one list": {"a": [{"b": 1}, 2]},
    "a number of numpy": {"a": np.float64(0.5)},
    "a count of numpy": {"a": np.int64(3)},
    "not a number": {"a": float("nan")},
    "a key that is no text": {"a": {1: 2}},
    "a set": {"a": {1}},
    "bytes": {"a": b"x"},
    "a path": {"a": Path("x")},
}


@pytest.mark.parametrize("table", GOOD.values(), ids=GOOD)
def test_what_is_written_reads_back(tmp_path, table):
    write_toml(tmp_path / "a.toml", table)
    assert read_toml(tmp_path / "a.toml") == table
    assert tomllib.loads((tmp_path / "a.toml").read_text(encoding="utf-8")) == table


@pytest.mark.parametrize("table", BAD.values(), ids=BAD)
def test_what_would_not_read_back_is_refused_and_not_written(tmp_path, table):
    path = tmp_path / "a.toml"
    write_toml(path, {"old": 1})
    with pytest.raises(
        RunError, match=r"a\.toml: (this table cannot be written as TOML|what is written must)"
    ):
        write_toml(path, {"fine": 1, **table})
    assert read_toml(path) == {"old": 1}


def test_keys_that_do_not_read_back_are_named(tmp_path):
    with pytest.raises(RunError, match=r"these keys do not: prompt, c$"):
        write_toml(tmp_path / "a.toml", {"prompt": "\\x41", "b": 1, "c": float("nan")})


def test_every_none_is_named(tmp_path):
    table = {"model": {"revision": None}, "b": [1, None], "c": [{"d": None}]}
    with pytest.raises(
        RunError, match=r"no value for None, found at model.revision, b\[1\], c\[0"
    ):
        write_toml(tmp_path / "a.toml", table)
    assert not (tmp_path / "a.toml").exists()


def test_tuples_come_back_as_lists(tmp_path):
    write_toml(tmp_path / "a.toml", {"a": ("x", ("y",)), "b": ({"c": 1},)})
    assert read_toml(tmp_path / "a.toml") == {"a": ["x", ["y"]], "b": [{"c": 1}]}


def test_one_is_not_one_point_zero(tmp_path):
    write_toml(tmp_path / "a.toml", {"a": 1, "b": 1.0, "c": True})
    assert [type(value) for value in read_toml(tmp_path / "a.toml").values()] == [int, float, bool]


LEAVES = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=4), st.none())
TREES = st.dictionaries(
    st.text(max_size=3),
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=3,
)


@given(table=TREES)
def test_any_table_is_written_right_or_refused(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.unlink(missing_ok=True)
    try:
        write_toml(path, table)
    except RunError:
        assert not path.exists()
    else:
        assert read_toml(path) == table


# --- JSON and CSV ---------------------------------------------------------------------------


def test_json_reads_back(tmp_path):
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value == json.loads((tmp_path / "a.json").read_text())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1}, np.int64(3)])
def test_what_json_has_no_form_for_is_refused(tmp_path, value):
    with pytest.raises(RunError, match=r"a\.json: this value cannot be written as JSON"):
        write_json(tmp_path / "a.json", {"a": value})
    assert not (tmp_path / "a.json").exists()


def test_csv_has_every_column_and_every_digit(tmp_path):
    rows = [{"trial": 0, "kl": 0.1 + 0.2}, {"trial": 1, "plan": "a,b\n", "kl": None}]
    write_csv(tmp_path / "a.csv", rows)
    assert read_csv(tmp_path / "a.csv") == [
        {"trial": "0", "kl": "0.30000000000000004", "plan": ""},
        {"trial": "1", "kl": "", "plan": "a,b\n"},
    ]


def test_csv_without_rows_is_an_empty_table(tmp_path):
    write_csv(tmp_path / "a.csv", [])
    assert read_csv(tmp_path / "a.csv") == []


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_toml, read_json, read_csv])
def test_a_missing_artefact_is_named(tmp_path, read):
    with pytest.raises(RunError, match=r"gone\.x: this artefact cannot be read: .*No such file"):
        read(tmp_path / "gone.x")


@pytest.mark.parametrize("read", [read_toml, read_json, read_csv])
def test_bytes_that_are_no_text_are_named(tmp_path, read):
    (tmp_path / "a.x").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RunError, match=r"a\.x: this artefact cannot be read"):
        read(tmp_path / "a.x")


def test_what_is_no_toml_and_no_json_is_named_with_its_line(tmp_path):
    (tmp_path / "a.x").write_text('{"a": 1,\n')
    with pytest.raises(RunError, match=r"a\.x: not a JSON file: .*line 2"):
        read_json(tmp_path / "a.x")
    with pytest.raises(RunError, match=r"a\.x: not a TOML file: .*line 1"):
        read_toml(tmp_path / "a.x")
