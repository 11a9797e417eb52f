"""Shares of work: every piece is taken once, and what a share raises is raised."""

import numpy as np
import pytest
import torch

from mpq.kernels.cpu_threads import SHARE, in_shares, memory_of


@pytest.mark.parametrize(("values", "shares"), [(10, 1), (2 * SHARE, 2), (100 * SHARE, 3)])
def test_every_piece_is_taken_once(values, shares, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    taken = np.zeros(100, dtype=int)

    def take(reach):
        taken[slice(*reach)] += 1
        return reach

    reaches = in_shares(100, values, take)
    assert len(reaches) == shares
    assert (reaches[0][0], reaches[-1][1]) == (0, 100)
    assert (taken == 1).all()
    assert len(in_shares(2, values, take)) <= 2


def test_a_fault_in_any_share_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def run_out(reach):
        if reach[0] > 0:
            raise MemoryError("no room for this share")

    with pytest.raises(MemoryError, match="no room for this share"):
        in_shares(10, 2 * SHARE, run_out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loops_see_the_memory_of_a_tensor(dtype):
    x = torch.randn(3, 4).to(dtype)
    bits = memory_of(x)
    assert bits.shape == (12,)
    assert bits.view(np.uint8).tobytes() == x.view(torch.uint8).numpy().tobytes()
    bits[:] = 0
    assert not x.any()
