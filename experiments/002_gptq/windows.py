"""Windows of two texts, as files that every tool of the comparison reads."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

CALIBRATION = "calibration.npy"
HELDOUT = "heldout.npy"


def first_windows(
    tokenizer: PreTrainedTokenizerBase, text: Path, num_windows: int, window: int
) -> Tensor:
    """The first windows of a text, int64 [num_windows, window], each behind a bos token."""
    bos = tokenizer.bos_token_id
    body = window if bos is None else window - 1
    # A token is at least one character; no more of the text is read than could be needed.
    with text.open(encoding="utf-8") as file:
        start = file.read(16 * num_windows * window)
    tokens = tokenizer(start, add_special_tokens=False)["input_ids"][: num_windows * body]
    if len(tokens) < num_windows * body:
        raise SystemExit(f"{text} has {len(tokens)} tokens, {num_windows * body} are needed")
    rows = torch.tensor(tokens).view(num_windows, body)
    if bos is None:
        return rows
    return torch.cat([torch.full((num_windows, 1), bos), rows], dim=1)


def write_windows(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[Path, Path],
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """Writes windows for calibration and of held-out text, each (number, length) of its text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text, (count, window) in zip((CALIBRATION, HELDOUT), texts, sizes, strict=True):
        np.save(folder / name, first_windows(tokenizer, text, count, window).numpy())


def read_windows(folder: Path, name: str) -> Tensor:
    """Windows that `write_windows` left, int64 [windows, tokens]."""
    return torch.from_numpy(np.load(folder / name))
