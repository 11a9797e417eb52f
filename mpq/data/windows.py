"""Text becomes windows of tokens: deterministic, disjoint, with a hash of their own.

The protocol is the usual one of perplexity tables: documents are strung together and cut into
windows of equal length, and every window begins with the tokenizer's bos token where it has one.
The same words give the same tensors, whatever the machine, the number of cores or the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpq.data.draw import draw, refuse_negative, sha256, token_ids
from mpq.data.sources import (
    PARTED_SOURCES,
    is_parted,
    parted_texts,
    refuse_settings,
    stream_texts,
)
from mpq.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"
"""Stands between two documents."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Pieces of text of equal length.

    Attributes:
        tokens: int64 `[N, T]`; the order has no meaning, so the first few are a fair sample.
        source: Where the text came from, for provenance.
        sha256: Of the tokens.
    """

    tokens: Tensor
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splits:
    """Windows for three purposes; no two splits share a window."""

    calibration: Windows
    search: Windows
    heldout: Windows


def load_splits(  # noqa: PLR0913 - one argument for each key of [data]
    *,
    tokenizer: PreTrainedTokenizerBase,
    source: str = "builtin",
    window: int = 128,
    calibration_tokens: int = 4096,
    search_tokens: int = 8192,
    heldout_tokens: int = 16384,
    path: str | Path | None = None,
    heldout_path: str | Path | None = None,
    dataset: str | None = None,
    subset: str | None = None,
    split: str = "train",
    column: str = "text",
    seed: int = 0,
) -> Splits:
    """Three disjoint sets of token windows.

    `builtin`, `wikitext2`, and `file` with a `heldout_path`, have a part of their own for held-out
    text; the windows of calibration and search are drawn from the other part. Any other source
    is one stream: the first tokens are for calibration, the next for search, the next are held
    out.

    Args:
        tokenizer: Of the model that will read the windows.
        source: One of `SOURCES`.
        window: Tokens a window, bos included.
        calibration_tokens: A multiple of `window`, like the next two.
        search_tokens: Tokens that the trials of a search look at.
        heldout_tokens: Tokens that only the proof looks at.
        path: `file`: a .txt, or a .jsonl with "text"; `messages`: a .jsonl of chats.
        heldout_path: `file`: another such file, whose text is held out.
        dataset: `dataset`: a Hugging Face id or a local path.
        subset: `dataset`: the configuration's name.
        split: `dataset`: the split that is read.
        column: `dataset`: the column of the text.
        seed: Draws the windows, and their order.

    Raises:
        DataError: An unknown source, a setting that the source does not take, text that is
            missing, unreadable, or less than asked for.
    """
    settings = {
        "path": path, "heldout_path": heldout_path,
        "dataset": dataset, "subset": subset, "split": split, "column": column,
    }  # fmt: skip
    refuse_settings(source, settings)
    counts = _window_counts(window, (calibration_tokens, search_tokens, heldout_tokens))
    origin = source if source in PARTED_SOURCES else f"{source}: {path or dataset}"
    if is_parted(source, settings):
        pools = [_cut(tokenizer, texts, window) for texts in parted_texts(source, settings)]
    else:
        texts = stream_texts(source, settings, tokenizer)
        separator = "" if source == "messages" else SEPARATOR
        pools = [_cut(tokenizer, texts, window, separator=separator, limit=sum(counts))]
    places = draw([len(pool) for pool in pools], counts, seed, f"tokens of {origin}", window)
    calibration, search, heldout = (pools[pool][rows] for pool, rows in places)
    return Splits(
        calibration=_windows(calibration, origin),
        search=_windows(search, origin),
        heldout=_windows(heldout, origin),
    )


def _window_counts(window: int, tokens: tuple[int, int, int]) -> tuple[int, ...]:
    """How many windows each number of tokens is."""
    if window < 2:
        raise DataError(f"a window has at least 2 tokens, of which one is judged; given {window}")
    refuse_negative(tokens)
    broken = [number for number in tokens if number % window]
    if broken:
        raise DataError(
            f"numbers of tokens are multiples of the window, {window}; given "
            f"{', '.join(map(str, broken))}, nearest: "
            f"{', '.join(str(max(1, round(number / window)) * window) for number in broken)}"
        )
    return tuple(number // window for number in tokens)


def _cut(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    window: int,
    *,
    separator: str = SEPARATOR,
    limit: int | None = None,
) -> Tensor:
    """Whole windows of the texts, int64 [N, window], at most `limit`; the remainder is dropped."""
    bos = tokenizer.bos_token_id
    body = window if bos is None else window - 1
    stream = _token_stream(tokenizer, texts, separator)
    flat = torch.tensor(list(islice(stream, limit and limit * body)), dtype=torch.int64)
    rows = flat[: len(flat) // body * body].view(-1, body)
    if bos is None:
        return rows
    return torch.cat([torch.full((len(rows), 1), bos, dtype=torch.int64), rows], dim=1)


def _token_stream(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], separator: str
) -> Iterator[int]:
    """The tokens of one document after the other, no further than they are asked for."""
    for number, text in enumerate(texts):
        tokens = token_ids(tokenizer, separator + text if number else text)
        # Chat templates write a bos token of their own; here it belongs to the window.
        has_bos = tokens[:1] == [tokenizer.bos_token_id]
        yield from tokens[1:] if has_bos else tokens


def _windows(tokens: Tensor, source: str) -> Windows:
    return Windows(tokens=tokens, source=source, sha256=sha256(tokens))
