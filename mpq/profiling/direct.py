"""Damage measured directly: one site in one format at a time, and the KL that it causes.

Sites are taken block by block. A pass begins at the site's own block with the hidden states that
the untouched model hands to it, so the blocks before are not run for nothing; the hidden states
of one block are held at a time.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from torch import Tensor

from mpq.errors import ModelError
from mpq.formats.format import Format
from mpq.modeling.blockwise import capture_block_inputs, restart
from mpq.modeling.scoring import Scorer
from mpq.modeling.wrap import WeightCache, apply_plan
from mpq.plans.plan import Plan
from mpq.plans.site import Site
from mpq.profiling.candidates import Candidates, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpq.data.examples import Examples

_log = logging.getLogger(__name__)


def kl_damage(
    model: PreTrainedModel,
    data: Tensor | Examples,
    candidates: Candidates,
    *,
    batch_size: int,
    judge_every: int = 1,
    progress: Progress,
) -> Iterator[tuple[Site, dict[str, float]]]:
    """Each site with its damage by format: mean KL in nats per position; sites block by block.

    A format under which the model gives NaN has an infinite damage.

    Args:
        model: A model as loaded, outside of any plan, in eval mode.
        data: Token windows `[N, T]`, or examples of a classification.
        candidates: Which formats of which sites.
        batch_size: Windows a forward pass.
        judge_every: See `mpq.modeling.scoring.make_batches`.
        progress: Told how many pairs are done.
    """
    scorer = Scorer(model, data, batch_size=batch_size, judge_every=judge_every)
    total = sum(len(formats) for formats in candidates.values())
    done = 0
    for block in sorted({site.block for site in candidates}):
        around = _restart_at(model, scorer, block)
        for site, formats in candidates.items():
            if site.block != block:
                continue
            damage = {}
            for fmt in formats:
                progress("forward passes", done, total)
                damage[str(fmt)] = _mean_kl(model, scorer, site, fmt, around)
                done += 1
            yield site, damage
    progress("forward passes", total, total)


def _mean_kl(
    model: PreTrainedModel,
    scorer: Scorer,
    site: Site,
    fmt: Format,
    around: Callable[[int], AbstractContextManager[None]] | None,
) -> float:
    if fmt.is_identity:
        return 0.0
    plan = Plan(formats={site.name: fmt})
    # Lives for one pair: its weight is quantised once, however often the plan is put on.
    cache = WeightCache(sys.maxsize)
    scores = scorer.score(lambda: apply_plan(model, plan, cache=cache), around=around)
    mean = float(scores.kl.mean())
    return math.inf if math.isnan(mean) else mean


def _restart_at(
    model: PreTrainedModel, scorer: Scorer, block: int
) -> Callable[[int], AbstractContextManager[None]] | None:
    """A context per batch in which passes begin at `block`; None where they must be whole.

    They must be for sites outside of the blocks, and for models that cannot be restarted.
    """
    if block <= 0:
        return None
    try:
        hidden = [capture_block_inputs(model, batch.inputs)[block] for batch in scorer.batches]
    except ModelError as error:
        _log.warning("passes cannot begin at block %d, each runs whole: %s", block, error)
        return None
    return lambda index: restart(model, block, hidden[index])
