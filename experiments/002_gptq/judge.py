"""One judge for all weights: loss and divergence on held-out windows, whoever made the weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mpq.convert.finished import FinishedBlocks
from mpq.modeling.loading import LoadedModel
from mpq.modeling.packed import unpack_weight
from mpq.modeling.residence import on_device, put
from mpq.modeling.scoring import Scorer
from mpq.modeling.sites import places
from mpq.modeling.wrap import apply_plan
from mpq.plans.plan import Plan

CPU = torch.device("cpu")
CACHE_BYTES = 8 * 2**30


def judge_of(loaded: LoadedModel, heldout: Tensor) -> Scorer:
    """Scores the model against itself on held-out windows, one at a time."""
    return Scorer(loaded.model, heldout, batch_size=1, max_cache_bytes=CACHE_BYTES)


def judged(
    scorer: Scorer, within: Callable[[], AbstractContextManager[object]]
) -> dict[str, float]:
    """Mean loss and KL over windows, nats a token, of the model inside a context."""
    scores = scorer.score(within)
    return {"loss": float(scores.loss.mean()), "kl": float(scores.kl.mean())}


@contextmanager
def converted(loaded: LoadedModel, finished: FinishedBlocks) -> Iterator[None]:
    """A context in which the model holds what was converted."""
    stored = {place.site.name: place for place in places(loaded.model)}
    with on_device([loaded.model], CPU):
        for block in finished.blocks():
            put([(stored[site], unpack_weight(packed)) for site, packed in block.packed.items()])
        yield


@contextmanager
def given(loaded: LoadedModel, folder: Path) -> Iterator[None]:
    """A context in which the model holds the weights that another tool left in a folder."""
    weights: Mapping[str, Tensor] = load_file(folder / "weights.safetensors")
    stored = {place.site.name: place for place in places(loaded.model)}
    with on_device([loaded.model], CPU):
        put([(stored[name], tensor) for name, tensor in weights.items()])
        yield


def rounded(loaded: LoadedModel, plan: Plan) -> AbstractContextManager[None]:
    """A context in which the model's weights are rounded to nearest in the plan's formats."""
    return apply_plan(loaded.model, plan)
