"""What compiled code needs of Python: bits of floats, and a name that changes with the sources."""

import numpy as np
import pytest

from mpq.kernels.choice import has_compiler

if not has_compiler("cpu"):
    pytest.skip("numba is not installed", allow_module_level=True)

import numba

from mpq.kernels import cpu_compiler
from mpq.kernels.cpu_compiler import bits_of, float_of, sources_digest


def test_floats_and_their_bits():
    @numba.njit
    def both(value):
        return bits_of(value), float_of(bits_of(value))

    assert both(np.float32(-1.0)) == (np.float32(-1.0).view(np.int32), -1.0)


def test_a_loop_that_is_entered_is_found_on_disk_by_the_sources(monkeypatch, tmp_path):
    from mpq.kernels.cpu_loops import quantize_tiles

    before = sources_digest()
    assert quantize_tiles.py_func.__qualname__ == f"quantize_tiles_{before}"
    (tmp_path / "cpu_loops.py").write_text("changed")
    monkeypatch.setattr(cpu_compiler, "__file__", str(tmp_path / "cpu_compiler.py"))
    assert sources_digest() != before
