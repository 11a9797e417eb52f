"""A tensor's memory as compiled loops see it, and its work in as many threads as torch uses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARE = 1 << 17
"""The fewest values for which a further thread is started."""

STORED = {torch.float32: np.float32, torch.bfloat16: np.uint16, torch.float16: np.int16}
"""How the loops see a dtype: its values, or the bits of its values."""


def memory_of(x: Tensor) -> NDArray[Any]:
    """A contiguous tensor of one of these dtypes as the loops see it, in one dimension."""
    flat = x.detach().view(-1)
    if x.dtype != torch.float32:
        flat = flat.view(torch.int16)
    return flat.numpy().view(STORED[x.dtype])


def in_shares(count: int, values: int, take: Callable[[tuple[int, int]], object]) -> list[object]:
    """What `take` returns for each share of so many pieces of work, from a number up to another.

    Args:
        count: The pieces of work.
        values: The values in all of them.
        take: Runs compiled code, without the interpreter's lock. What it raises is raised.
    """
    shares = max(1, min(torch.get_num_threads(), count, values // SHARE))
    bounds = [count * share // shares for share in range(shares + 1)]
    reaches = list(pairwise(bounds))
    with ThreadPoolExecutor(shares) as threads:
        others = [threads.submit(take, reach) for reach in reaches[1:]]
        return [take(reaches[0]), *(other.result() for other in others)]
