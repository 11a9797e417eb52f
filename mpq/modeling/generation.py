"""Windows of text that a model writes itself, to calibrate it where no text is at hand."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mpq.errors import DataError

GREEDY_TOKENS = (2, 3, 4)
"""Tokens after the first that are the likeliest ones; the rest of a window is sampled."""

TOP_K = 50

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and how much there is."""


@torch.no_grad()
def generate_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_windows: int,
    window: int,
    *,
    seed: int,
    batch_size: int = 8,
    progress: Progress = lambda *_: None,
) -> Tensor:
    """Windows of the model's own text, int64 [num_windows, window] on the CPU.

    Each begins with the tokenizer's bos token, where it has one, and a token drawn from the
    whole vocabulary without repetition; the next two to four are the likeliest ones, all others
    are drawn from the 50 likeliest (Liu et al. 2023, LLM-QAT, section 3.1 and its code). A text
    that ends is followed by another: the end is a token like others.

    Args:
        model: A causal language model, whole on its device.
        tokenizer: Of the same model.
        num_windows: How many.
        window: Tokens of each.
        seed: Of every draw.
        batch_size: Windows that are written at once.
        progress: Told of every token that a batch of windows is longer by.

    Raises:
        DataError: There is nothing to write, or the model cannot write.
    """
    if num_windows < 1 or window < 2:
        raise DataError(
            f"a model is to write at least 1 window of at least 2 tokens, not {num_windows} of "
            f"{window}"
        )
    if not model.can_generate():
        raise DataError(
            f"{type(model).__name__} writes no text, so it cannot calibrate on its own; give one"
        )
    generator = torch.Generator().manual_seed(seed)
    firsts = _first_tokens(model.config.get_text_config().vocab_size, num_windows, generator)
    bos = tokenizer.bos_token_id
    rows = []
    for start in range(0, num_windows, batch_size):
        prompt = firsts[start : start + batch_size, None]
        if bos is not None:
            prompt = torch.cat([torch.full_like(prompt, bos), prompt], dim=1)
        greedy = GREEDY_TOKENS[start // batch_size % len(GREEDY_TOKENS)]
        written = _written(model, prompt.to(model.device), window, greedy, generator)
        for tokens in written:
            done = start * window + tokens.numel()
            progress("tokens written", done, num_windows * window)
        rows.append(tokens.cpu())
    return torch.cat(rows)


def _first_tokens(vocabulary: int, count: int, generator: torch.Generator) -> Tensor:
    """Tokens [count], each once before any comes twice."""
    rounds = -(-count // vocabulary)
    drawn = [torch.randperm(vocabulary, generator=generator) for _ in range(rounds)]
    return torch.cat(drawn)[:count]


def _written(
    model: PreTrainedModel, prompt: Tensor, window: int, greedy: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """The prompts [rows, n], then each time with a token more, up to [rows, window]."""
    tokens, step, past = prompt[:, :window], prompt[:, :window], None
    first_sampled = prompt.shape[1] + greedy
    yield tokens
    while tokens.shape[1] < window:
        output = model(input_ids=step, past_key_values=past, use_cache=True)
        past = output.past_key_values
        step = _next(output.logits[:, -1], tokens.shape[1] < first_sampled, generator)
        tokens = torch.cat([tokens, step], dim=1)
        yield tokens


def _next(logits: Tensor, is_greedy: bool, generator: torch.Generator) -> Tensor:
    """The next token [rows, 1]."""
    if is_greedy:
        return logits.argmax(dim=-1, keepdim=True)
    likeliest = logits.float().cpu().topk(min(TOP_K, logits.shape[-1]))
    # Drawn on the CPU, whose generator gives the same numbers whatever the model's device.
    choice = torch.multinomial(likeliest.values.softmax(dim=-1), 1, generator=generator)
    return likeliest.indices.gather(-1, choice).to(logits.device)
