"""Labelled sentences become examples: for a classification head, or a prompted causal model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpq.data.draw import draw, refuse_negative, sha256, token_ids
from mpq.data.sources import Row, labelled_rows
from mpq.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Labelled sentences.

    Attributes:
        input_ids: int64 `[N, T]`, padded on the right to the longest. So positions count from the
            first token without further ado, and no token of a causal model sees the padding;
            its answer is read at the last token that is none.
        attention_mask: int64 `[N, T]`, 1 where a token is no padding.
        labels: int64 `[N]`.
        choice_ids: int64 `[C]`, the token that speaks for each label; None for a head.
        source: Where the sentences came from, for provenance.
        sha256: Of all tensors.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    choice_ids: Tensor | None
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleSplits:
    """Examples for three purposes; no two splits share an example."""

    calibration: Examples
    search: Examples
    heldout: Examples


def load_examples(  # noqa: PLR0913 - one argument for each key of [data]
    *,
    tokenizer: PreTrainedTokenizerBase,
    source: str = "sst2",
    calibration_examples: int = 128,
    search_examples: int = 256,
    heldout_examples: int = 512,
    max_length: int = 128,
    prompt: str | None = None,
    choices: Sequence[str] | None = None,
    path: str | Path | None = None,
    seed: int = 0,
) -> ExampleSplits:
    """Three disjoint sets of labelled sentences.

    Args:
        tokenizer: Of the model that will read them.
        source: "sst2".
        calibration_examples: Drawn from the training split, like those for search.
        search_examples: Examples that the trials of a search look at.
        heldout_examples: Drawn from the validation split.
        max_length: Tokens an example may have. A classification head reads the first ones of a
            longer sentence; a longer prompt is refused, since its question would be lost.
        prompt: For a causal model: text with "{sentence}" in it, which the choices complete.
        choices: For a causal model: one completion a label, label 0 first.
        path: A .tsv with the columns `label` and `sentence`, read as one stream (calibration,
            search, held-out); or a directory with `train.tsv` and `dev.tsv`. None: from the hub.
        seed: Draws the examples, and their order.

    Raises:
        DataError: Sentences that are missing, unreadable, or fewer than asked for; choices that
            a causal model cannot tell apart by one token.
    """
    if source != "sst2":
        raise DataError(f"labelled examples come from 'sst2', not from {source!r}; use that")
    counts = (calibration_examples, search_examples, heldout_examples)
    refuse_negative(counts)
    question = _question(tokenizer, prompt, choices)
    pools = labelled_rows(path)
    origin = source if path is None else f"{source}: {path}"
    places = draw([len(pool) for pool in pools], counts, seed, f"examples of {origin}")
    calibration, search, heldout = (
        _examples(
            [pools[pool][row] for row in rows.tolist()], tokenizer, question, max_length, origin
        )
        for pool, rows in places
    )
    return ExampleSplits(calibration=calibration, search=search, heldout=heldout)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    """How a causal model is asked: the text around the sentence, and a token for each label."""

    prompt: str
    choice_ids: Tensor


def _question(
    tokenizer: PreTrainedTokenizerBase, prompt: str | None, choices: Sequence[str] | None
) -> _Question | None:
    """None where a classification head answers."""
    if prompt is None and choices is None:
        return None
    if prompt is None or choices is None:
        missing = "prompt" if prompt is None else "choices"
        raise DataError(
            f"a causal model is asked by a prompt and answers by choices; {missing} is not given "
            "(a classification head needs neither)"
        )
    if "{sentence}" not in prompt:
        raise DataError(f"a prompt has {{sentence}} in it, given {prompt!r}; say where it stands")
    firsts = [token_ids(tokenizer, choice)[:1] for choice in choices]
    if len(firsts) < 2 or [] in firsts or len({first[0] for first in firsts}) < len(firsts):
        raise DataError(
            f"the choices are told apart by their first tokens, and {list(choices)} begin with "
            f"{[tokenizer.decode(first) for first in firsts]}; reword them, or leave out the "
            "space they begin with"
        )
    return _Question(prompt=prompt, choice_ids=torch.tensor([first[0] for first in firsts]))


def _examples(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    question: _Question | None,
    max_length: int,
    source: str,
) -> Examples:
    labels = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    sentences = [sentence for _, sentence in rows]
    if question is None:
        pieces = [
            list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"])
            for text in sentences
        ]
    else:
        pieces = _prompts(tokenizer, sentences, question.prompt, max_length)
        if rows and int(labels.max()) >= len(question.choice_ids):
            raise DataError(
                f"there are {len(question.choice_ids)} choices for labels up to "
                f"{int(labels.max())}; give one choice for each label"
            )
    ids, mask = _padded(pieces, _pad_token(tokenizer, question))
    choice_ids = None if question is None else question.choice_ids
    parts = (ids, mask, labels) if choice_ids is None else (ids, mask, labels, choice_ids)
    return Examples(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        choice_ids=choice_ids,
        source=source,
        sha256=sha256(*parts),
    )


def _prompts(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], prompt: str, max_length: int
) -> list[list[int]]:
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    pieces = [
        [*bos, *token_ids(tokenizer, prompt.replace("{sentence}", text))] for text in sentences
    ]
    longest = max(map(len, pieces), default=0)
    if longest > max_length:
        raise DataError(
            f"a prompt is never cut, and the longest has {longest} tokens where max_length is "
            f"{max_length}; set max_length to {longest}"
        )
    return pieces


def _pad_token(tokenizer: PreTrainedTokenizerBase, question: _Question | None) -> int:
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    if question is None:
        # A head finds the sentence's last token by the pad token, so any other would mislead it.
        raise DataError(
            f"sentences for a classification head are padded, and the tokenizer of "
            f"{tokenizer.name_or_path!r} has no pad token; set tokenizer.pad_token and the "
            "model's config.pad_token_id"
        )
    return int(tokenizer.eos_token_id or 0)  # Masked, so which one makes no difference.


def _padded(pieces: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(pieces), max(map(len, pieces), default=0)), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)] = torch.tensor(piece, dtype=torch.int64)
        mask[row, : len(piece)] = 1
    return ids, mask
