"""How far a model under a plan is from the model itself: KL, loss and accuracy by window.

A window is a row of tokens (causal language models) or one example (classification). Batches are
fixed when they are made, so a window meets the same neighbours in every score.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mpq.errors import DataError
from mpq.measures import Teacher, judge, teacher_of

if TYPE_CHECKING:
    from mpq.data.examples import Examples

DEFAULT_CACHE_BYTES = 1 << 30
"""The teacher's probabilities are kept up to this size (1 GiB), and computed anew beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some windows, ready for the model.

    Attributes:
        inputs: What the model is called with.
        select: The model's logits -> the ones that count, `[windows, positions, classes]`.
        labels: `[windows, positions]` int64, the truth beside `select`'s logits.
        kept: Of the positions, those whose logits count, int64; None for what `select` says.
    """

    inputs: dict[str, Tensor]
    select: Callable[[Tensor], Tensor]
    labels: Tensor
    kept: Tensor | None = None

    @property
    def num_windows(self) -> int:
        """Windows in the batch."""
        return self.labels.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowScores:
    """What each window says of a model; every tensor is float64 `[windows]` on the CPU.

    Attributes:
        kl: KL(reference ‖ model) in nats, the mean over the window's positions.
        loss: Cross entropy with the true tokens or labels in nats, the mean over positions.
        accuracy: Share of positions whose likeliest class is the true one.
    """

    kl: Tensor
    loss: Tensor
    accuracy: Tensor


def make_batches(
    data: Tensor | Examples,
    batch_size: int,
    device: torch.device | str = "cpu",
    *,
    judge_every: int = 1,
) -> tuple[Batch, ...]:
    """The batches of `data`, in order; the last one may be smaller.

    Args:
        data: Token windows `[N, T]` int64, judged at positions that have a next token; or
            examples, judged by their class (`choice_ids` None) or by the choice that a causal
            model would write after the last token.
        batch_size: Windows a batch.
        device: Where the batches lie.
        judge_every: Of windows, every n-th position is judged, the n-th being the first; 1 for
            all of them.

    Raises:
        DataError: There is no window, a window has no position to judge, or examples are to be
            judged at some of their positions.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; at least 1 window a batch is needed")
    if isinstance(data, Tensor):
        if data.dim() != 2 or data.shape[0] == 0 or not 1 <= judge_every < data.shape[1]:
            raise DataError(
                f"windows have the shape {tuple(data.shape)} and every {judge_every}. position is "
                "judged; needed are [N, T] with N >= 1 windows of T >= 2 tokens (the first has "
                "none before it), and a position to judge in each of them"
            )
        parts = torch.split(data, batch_size)
        return tuple(_token_batch(part.to(device), judge_every) for part in parts)
    if judge_every != 1:
        raise DataError(
            f"every {judge_every}. position was to be judged, and an example has one; "
            "judge_every is for windows of tokens"
        )
    if data.input_ids.shape[0] == 0:
        raise DataError("there is no example to score; ask for at least one")
    starts = range(0, data.input_ids.shape[0], batch_size)
    return tuple(_example_batch(data, start, start + batch_size, device) for start in starts)


def _token_batch(tokens: Tensor, judge_every: int) -> Batch:
    inputs, labels = {"input_ids": tokens}, tokens[:, judge_every::judge_every]
    if judge_every == 1:
        return Batch(inputs=inputs, select=lambda logits: logits[:, :-1], labels=labels)
    kept = torch.arange(judge_every - 1, tokens.shape[1] - 1, judge_every, device=tokens.device)
    return Batch(
        inputs=inputs,
        # A model that was told which logits are wanted has computed no others.
        select=lambda logits: logits if logits.shape[1] == len(kept) else logits[:, kept],
        labels=labels,
        kept=kept,
    )


def _example_batch(examples: Examples, first: int, last: int, device: torch.device | str) -> Batch:
    mask = examples.attention_mask[first:last]
    # Padding that all of the batch share costs time and says nothing.
    used = mask.any(dim=0).nonzero()
    columns = slice(int(used.min()), int(used.max()) + 1)
    mask = mask[:, columns].to(device)
    labels = examples.labels[first:last].to(device)
    tokens = examples.input_ids[first:last, columns].to(device)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if examples.choice_ids is None:
        return Batch(
            inputs=inputs, select=lambda logits: logits.unsqueeze(1), labels=labels.unsqueeze(1)
        )
    choices = examples.choice_ids.to(device)
    rows = torch.arange(mask.shape[0], device=mask.device)
    # The last column with a 1 in it, whichever side is padded.
    final = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return Batch(
        inputs=inputs,
        select=lambda logits: logits[rows, final][:, choices].unsqueeze(1),
        labels=labels.unsqueeze(1),
    )


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """The logits that count of `model` on `batch`: `[windows, positions, classes]`."""
    # A key-value cache would only cost memory; classifiers without one do not know the word.
    has_cache = bool(getattr(getattr(model, "config", None), "use_cache", False))
    keywords: dict[str, Any] = {"use_cache": False} if has_cache else {}
    # The head of a large vocabulary costs more than the rest of a small model.
    if batch.kept is not None and "logits_to_keep" in signature(model.forward).parameters:
        keywords["logits_to_keep"] = batch.kept
    return batch.select(model(**batch.inputs, **keywords).logits)


class Scorer:
    """Scores a model against itself at full precision, with the teacher's predictions remembered.

    The teacher is `model` as it stands outside of `apply`; it is run when a batch is scored for
    the first time. Never call `score` inside of a plan's context: hand the context in.

    Attributes:
        num_windows: Windows that can be scored.
        batch_size: Windows a batch; ranges of whole batches waste nothing.
        num_forwards: Batches sent through the model so far, the teacher's included.
        forward_seconds: Time spent on them and on the measures, in seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Tensor | Examples,
        *,
        batch_size: int,
        judge_every: int = 1,
        teacher_dtype: torch.dtype = torch.bfloat16,
        max_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        """Cuts `data` into batches; runs nothing.

        Args:
            model: A transformers model; it is switched to no other mode.
            data: See `make_batches`.
            batch_size: Windows a batch.
            judge_every: See `make_batches`.
            teacher_dtype: What the teacher's probabilities are kept in; see
                `mpq.measures.teacher_of`.
            max_cache_bytes: They are kept up to this size in all, those of the first batches
                first; for other batches the teacher runs anew in each score.

        Raises:
            DataError: There is nothing to score.
        """
        self.model = model
        device = next(model.parameters()).device
        self.batches = make_batches(data, batch_size, device, judge_every=judge_every)
        self.num_windows = sum(batch.num_windows for batch in self.batches)
        self.num_forwards = 0
        self.forward_seconds = 0.0
        self.batch_size = batch_size
        self._teacher_dtype = teacher_dtype
        self._bytes_left = max_cache_bytes
        self._teachers: dict[int, Teacher] = {}

    def score(
        self,
        apply: Callable[[], AbstractContextManager[object]],
        *,
        first: int = 0,
        last: int | None = None,
        around: Callable[[int], AbstractContextManager[object]] | None = None,
    ) -> WindowScores:
        """What the windows `first` to `last` (exclusive) say of the model inside of `apply()`.

        Batches are run whole, so that a window's neighbours are the same for every range:
        ranges that end between batches waste the rest of theirs.

        Args:
            apply: Makes the context that puts the plan on the model
                (`lambda: apply_plan(model, plan)`; `nullcontext` for the model itself).
            first: The first window.
            last: The first window that is not scored; None for all.
            around: Makes a context for the forward passes of one batch, given its index in
                `batches`: how a pass is restarted at a block. It must not change the logits.

        Raises:
            DataError: The range holds no window, or one that is not there.
        """
        last = self.num_windows if last is None else last
        if not 0 <= first < last <= self.num_windows:
            raise DataError(
                f"windows {first} to {last} were asked for; there are {self.num_windows}, "
                "numbered from 0, and a range holds at least one"
            )
        start = first // self.batch_size
        wanted = range(start, -(-last // self.batch_size))
        parts: dict[int, Tensor] = {}
        within = around or (lambda _: nullcontext())
        for index in wanted:
            with within(index):
                self._remember(index)
        remembered = [index for index in wanted if index in self._teachers]
        if remembered:
            with apply():
                for index in remembered:
                    with within(index):
                        parts[index] = self._judge(index, self._teachers[index])
        for index in wanted:
            if index not in parts:
                with within(index):
                    teacher = self._teach(index)
                with apply(), within(index):
                    parts[index] = self._judge(index, teacher)
        rows = torch.cat([parts[index] for index in wanted], dim=1)
        offset = start * self.batch_size
        kl, loss, hits = rows[:, first - offset : last - offset]
        return WindowScores(kl=kl, loss=loss, accuracy=hits)

    def _remember(self, index: int) -> None:
        """Keeps the teacher of a batch if it fits; full once one did not."""
        if index in self._teachers or self._bytes_left <= 0:
            return
        teacher = self._teach(index)
        self._bytes_left -= teacher.num_bytes
        if self._bytes_left >= 0:
            self._teachers[index] = teacher

    @torch.inference_mode()
    def _teach(self, index: int) -> Teacher:
        """What the model as it stands predicts on one batch."""
        start = self._now()
        teacher = teacher_of(forward(self.model, self.batches[index]), self._teacher_dtype)
        self.num_forwards += 1
        self.forward_seconds += self._now() - start
        return teacher

    @torch.inference_mode()
    def _judge(self, index: int, teacher: Teacher) -> Tensor:
        """KL, loss and accuracy `[3, windows]` float64 of a batch by the model as it stands."""
        start = self._now()
        batch = self.batches[index]
        by_position = judge(forward(self.model, batch), teacher, batch.labels)
        measured = torch.stack([values.double().mean(dim=1) for values in by_position]).cpu()
        self.num_forwards += 1
        self.forward_seconds += self._now() - start
        return measured

    def _now(self) -> float:
        """Seconds on a clock that waits for the device."""
        if self.batches[0].labels.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
