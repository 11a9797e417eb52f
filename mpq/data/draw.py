"""What windows and examples share: their tokens, the draw of disjoint splits, and the hash.

Three splits never share anything: calibration (the profile looks at it), search (its trials do),
and held-out (only the proof does).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpq.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, with none that the tokenizer adds of its own accord."""
    # verbose=False: a document is longer than the model's context, and that is no fault here.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def refuse_negative(counts: Sequence[int]) -> None:
    """Passes where no split is asked for less than nothing.

    Raises:
        DataError: A count is negative.
    """
    if min(counts) < 0:
        raise DataError(
            f"calibration, search and held-out data are numbers from 0 up, given {list(counts)}; "
            "0 leaves one out"
        )


def draw(
    sizes: Sequence[int], counts: Sequence[int], seed: int, noun: str, unit: int = 1
) -> list[tuple[int, Tensor]]:
    """(pool, its rows int64) for calibration, search and held-out, each in a drawn order.

    Of two pools the second is held out, and rows are drawn from all over a pool. One pool is
    parted by position, for what lies side by side is alike.

    Args:
        sizes: Rows of each pool, one or two.
        counts: Rows for calibration, search and held-out.
        seed: Of the draw.
        noun: What the rows are made of, for errors ("tokens of builtin").
        unit: How many of those a row has.

    Raises:
        DataError: A pool has fewer rows than asked for.
    """
    shares = [counts] if len(sizes) == 1 else [counts[:2], counts[2:]]
    places: list[tuple[int, Tensor]] = []
    for pool, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        if size < sum(share):
            wanted = " + ".join(str(count * unit) for count in share)
            part = "" if len(sizes) == 1 else f" ({('calibration', 'held-out')[pool]} part)"
            raise DataError(
                f"asked for {wanted} {noun}{part}, and there are {size * unit}; ask for fewer, or "
                "take another source"
            )
        generator = torch.Generator().manual_seed(seed)
        if len(sizes) == 1:
            parts = torch.split(torch.arange(sum(share)), list(share))
            rows = [part[torch.randperm(len(part), generator=generator)] for part in parts]
        else:
            order = torch.randperm(size, generator=generator)
            rows = list(torch.split(order[: sum(share)], list(share)))
        places += [(pool, part) for part in rows]
    return places


def sha256(*tensors: Tensor) -> str:
    """The hex sha256 of int64 tensors, shapes included; the same on every machine."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(f"{list(tensor.shape)}".encode())
        state.update(tensor.numpy().astype("<i8").tobytes())
    return state.hexdigest()
