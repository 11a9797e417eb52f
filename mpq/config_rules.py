"""What keys of a search's TOML may hold together: rules across keys and sections.

What a single key may hold is said in `config_sections`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mpq.config_sections import (
    COST_NAMES,
    DAMAGE_NAMES,
    DataSection,
    ModelSection,
    SearchSection,
    SpaceSection,
    data_keys,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a file: the dotted key, and the sentence about it."""

    key: str
    message: str


def _needed_data_keys(model: ModelSection, data: DataSection) -> Iterator[Fault]:
    """Which keys of [data] a source needs, and which it has no use for."""
    needed = {"file": ["path"], "messages": ["path"], "dataset": ["dataset"]}.get(data.source, [])
    prompted = data.source == "sst2" and model.task == "causal-lm"
    needed += ["prompt", "choices"] if prompted else []
    for key in needed:
        if getattr(data, key) is None:
            yield Fault(f"data.{key}", f'source = "{data.source}" needs this key')
    unused = {"prompt", "choices"} if not prompted else set()
    usable = [key for key in data_keys(data.source) if key not in unused]
    for key in sorted(data.model_fields_set):
        if key not in usable:
            yield Fault(
                f"data.{key}",
                f'source = "{data.source}" with task = "{model.task}" has no use for this key; '
                f"it takes {', '.join(usable)}",
            )


def _labels(model: ModelSection, data: DataSection) -> Iterator[Fault]:
    if model.task == "classification" and data.source != "sst2":
        yield Fault(
            "data.source",
            f'task = "classification" needs labelled examples: expected "sst2", '
            f"given {data.source!r}",
        )


def _whole_windows(data: DataSection) -> Iterator[Fault]:
    for key in ("calibration_tokens", "search_tokens", "heldout_tokens"):
        tokens = getattr(data, key)
        if key in data_keys(data.source) and tokens % data.window:
            fits = max(tokens // data.window, 1) * data.window
            yield Fault(
                f"data.{key}",
                f"expected whole windows of {data.window} tokens, given {tokens}; nearest: {fits}",
            )


def _positions_to_judge(data: DataSection) -> Iterator[Fault]:
    if data.judge_every >= data.window:
        yield Fault(
            "data.judge_every",
            f"expected less than data.window, {data.window}, so that every window has a position "
            f"to judge; given {data.judge_every}",
        )


def _prompt(data: DataSection) -> Iterator[Fault]:
    if data.prompt is not None and "{sentence}" not in data.prompt:
        yield Fault("data.prompt", f"expected text with {{sentence}} in it, given {data.prompt!r}")
    if data.choices is not None and len(data.choices) != 2:
        yield Fault(
            "data.choices", f"expected one completion for each of 2 labels, given {data.choices}"
        )


def _something_to_search(space: SpaceSection) -> Iterator[Fault]:
    if all(len(formats) < 2 for formats in (space.formats, *space.formats_for.values())):
        yield Fault(
            "space.formats", "expected at least two candidates, otherwise there is nothing to find"
        )
    for pattern in sorted(space.formats_for.keys() & space.fixed.keys()):
        yield Fault(
            f'space.fixed."{pattern}"',
            "expected either candidates (formats_for) or one format (fixed), given both",
        )


def _objectives(data: DataSection, search: SearchSection) -> Iterator[Fault]:
    if all(name in COST_NAMES for name in search.objectives):
        yield Fault(
            "search.objectives",
            f"expected at least one measure of damage ({', '.join(DAMAGE_NAMES)}, or your own), "
            f"given {list(search.objectives)}: the cheapest plan needs no search",
        )
    wrong = {"accuracy"} if data.source != "sst2" else {"perplexity"}
    has = "labelled examples" if data.source == "sst2" else "text without labels"
    for name in sorted(wrong.intersection(search.objectives)):
        yield Fault("search.objectives", f'source = "{data.source}" is {has} and has no {name}')


def _sampler(space: SpaceSection, search: SearchSection) -> Iterator[Fault]:
    if search.sampler != "cmaes":
        return
    if len(search.objectives) > 1:
        yield Fault(
            "search.sampler",
            f"cmaes takes one objective, given {list(search.objectives)}; "
            "tpe, nsga2, nsga3, random, qmc and gp take many",
        )
    if space.mode == "direct" and search.budget:
        yield Fault(
            "search.sampler",
            "cmaes cannot see a budget in the direct space (Optuna's sampler has no constraints);"
            ' take space.mode = "guided", whose plans all keep it, or another sampler',
        )


def _pruner(search: SearchSection) -> Iterator[Fault]:
    if search.pruner == "none":
        return
    if len(search.objectives) > 1:
        yield Fault(
            "search.pruner",
            f'pruning needs one objective, given {list(search.objectives)}; take pruner = "none"',
        )
    elif search.objectives[0] not in DAMAGE_NAMES:
        yield Fault(
            "search.pruner",
            f"pruning needs values that grow window by window ({', '.join(DAMAGE_NAMES)}), "
            f'given {search.objectives[0]!r}; take pruner = "none"',
        )


def _anchors(search: SearchSection) -> Iterator[Fault]:
    if search.anchors == "targets" and not search.targets:
        yield Fault("search.anchors", 'expected search.targets beside anchors = "targets"')
    if search.targets and not {"weight_bits", "weight_bytes"}.intersection(search.objectives):
        yield Fault(
            "search.targets",
            "these are values of weight_bits, which must be among search.objectives, given "
            f"{list(search.objectives)}; one bound alone is a [search.budget]",
        )


def _rungs(search: SearchSection) -> Iterator[Fault]:
    if len(search.rungs) == 1:
        return
    if search.pruner != "none":
        yield Fault(
            "search.rungs",
            f"expected one way to stop trials early, given pruner = {search.pruner!r} as well; "
            'take pruner = "none" or rungs = [1.0]',
        )
    measures = [name for name in search.objectives if name not in COST_NAMES]
    if measures and measures[0] not in DAMAGE_NAMES:
        yield Fault(
            "search.rungs",
            f"plans are judged by the windows of the first measure ({', '.join(DAMAGE_NAMES)}), "
            f"given {measures[0]!r}; put one of these before it, or take rungs = [1.0]",
        )


RULES: Mapping[Callable[..., Iterator[Fault]], tuple[str, ...]] = {
    _needed_data_keys: ("model", "data"),
    _labels: ("model", "data"),
    _whole_windows: ("data",),
    _positions_to_judge: ("data",),
    _prompt: ("data",),
    _something_to_search: ("space",),
    _objectives: ("data", "search"),
    _sampler: ("space", "search"),
    _pruner: ("search",),
    _anchors: ("search",),
    _rungs: ("search",),
}
"""What keys may hold together: a rule is asked when the sections that it reads are valid."""
