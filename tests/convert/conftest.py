"""Small weights in every format: eager needs no compiler, and every path has the same bits."""

import pytest


@pytest.fixture(autouse=True)
def _eager_kernels(monkeypatch):
    monkeypatch.setenv("MPQ_KERNEL", "eager")
