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


def check_plan(
    model: PreTrainedModel, formats: Mapping[str, Format], places: Sequence[Place]
) -> dict[str, Place]:
    """The place of each site that a plan names, by the name that it uses.

    Raises:
        PlanError: Lists every fault: a name that is no site; an activation whose scale is shared
            by the whole tensor and read off the data, or whose block spans tokens; probabilities
            without a zero; the k or v operand beside the output of the layer that computes it;
            one tensor named twice.
    """
    known = _by_name(places)
    found = {name: known[name] for name in formats if name in known}
    faults = [
        *(_unknown(model, name, known) for name in formats if name not in known),
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
    return found


def find_activations(
    model: PreTrainedModel, names: Iterable[str], places: Sequence[Place]
) -> list[Place]:
    """The place of each named activation site.

    Raises:
        PlanError: Lists every name that is no site, or the site of a stored tensor.
    """
    known = _by_name(places)
    faults = []
    found = []
    for name in names:
        place = known.get(name)
        if place is None:
            faults.append(_unknown(model, name, known))
        elif place.site.is_stored:
            faults.append(f"{name}: a stored tensor does not flow; only activations are tapped")
        else:
            found.append(place)
    if faults:
        raise PlanError("\n".join(faults))
    return found


def _by_name(places: Sequence[Place]) -> dict[str, Place]:
    return {name: place for place in places for name in (place.site.name, *place.site.aliases)}


def _unknown(model: PreTrainedModel, name: str, known: Mapping[str, Place]) -> str:
    unreachable = probe(model).unreachable
    if unreachable and name.rpartition(".")[2] in _OPERANDS:
        return (
            f"{name}: the attention of {type(model).__name__} cannot be reached ({unreachable}); "
            "give formats to weights and inputs only"
        )
    nearest = get_close_matches(name, known, n=3, cutoff=0.0)
    return f"{name}: no site of {type(model).__name__}; nearest: {', '.join(nearest)}"


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
