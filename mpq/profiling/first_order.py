"""Damage of weights to first order: the score of auto-round's AutoScheme.

For each format, all weights are held in it, and the loss of the true tokens is run backward
through that quantised model. With L_b the mean loss of a batch in nats per position,

    damage(W, format) = mean over batches b of Σ_ij |∂L_b/∂Q(W)_ij · (W - Q(W))_ij|

the terms of a Taylor expansion around the quantised model, each by its absolute value: what the
loss would change by if every rounding error hurt and none helped.

Source: Intel auto-round, `auto_round/auto_scheme/delta_loss.py`: `AutoSchemeWrapperLinear` adds
up Σ|grad · (W - qdq W)| in the backward pass, `get_score_for_scheme` wraps every layer at once
and takes transformers' loss (the mean over a batch), 8 windows a batch by default. It sums over
batches; the mean here is that number over a constant. It also scores a layer's input, under a
scheme that quantises both together; here a site is one tensor, and activations are refused. An
expert that no token reaches scores 0 here, as it has no gradient; it gives such experts the
scores of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mpq.formats.format import Format
from mpq.modeling.scoring import Batch, make_batches
from mpq.modeling.sites import Place, places, sites
from mpq.modeling.wrap import apply_plan
from mpq.plans.plan import Plan
from mpq.plans.site import Site
from mpq.profiling.candidates import Candidates, Progress
from mpq.profiling.gradients import SlopeSums, gradients_to, run_backward, true_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpq.data.examples import Examples

MEASURED = "weights of linear layers and experts"
"""What `first_order_damage` can measure, in words."""


def is_measured(place: Place) -> bool:
    """True for a weight that is no lookup table: AutoScheme scores nothing else that is stored."""
    return place.site.role == "weight" and not place.is_embedding


def first_order_damage(
    model: PreTrainedModel,
    data: Tensor | Examples,
    candidates: Candidates,
    *,
    batch_size: int,
    progress: Progress,
) -> Iterator[tuple[Site, dict[str, float]]]:
    """Each site with its damage in one format, in nats per position; formats one after another.

    In the pass of a format every weight that `mpq.modeling.sites.sites` lists is held in it, asked
    for or not, so that a site's damage does not depend on what else is asked for. An output head
    is asked for on its own: it is held in the format in a pass of its own, beside all others.

    Args:
        model: A model as loaded, outside of any plan, in eval mode. Gradient flags and gradients
            are afterwards as they were.
        data: Token windows `[N, T]`, or examples of a classification.
        candidates: Which formats of which sites; `is_measured` must be true of their places.
            Identity formats give 0.
        batch_size: Windows a batch; the damage depends on it, since absolute values are taken of
            a batch's gradient.
        progress: Told how far the passes have come.

    Raises:
        ModelError: The model predicts no probabilities on the data under a format.
    """
    batches = make_batches(data, batch_size, next(model.parameters()).device)
    found = {place.site.name: place for place in places(model)}
    always = {site.name for site in sites(model) if site.role == "weight"}
    passes: dict[tuple[Format, bool], list[Site]] = {}
    for site, formats in candidates.items():
        for fmt in formats:
            passes.setdefault((fmt, site.name in always), []).append(site)
    total = len(batches) * sum(not fmt.is_identity for fmt, _ in passes)
    done = 0
    for (fmt, _), asked in passes.items():
        if fmt.is_identity:
            yield from ((site, {str(fmt): 0.0}) for site in asked)
            continue
        held = {*always, *(site.name for site in asked)}
        plan = Plan(formats=dict.fromkeys(sorted(held), fmt))
        scores = SlopeSums([found[site.name] for site in asked], torch.abs)
        with apply_plan(model, plan), gradients_to(model, scores.own, scores.add):
            run_backward(
                batches,
                lambda batch: _mean_loss(model, batch),
                progress,
                done=done,
                total=total,
            )
        done += len(batches)
        for site in asked:
            yield site, {str(fmt): scores.totals[site] / len(batches)}


def _mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return true_loss(model, batch) / batch.labels.numel()
