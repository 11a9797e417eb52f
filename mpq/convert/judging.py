"""A converted model beside the one that was given, on held-out windows."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mpq.convert.report import HeldoutReport
from mpq.measures import cross_entropy, kl_divergence


@torch.no_grad()
def judge_heldout(
    batches: Sequence[Tensor],
    before: Callable[[int], Tensor],
    after: Callable[[int], Tensor],
) -> HeldoutReport:
    """Losses of both models and the divergence between them, means over tokens.

    Args:
        batches: Token ids [windows, tokens].
        before: Number of a batch -> logits [windows, tokens, vocabulary] of the given model.
        after: The same of the converted one.
    """
    totals = torch.zeros(3, dtype=torch.float64)
    num_tokens = num_judged = 0
    for number, batch in enumerate(batches):
        labels = batch[:, 1:].reshape(-1)
        given = before(number)[:, :-1].flatten(0, 1)
        labels = labels.to(given.device)
        converted = after(number)[:, :-1].flatten(0, 1)
        by_token = (
            cross_entropy(given, labels),
            cross_entropy(converted, labels),
            kl_divergence(converted, given),
        )
        totals += torch.stack([values.double().sum().cpu() for values in by_token])
        num_judged += labels.numel()
        num_tokens += batch.numel()
    loss_before, loss_after, divergence = (totals / num_judged).tolist()
    return HeldoutReport(
        num_tokens=num_tokens, loss_before=loss_before, loss_after=loss_after, kl=divergence
    )
