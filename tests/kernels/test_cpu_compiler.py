"""What compiled code needs of Python: bits of floats, and a name that changes with the sources."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from mpq.kernels.choice import has_compiler

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from mpq.kernels import cpu_compiler
from mpq.kernels.cpu_compiler import bits_of, entered, float_of, word_at


def test_floats_and_their_bits():
    @numba.njit
    def both(value):
        return bits_of(value), float_of(bits_of(value))

    assert both(np.float32(-1.0)) == (np.float32(-1.0).view(np.int32), -1.0)


def test_a_word_is_read_wherever_it_begins():
    @numba.njit
    def read(packed, at):
        return word_at(packed, np.uint64(at))

    packed = np.arange(1, 21, dtype=np.uint8)
    for at in (0, 1, 3, 7, 12):
        assert read(packed, at) == int.from_bytes(packed[at : at + 8].tobytes(), "little")


def add_one(value):
    return value + 1


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder of its own for what numba keeps on disk."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def test_kinds_share_no_file_on_disk(folder):
    loop = entered(add_one)
    assert (loop(1), loop(1.5), loop(np.float32(1))) == (2, 2.5, 2)
    assert len(list(folder.rglob("*.nbi"))) == len(list(folder.rglob("*.nbc"))) == 3
    again = entered(add_one)
    assert (again(1), again(1.5), again(np.float32(1))) == (2, 2.5, 2)
    assert len(list(folder.rglob("*.nbc"))) == sum(again.stats.cache_hits.values()) == 3


def test_a_change_of_the_sources_is_a_change_of_files(folder, monkeypatch):
    entered(add_one)(1)
    (folder / "cpu_loops.py").write_text("changed")
    monkeypatch.setattr(cpu_compiler, "__file__", str(folder / "cpu_compiler.py"))
    changed = entered(add_one)
    assert changed(1) == 2
    assert not changed.stats.cache_hits
    assert len(list(folder.rglob("*.nbi"))) == 2


def test_a_second_process_finds_a_loop_on_disk(folder):
    program = folder / "program.py"
    program.write_text(
        "import numba\n"
        "from mpq.kernels.cpu_compiler import entered\n"
        f"numba.config.CACHE_DIR = {str(folder)!r}\n"
        "@entered\n"
        "def add_one(value):\n"
        "    return value + 1\n"
        "assert add_one(1) == 2\n"
        "print(sum(add_one.stats.cache_hits.values()))"
    )
    command = [sys.executable, "-c", f"import runpy; runpy.run_path({str(program)!r})"]
    hits = [subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout for _ in range(2)]
    assert [int(count) for count in hits] == [0, 1]


def test_without_a_folder_to_write_to_loops_are_compiled_with_one_notice(monkeypatch, caplog):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with caplog.at_level(logging.WARNING):
        loop = entered(add_one)
    assert (loop(1), loop(1.5)) == (2, 2.5)
    (notice,) = caplog.messages
    assert notice.startswith("the loops of fake quantisation are compiled anew in every process")
    assert "no locator available" in notice
    assert "NUMBA_CACHE_DIR" in notice
