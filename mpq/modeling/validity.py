"""What a plan may ask of a model: every fault of a plan is found before anything is touched."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from transformers import PreTrainedModel

from mpq.errors import PlanError
from mpq.formats.format import Format
from mpq.modeling.linear import stores_cache_of
from mpq.modeling.probe import probe
from mpq.modeling.sites import Place

_OPERANDS = frozenset({"q", "k", "v", "probs"})


def find_places(
    model: PreTrainedModel, names: Iterable[str], places: Sequence[Place]
) -> dict[str, Place]:
    """The place of each named site, by the name that was given.

    Raises:
        PlanError: Lists every name that is no site of the model, each with the nearest ones.
    """
    by_name = {name: place for place in places for name in (place.site.name, *place.site.aliases)}
    faults = [_unknown(model, name, by_name) for name in names if name not in by_name]
    if faults:
        raise PlanError("\n".join(faults))
    return {name: by_name[name] for name in names}


def _unknown(model: PreTrainedModel, name: str, known: Mapping[str, Place]) -> str:
    unreachable = probe(model).unreachable
    if unreachable and name.rpartition(".")[2] in _OPERANDS:
        return (
            f"{name}: the attention of {type(model).__name__} cannot be reached ({unreachable}); "
            "give formats to weights and inputs only"
        )
    nearest = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"{name}: no site of {type(model).__name__}; nearest: {', '.join(nearest) or 'none'}"


def check_plan(found: Mapping[str, Place], formats: Mapping[str, Format]) -> None:
    """Nothing comes back; a plan that would give results that depend on later tokens is refused.

    Raises:
        PlanError: Lists every fault: an activation whose scale is shared by the whole tensor and
            read off the data, or whose block spans tokens; probabilities without a zero; the k or
            v operand beside the output of the layer that computes it; one tensor named twice.
    """
    faults = [
        *(
            f"{name}: {fault}"
            for name, place in found.items()
            if not place.site.is_stored
            for fault in _activation_faults(place, formats[name])
        ),
        *_cache_faults(found, formats),
        *_alias_faults(found, formats),
    ]
    if faults:
        raise PlanError("\n".join(faults))


def _activation_faults(place: Place, fmt: Format) -> Iterable[str]:
    if fmt.has_tensor_scale:
        yield (
            f"{fmt} shares one scale, read off the data, between tokens, so a token would depend "
            "on later ones; take the -token form, or a calibrated one: (absmax=…)"
        )
    if fmt.has_2d_block:
        yield (
            f"a block of {fmt} spans several tokens, so a token would depend on later ones; "
            "take a block of one row"
        )
    if place.site.role == "probs" and getattr(fmt.element, "zero", True) is False:
        yield f"{fmt} has no zero, so masked keys would be attended to; take a code with zero"


def _cache_faults(found: Mapping[str, Place], formats: Mapping[str, Format]) -> Iterable[str]:
    """One operand of the cache that has a format both as k (or v) and as a layer's output."""
    for name, place in found.items():
        if place.site.role != "output" or formats[name].is_identity:
            continue
        layer = place.site.name.removesuffix(".output")
        attention, _, leaf = layer.rpartition(".")
        for operand in sorted(stores_cache_of(leaf)):
            other = f"{attention}.{operand}"
            if other in formats and not formats[other].is_identity:
                yield (
                    f"{other} and {name} both quantise what the cache stores; keep one "
                    f"({operand} is after position encoding, the output before)"
                )


def _alias_faults(found: Mapping[str, Place], formats: Mapping[str, Format]) -> Iterable[str]:
    """One tensor under two of its names with two formats."""
    for name, place in found.items():
        own = place.site.name
        if name != own and own in formats and formats[own] != formats[name]:
            yield f"{own} ({formats[own]}) and {name} ({formats[name]}) are one tensor; name one"
