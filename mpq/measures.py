"""Tensor -> number: distances between tensors and between what two models predict.

Pure torch. Information is in nats. Arithmetic is float32 (float64 for float64 input), whatever
the dtype of the logits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_VALUES = 1 << 19
"""Logits that are widened at a time: 2 positions of a vocabulary of 262k, 2 MiB, so that the
passes over them find them in the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Teacher:
    """What a model predicted, kept to judge others by it: see `teacher_of`.

    Attributes:
        probabilities: `[..., classes]`, the softmax of its logits in the dtype that was asked for.
        total: `[...]`, their sum over classes, 1 but for the rounding to that dtype.
        log_likelihood: `[...]`, Σ_i r_i log p_i in nats of the teacher itself, with r the
            probabilities as stored over their sum and p its softmax before rounding.
    """

    probabilities: Tensor
    total: Tensor
    log_likelihood: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        tensors = (self.probabilities, self.total, self.log_likelihood)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def mse(x: Tensor, y: Tensor) -> float:
    """The mean squared difference of two tensors of one shape, summed in float64."""
    return float((x.double() - y.double()).square().mean())


def sqnr_db(x: Tensor, quantised: Tensor) -> float:
    """The signal to quantisation noise ratio, 10 log10(Σ x² / Σ (x - quantised)²), in dB.

    `inf` where nothing was lost, `-inf` for a signal of zeros that was.

    Source: Bennett, "Spectra of Quantized Signals" (1948); the usual definition.
    """
    signal = x.double().square().sum()
    noise = (x.double() - quantised.double()).square().sum()
    if noise == 0:
        return float("inf")
    return float(10 * torch.log10(signal / noise))


def kl_divergence(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(reference ‖ model) of each position, in nats.

    Σ_i r_i (log r_i - log p_i) with r and p the softmax of the two logits
    (Kullback & Leibler, "On Information and Sufficiency", 1951, eq. 2.4). The softmax is
    computed over a few positions at a time, so that a large vocabulary needs no second copy.

    Args:
        logits: `[..., classes]`, of the model that is judged.
        reference_logits: The same shape, of the model that is taken as the truth.

    Returns:
        `[...]` float32 (float64 for float64 logits), not negative.
    """

    def of_chunk(chunk: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        log_p = torch.log_softmax(_widen(chunk), dim=-1)
        log_r = torch.log_softmax(_widen(reference), dim=-1)
        r = log_r.exp()
        # A class that the reference rules out (r = 0, log r = -inf) counts 0; NaN stays NaN.
        difference = (log_r - log_p).masked_fill_(r == 0, 0.0)
        return (torch.linalg.vecdot(r, difference).clamp_min(0.0),)

    return _by_positions(of_chunk, logits, reference_logits)[0]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of each position, in nats.

    Args:
        logits: `[..., classes]`.
        labels: `[...]` int64.

    Returns:
        `[...]` float32 (float64 for float64 logits).
    """

    def of_chunk(chunk: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        wide = _widen(chunk)
        return (wide.logsumexp(dim=-1) - wide.gather(-1, label.unsqueeze(-1)).squeeze(-1),)

    return _by_positions(of_chunk, logits, labels)[0]


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """1.0 for each position whose largest logit is the label's, else 0.0; `[...]` float32."""
    return (logits.argmax(dim=-1) == labels).float()


def teacher_of(logits: Tensor, dtype: torch.dtype) -> Teacher:
    """The predictions of a model, to judge others by.

    Args:
        logits: `[..., classes]`.
        dtype: What the probabilities are kept in. In bfloat16 they take half of the memory, and
            a divergence moves by the rounding of its weights (some 0.1 % of it, either way): a
            model that equals its teacher still has none.
    """

    def of_chunk(chunk: Tensor) -> tuple[Tensor, ...]:
        log_p = torch.log_softmax(_widen(chunk), dim=-1)
        kept = log_p.exp().to(dtype)
        total = kept.sum(dim=-1, dtype=log_p.dtype)
        return kept, total, _mean_log(kept, total, log_p)

    probabilities, total, log_likelihood = _by_positions(of_chunk, logits)
    return Teacher(probabilities=probabilities, total=total, log_likelihood=log_likelihood)


def judge(logits: Tensor, teacher: Teacher, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(KL(teacher ‖ model), cross entropy with the labels, hits), each `[...]`, in one pass.

    The same as `kl_divergence`, `cross_entropy` and `accuracy`, but for the rounding of the
    teacher's probabilities: Σ_i r_i log p_i of teacher and model differ by the divergence.

    Args:
        logits: `[..., classes]`, of the model that is judged.
        teacher: Of the same positions.
        labels: `[...]` int64.
    """

    def of_chunk(
        chunk: Tensor, kept: Tensor, total: Tensor, own: Tensor, label: Tensor
    ) -> tuple[Tensor, ...]:
        wide = _widen(chunk)
        at_label = wide.gather(-1, label.unsqueeze(-1)).squeeze(-1)
        # Only a label with the largest logit can be the first that has it: argmax is slow.
        hits = at_label == wide.amax(dim=-1)
        hits[hits.clone()] = wide[hits].argmax(dim=-1) == label[hits]
        log_q = torch.log_softmax(wide, dim=-1)
        loss = -log_q.gather(-1, label.unsqueeze(-1)).squeeze(-1)
        return (own - _mean_log(kept, total, log_q)).clamp_min(0.0), loss, hits.float()

    kl, loss, hits = _by_positions(
        of_chunk, logits, teacher.probabilities, teacher.total, teacher.log_likelihood, labels
    )
    return kl, loss, hits


def _mean_log(kept: Tensor, total: Tensor, log_q: Tensor) -> Tensor:
    """Σ_i r_i log q_i of each position, with r = kept / total."""
    wide = kept.to(log_q.dtype)
    mean: Tensor = torch.linalg.vecdot(wide, log_q) / total
    if not mean.isfinite().all():
        # A class that the teacher rules out (r = 0, log q = -inf) counts 0; NaN stays NaN.
        ruled_out = (wide == 0) & (log_q == -torch.inf)
        mean = torch.linalg.vecdot(wide, log_q.masked_fill(ruled_out, 0.0)) / total
    return mean


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _by_positions(
    function: Callable[..., tuple[Tensor, ...]], logits: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    """The results of `function` over chunks of positions, each put together as `[..., *]`.

    Args:
        function: Takes a chunk of every tensor, `[positions, *]`, and returns tensors like that.
        logits: `[..., classes]`.
        others: `[..., *]`.
    """
    positions, classes = logits.shape[:-1], logits.shape[-1]
    tensors = [x.reshape(-1, *x.shape[len(positions) :]) for x in (logits, *others)]
    rows = max(1, _CHUNK_VALUES // max(1, classes))
    starts = range(0, max(1, tensors[0].shape[0]), rows)
    parts = [function(*(x[start : start + rows] for x in tensors)) for start in starts]
    whole = (torch.cat(column) for column in zip(*parts, strict=True))
    return tuple(x.reshape((*positions, *x.shape[1:])) for x in whole)
