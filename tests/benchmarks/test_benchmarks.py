"""Every benchmark in a small setting: it runs, and its tables have the rows asked for."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.data.tokenizers import byte_tokenizer
from tests.modeling.checkpoints import saved
from tests.modeling.families import build
from tests.scripts import importable

FOLDER = Path(__file__).parents[2] / "benchmarks"

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a benchmark's main with arguments, and returns what it printed, as words by line."""

    def printed(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        importlib.import_module(name).main()
        return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]

    with importable(FOLDER):
        yield printed


def rows_of(lines, *first):
    return [line for line in lines if tuple(line[: len(first)]) == first]


def is_positive(words):
    return all(float(word) > 0 for word in words)


def test_fake_quant(run):
    lines = run("fake_quant", "bfp4", "--size", 64, "--powers", 12, 13, "--repeats", 1)
    assert "torch" in lines[0]
    assert len(rows_of(lines, "bfp4", "float32")) == len(rows_of(lines, "bfp4", "bfloat16")) == 4
    assert all(is_positive(row[4:]) for row in rows_of(lines, "bfp4", "float32"))
    assert len(rows_of(lines, "decoding")) == 1
    (clone,) = rows_of(lines, "clone")
    assert len(clone) == 3
    assert is_positive(clone[1:])


def test_search_growth(run):
    lines = run(
        *("search_growth", "--sites", 10, "--trials", 20, "--told", 20, 40),
        *("--samplers", "tpe", "nsga2"),
    )
    (allocation,), (trial,) = rows_of(lines, "10")[:1], rows_of(lines, "10", "20")
    assert is_positive(allocation[1:])
    assert len(trial) == 5
    assert is_positive(trial[2:])
    assert is_positive([*rows_of(lines, "tpe")[0][1:], *rows_of(lines, "nsga2")[0][1:]])


def test_search_trial(run):
    lines = run(
        *("search_trial", "--windows", 2, "--window", 32, "--batch-size", 2),
        *("--repeats", 1, "--trials", 14),
    )
    for plan in ("plain", "W", "W+A", "W+A+KV"):
        (row,) = rows_of(lines, plan)
        assert is_positive(row[1:3])
    assert rows_of(lines, "W,", "cold")
    (bookkeeping,) = rows_of(lines, "bookkeeping:")
    assert float(bookkeeping[1]) > 0


def test_gptq_factors(run):
    lines = run(
        *("gptq_factors", "bfp4", "int4-g128"),
        *("--rows", 8, "--columns", 40, "--tokens", 100, "--timed", 8, 32),
    )
    (bfp4,) = [row for row in rows_of(lines, "bfp4") if len(row) == 6]
    assert all(0 < float(share) < 1 for share in bfp4[2:])
    assert is_positive(rows_of(lines, "factor")[0][1:])
    assert is_positive(rows_of(lines, "nf4-g64")[0][1:])


@needs_proc
def test_offload(run, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    saved(build("llama"), tmp_path)
    for case in ("resident", "offloaded"):
        (line,) = run("offload", tmp_path, "--case", case, "--tokens", 2)
        row = json.loads(" ".join(line))
        # A process that ran other tests before may need no new page for so small a model.
        assert row.keys() == {"speed", "loaded", "peak", "mapped", "block", "packed", "outside"}
        assert is_positive([row[name] for name in ("speed", "packed", "outside")])
        assert row["packed"] < row["block"]


@needs_proc
def test_offload_writes_a_random_model_of_the_size_asked_for(run):
    lines = run("offload", "--blocks", 3, "--hidden", 128, "--tokens", 1, "--format", "int8")
    for case in ("resident", "offloaded"):
        (row,) = rows_of(lines, "llama-3x128", case)
        assert is_positive(row[2:3])
        assert row[-3:] == ["0", "0", "8"]  # MB; 32,000 x 128 embeddings in bfloat16


@needs_proc
def test_convert_memory(run, tmp_path):
    convert_memory = importlib.import_module("convert_memory")
    convert_memory.write_model(tmp_path, 16, 2)
    (line,) = run("convert_memory", "--model", tmp_path, "--tokens", 256)
    row = json.loads(" ".join(line))
    assert row["model"] == sum(
        2 * count for count in (512 * 16 * 2 + 16, *2 * [4 * 16**2 + 3 * 16 * 64 + 2 * 16])
    )
    assert is_positive([row["block"], row["states"], row["hessian"]])
