"""Damage of every site in one format from one backward pass: its share in a uniform plan's.

A format is judged in the company that it will keep. All sites that are asked for are held in it
at once, and the divergence D from the model itself is run backward through that plan. With
δ = x - Q(x) what the format takes from a tensor, s a part of it, and g the gradient of D where
every tensor x is held at x - sδ,

    damage(x, format) = -½ Σ g δ / s.

For s = 1 that is what D would fall by if the tensor were whole, by the trapezoid rule
(`mpq.profiling.in_plan` has the derivation), and shares of a small D sum to it. Of a model that a
format breaks, slopes say nothing: s is 1 where D stays below `BROKEN` of what guessing costs,
the logarithm of the number of classes, else the largest of 1/2, 1/4, ... for which it does. While
errors are small D grows with their square and its slope with s, so the quotient is the damage
that the format would do if it went on like that.

Errors of activations are counted as they arrive, behind those of the sites before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpq.formats.format import Format
from mpq.kernels.fake_quant import quantize
from mpq.measures import Teacher
from mpq.modeling.scoring import Batch, make_batches
from mpq.modeling.sites import Place, places
from mpq.modeling.wrap import apply_plan, tap
from mpq.plans.plan import Plan
from mpq.plans.site import Site
from mpq.profiling.candidates import Candidates, Progress
from mpq.profiling.gradients import SlopeSums, gradients_to, run_backward
from mpq.profiling.in_plan import divergence, teachers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpq.data.examples import Examples

BROKEN = 0.5
"""A model that is further from itself than this part of what guessing costs counts as broken."""

SMALLEST_PART = 2.0**-6
"""Below it, rounding in bfloat16 drowns what a format takes; a model that breaks even so is
measured there."""


def share_damage(
    model: PreTrainedModel,
    data: Tensor | Examples,
    candidates: Candidates,
    *,
    judge_every: int,
    progress: Progress,
) -> Iterator[tuple[Site, dict[str, float]]]:
    """Each site with its damage in one format, nats per judged position; format after format.

    One window at a time, forward and backward, for each format. The sites that are asked for in
    a format are each other's company: another selection has other damages. A share below 0 says
    that a site's errors make up for those of others, which they need not do in another plan; it
    counts as 0.

    Args:
        model: A model as loaded, outside of any plan, in eval mode. Gradient flags and gradients
            are afterwards as they were.
        data: Token windows `[N, T]`, or examples of a classification.
        candidates: Which formats of which sites. Identity formats cost nothing and give 0.
        judge_every: See `mpq.modeling.scoring.make_batches`.
        progress: Told how far the passes have come.
    """
    batches = make_batches(data, 1, next(model.parameters()).device, judge_every=judge_every)
    positions = sum(batch.labels.numel() for batch in batches)
    found = {place.site.name: place for place in places(model)}
    companies: dict[Format, list[Place]] = {}
    for site, formats in candidates.items():
        for fmt in formats:
            companies.setdefault(fmt, []).append(found[site.name])
    total = len(batches) * sum(not fmt.is_identity for fmt in companies)
    taught = teachers_of(model, batches)
    teachers = dict(zip(map(id, batches), taught, strict=True))
    done = 0
    for fmt, asked in companies.items():
        if fmt.is_identity:
            yield from ((place.site, {str(fmt): 0.0}) for place in asked)
            continue
        company = _Company(model=model, format=fmt, places=tuple(asked))
        part = _bearable_part(company, batches[0], taught[0])
        with company.held(part) as sums:
            run_backward(
                batches,
                lambda batch: divergence(model, batch, teachers[id(batch)]),
                progress,
                done=done,
                total=total,
            )
        done += len(batches)
        for site, slope in sums().items():
            yield site, {str(fmt): max(0.0, -0.5 * slope / positions / part**2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Company:
    """Sites that are held in one format together."""

    model: PreTrainedModel
    format: Format
    places: tuple[Place, ...]

    @contextmanager
    def held(self, part: float) -> Iterator[Callable[[], dict[Site, float]]]:
        """A context in which so large a part of the errors is there; tells Σ gᵀ(part · δ)."""
        stored = [place for place in self.places if place.site.is_stored]
        weights = SlopeSums(stored)
        flowing = _HeldActivations(
            self.format, part, [place.site for place in self.places if not place.site.is_stored]
        )
        plan = Plan(formats={place.site.name: self.format for place in stored})
        with (
            gradients_to(self.model, weights.own, weights.add),
            apply_plan(self.model, plan),
            tap(self.model, list(flowing.totals), flowing.transform),
        ):
            if part != 1:
                for parameter, whole in weights.own.items():
                    parameter.data = torch.lerp(whole, parameter.data, part)
            yield lambda: {**weights.totals, **flowing.totals}


def _bearable_part(company: _Company, batch: Batch, teacher: Teacher) -> float:
    """The largest of 1, 1/2, 1/4, ... of the errors under which the model is not broken."""
    part = 1.0
    while part > SMALLEST_PART:
        with company.held(part), torch.no_grad():
            cross_entropy = float(divergence(company.model, batch, teacher))
        known = float(teacher.log_likelihood.sum(dtype=torch.float64))
        guessing = batch.labels.numel() * math.log(teacher.probabilities.shape[-1])
        # NaN is broken too.
        if cross_entropy + known <= BROKEN * guessing:
            break
        part /= 2
    return part


class _HeldActivations:
    """Holds activations at a part of a format's errors, and adds up Σ gᵀ(part · δ)."""

    def __init__(self, fmt: Format, part: float, sites: Sequence[Site]) -> None:
        self.totals = dict.fromkeys(sites, 0.0)
        self._format = fmt
        self._part = part

    def transform(self, site: Site, x: Tensor) -> Tensor:
        """The held values of `x`; their gradient is looked at when it comes by."""
        held = quantize(x.detach(), self._format, site.axis, name=site.name)
        if self._part != 1:
            held = torch.lerp(x.detach(), held, self._part)

        def add(slope: float) -> None:
            self.totals[site] += slope

        return _Replaced.apply(x, held, add)  # type: ignore[no-any-return,no-untyped-call]


class _Replaced(torch.autograd.Function):
    """Other values for a tensor; on the way back a visitor is told Σ gradient * (x - values)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, visit: Callable[[float], None]) -> Tensor:
        ctx.save_for_backward(x.float() - values.float())
        ctx.visit = visit
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (delta,) = ctx.saved_tensors
        ctx.visit(float((gradients[0].float() * delta).sum(dtype=torch.float64)))
        return gradients[0], None, None
