"""Tensor -> number: distances between tensors and between what two models predict.

Pure torch. Information is in nats. Arithmetic is float32 (float64 for float64 input), whatever
the dtype of the logits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_CHUNK_VALUES = 1 << 22
"""Logits that are widened at a time: a vocabulary of 262k takes 16 positions, 16 MiB."""


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

    def of_chunk(chunk: Tensor, reference: Tensor) -> Tensor:
        log_p = torch.log_softmax(_widen(chunk), dim=-1)
        log_r = torch.log_softmax(_widen(reference), dim=-1)
        r = log_r.exp()
        # A class that the reference rules out (r = 0, log r = -inf) counts 0; NaN stays NaN.
        difference = (log_r - log_p).masked_fill_(r == 0, 0.0)
        divergence: Tensor = torch.linalg.vecdot(r, difference)
        return divergence.clamp_min(0.0)

    return _by_positions(of_chunk, logits, reference_logits)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of each position, in nats.

    Args:
        logits: `[..., classes]`.
        labels: `[...]` int64.

    Returns:
        `[...]` float32 (float64 for float64 logits).
    """

    def of_chunk(chunk: Tensor, label: Tensor) -> Tensor:
        wide = _widen(chunk)
        return wide.logsumexp(dim=-1) - wide.gather(-1, label.unsqueeze(-1)).squeeze(-1)

    return _by_positions(of_chunk, logits, labels)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """1.0 for each position whose largest logit is the label's, else 0.0; `[...]` float32."""
    return (logits.argmax(dim=-1) == labels).float()


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _by_positions(
    function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, other: Tensor
) -> Tensor:
    """`function` over chunks of positions of `logits` and `other`, put together as `[...]`."""
    classes = logits.shape[-1]
    positions = logits.shape[:-1]
    rows = max(1, _CHUNK_VALUES // max(1, classes))
    flat = logits.reshape(-1, classes)
    flat_other = other.reshape(flat.shape[0], *other.shape[len(positions) :])
    parts = [
        function(flat[start : start + rows], flat_other[start : start + rows])
        for start in range(0, max(1, flat.shape[0]), rows)
    ]
    return torch.cat(parts).reshape(positions)
