"""The values of every site, over all tokens of all batches, as a stream that nobody stores.

Examples of one length make a batch, so no padding ever enters the model and none has to be told
apart from values, wherever a layer has reshaped or sorted its tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mpq.errors import DataError
from mpq.modeling.blockwise import run
from mpq.modeling.sites import Place, places
from mpq.modeling.wrap import tap
from mpq.plans.site import Site
from mpq.profiling.candidates import Progress
from mpq.profiling.values import Values, ValueTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mpq.data.examples import Examples

_log = logging.getLogger(__name__)

SAVE_SECONDS = 20.0
"""What was seen is written out this often at least."""


def measure_values(
    model: PreTrainedModel,
    data: Tensor | Examples,
    sites: Sequence[Site],
    table: ValueTable,
    *,
    save: Callable[[ValueTable], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> ValueTable:
    """`table` with the values of all `sites`; batches that a site has seen are not run again.

    A weight is seen once. An activation is seen in every forward pass, as it lies in memory:
    attention probabilities with the zeros of masked keys, a tensor that several layers read once
    for each of them. The order of batches is fixed, so a profile that was stopped and went on has
    the bits of one that was not.

    Args:
        model: A model as loaded, outside of any plan, in eval mode.
        data: Token windows `[N, T]`, or examples, whose padding does not count.
        sites: The model's, stored or flowing.
        table: What was seen before, and how many windows make a batch.
        save: Given the table so far, every `SAVE_SECONDS` and at the end, also when interrupted.
        progress: Told how far the profile has come.

    Raises:
        DataError: There is nothing to run the model on.
    """
    batches = batches_of(data, table.batch_size)
    latest, saved_at = table, time.monotonic()
    try:
        for latest in _steps(model, batches, sites, table, progress):
            if time.monotonic() - saved_at >= SAVE_SECONDS:
                save(latest)
                saved_at = time.monotonic()
    finally:
        if latest is not table:
            save(latest)
    _tell_oddities(sites, latest)
    return latest


def _steps(
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, Tensor]],
    sites: Sequence[Site],
    table: ValueTable,
    progress: Progress,
) -> Iterator[ValueTable]:
    """The table after each weight and each forward pass that it lacked."""
    found = {place.site.name: place for place in places(model)}
    stored = [site for site in sites if site.is_stored]
    for index, site in enumerate(stored):
        if site.name not in table.values:
            progress("weights", index, len(stored))
            table = table.with_values({site.name: Values.of(_tensor(found[site.name]))})
            yield table
    progress("weights", len(stored), len(stored))
    flowing = [site for site in sites if not site.is_stored]
    for index, batch in enumerate(batches):
        waiting = [site for site in flowing if table.batches.get(site.name, 0) == index]
        if waiting:
            progress("forward passes", index, len(batches))
            seen = _seen(model, batch, waiting)
            table = table.with_batch(seen, [site.name for site in waiting])
            yield table
    progress("forward passes", len(batches), len(batches))


def batches_of(data: Tensor | Examples, batch_size: int) -> list[dict[str, Tensor]]:
    """What the model is called with, batch by batch, on the CPU; no batch holds padding.

    Args:
        data: Token windows `[N, T]` int64, taken in their order; or examples, taken by length.
        batch_size: Windows or examples a batch; fewer where no more have one length.

    Raises:
        DataError: There is no window or example, or `batch_size` is below 1.
    """
    count = len(data) if isinstance(data, Tensor) else len(data.input_ids)
    if batch_size < 1 or not count:
        raise DataError(
            "a profile needs at least 1 window (or example) and at least 1 of them a batch; "
            f"given are {count} and batch_size {batch_size}"
        )
    if isinstance(data, Tensor):
        return [{"input_ids": tokens} for tokens in torch.split(data, batch_size)]
    batches = []
    lengths = data.attention_mask.sum(dim=1)
    for length in sorted(set(lengths.tolist())):
        for rows in torch.split((lengths == length).nonzero().flatten(), batch_size):
            kept = data.attention_mask[rows].bool()
            tokens = data.input_ids[rows][kept].reshape(len(rows), length)
            batches.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    return batches


def _tensor(place: Place) -> Tensor:
    whole = place.parameter.detach()
    return whole if place.part is None else whole[place.part]


def _seen(
    model: PreTrainedModel, batch: Mapping[str, Tensor], sites: Sequence[Site]
) -> dict[str, Values]:
    """What one forward pass shows of each site, by its name."""
    seen: dict[str, Values] = {}
    last: tuple[str, Tensor, Values] | None = None

    def observe(site: Site, x: Tensor) -> Tensor:
        nonlocal last
        # q, k and v projections read one tensor, as do gate and up.
        if last is not None and last[0] == site.group and last[1] is x:
            values = last[2]
        else:
            values = Values.of(x)
            last = (site.group, x, values)
        seen[site.name] = seen[site.name].merge(values) if site.name in seen else values
        return x

    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    with torch.inference_mode(), tap(model, sites, observe):
        run(model, inputs)
    return seen


def _tell_oddities(sites: Sequence[Site], table: ValueTable) -> None:
    """Warns of sites that were not reached, and of values that are not finite."""
    seen = [site.name for site in sites if site.name in table.values]
    missed = [site.name for site in sites if site.name not in table.values]
    broken = [name for name in seen if table.values[name].histogram.num_nonfinite]
    for what, names in (
        ("no value came by, so tables leave them out", missed),
        ("infinities or NaN came by, which count as `nonfinite` only", broken),
    ):
        if names:
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            _log.warning("at %d of %d sites %s: %s", len(names), len(sites), what, shown)
