"""The sections of a search's TOML: each key with its type, its range, its default, its meaning.

What a single key may hold is said here; what keys may hold together is said in `config_rules`.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mpq.errors import FormatError
from mpq.formats.zoo import parse_format

Task = Literal["causal-lm", "classification"]
Source = Literal["builtin", "wikitext2", "file", "messages", "dataset", "sst2"]
DamageName = Literal["kl", "loss", "perplexity", "accuracy"]
CostName = Literal["weight_bits", "weight_bytes", "activation_bits", "memory_density", "kv_bytes"]
Sampler = Literal["random", "tpe", "nsga2", "nsga3", "qmc", "gp", "cmaes"]
Pruner = Literal["none", "median", "halving", "wilcoxon"]
Extra = Literal["lm_head", "embeddings", "bias", "output"]

DAMAGE_NAMES: tuple[str, ...] = get_args(DamageName)
COST_NAMES: tuple[str, ...] = get_args(CostName)

_USER_OBJECTIVE = re.compile(
    r"((min|max)imize:)?[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII
)


def _canonical(text: str) -> str:
    try:
        return str(parse_format(text))
    except FormatError as error:
        raise ValueError(str(error)) from error


def _distinct(items: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise ValueError(f"expected each entry once; more than once: {', '.join(twice)}")
    return items


def _ascending(items: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in itertools.pairwise(items)):
        raise ValueError("expected ascending numbers, each once")
    return items


def _up_to_all(shares: tuple[float, ...]) -> tuple[float, ...]:
    if shares[-1] != 1:
        raise ValueError("expected 1 at the end: the plans that last are judged on all windows")
    return shares


def _objective(name: str) -> str:
    known = (*DAMAGE_NAMES, *COST_NAMES)
    if name in known or _USER_OBJECTIVE.fullmatch(name):
        return name
    raise ValueError(
        f"expected one of {', '.join(known)}, or your own as 'module:function' or "
        "'maximize:module:function'"
    )


def _url(text: str) -> str:
    if "://" not in text:
        raise ValueError("expected an Optuna storage URL, such as sqlite:///study.db")
    return text


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
# `strict` is off for the tuple alone: TOML has lists only.
Texts = Annotated[tuple[Text, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)]
FormatText = Annotated[str, AfterValidator(_canonical)]
FormatTexts = Annotated[
    tuple[FormatText, ...], Field(min_length=1, strict=False), AfterValidator(_distinct)
]
Objectives = Annotated[
    tuple[Annotated[str, AfterValidator(_objective)], ...],
    Field(min_length=1, strict=False),
    AfterValidator(_distinct),
]


Targets = Annotated[
    tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...],
    Field(strict=False),
    AfterValidator(_ascending),
]
Rungs = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...],
    Field(min_length=1, strict=False),
    AfterValidator(_ascending),
    AfterValidator(_up_to_all),
]


class Section(BaseModel):
    """A frozen table of a TOML file; an unknown key or a wrong type is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class ModelSection(Section):
    """`[model]`: what is quantised."""

    id: Text
    """The shipped model (mpq/tiny-llama), a Hugging Face id, or a local directory."""
    task: Task = "causal-lm"
    """What the model is loaded for; classification is AutoModelForSequenceClassification."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype that weights are loaded in and activations flow in."""
    device: Text = "auto"
    """Where the model runs: auto (CUDA where there is some, else the CPU), cpu, cuda, cuda:1."""
    revision: Text | None = None
    """Branch, tag or commit of a Hugging Face id."""


class DataSection(Section):
    """`[data]`: the text that profile, search and proof look at; three disjoint splits."""

    source: Source = "builtin"
    """Where text comes from; builtin is the prose that every CPython carries."""
    path: Text | None = None
    """source file: a .txt or a .jsonl with "text"; messages: a .jsonl of {"messages": [...]};
    sst2: a .tsv with the columns label and sentence, or a directory of train.tsv and dev.tsv
    (without it the sentences come from the Hugging Face hub)."""
    heldout_path: Text | None = None
    """source file: another such file, whose text is held out; without it, the end of path is."""
    dataset: Text | None = None
    """source dataset: the id of a Hugging Face data set."""
    subset: Text | None = None
    """source dataset: the name of its configuration, where it has several."""
    split: Text = "train"
    """source dataset: the split that is cut into calibration, search and held-out text."""
    column: Text = "text"
    """source dataset: the column that holds the text."""
    window: Annotated[int, Field(ge=2)] = 128
    """Tokens a window."""
    calibration_tokens: Count = 4096
    """How many tokens the profile looks at."""
    search_tokens: Count = 8192
    """How many tokens each trial of the search looks at."""
    heldout_tokens: Count = 16384
    """How many tokens the proof looks at."""
    calibration_examples: Count = 128
    """source sst2: how many labelled examples the profile looks at."""
    search_examples: Count = 256
    """source sst2: how many labelled examples each trial looks at."""
    heldout_examples: Count = 512
    """source sst2: how many labelled examples the proof looks at."""
    max_length: Annotated[int, Field(ge=2)] = 128
    """source sst2: tokens an example may have."""
    prompt: Text | None = None
    """source sst2, causal-lm: the text around {sentence} that the choices complete."""
    choices: Texts | None = None
    """source sst2, causal-lm: the completions that are compared, one a label, label 0 first."""
    batch_size: Count = 8
    """Windows or examples in one forward pass."""
    judge_every: Count = 1
    """Search and proof judge every n-th position of a window; all of them are read. For large
    vocabularies, whose logits cost more than the rest of the model."""


class SpaceSection(Section):
    """`[space]`: which sites may take which formats. Patterns are globs over whole names."""

    mode: Literal["guided", "direct"] = "guided"
    """guided: about a dozen numbers steer an exact solver; direct: one variable a group."""
    tie: Literal["fused", "none"] = "fused"
    """fused: sites that an inference engine fuses share a format; none: each its own."""
    include: Annotated[tuple[Extra, ...], Field(strict=False), AfterValidator(_distinct)] = ()
    """Kinds of site that are off by default and are made available to the patterns below."""
    sites: Texts = ("*.weight",)
    """The sites that are searched."""
    formats: FormatTexts
    """The candidates of the searched sites."""
    formats_for: Mapping[Text, FormatTexts] = {}
    """Other candidates for some of the searched sites: pattern -> formats, first match wins."""
    fixed: Mapping[Text, FormatText] = {}
    """Sites held at one format and not searched: pattern -> format, first match wins."""


class ProfileSection(Section):
    """`[profile]`: how the damage of each site in each format is estimated."""

    method: Literal["shares", "fisher", "kl", "fisher-output", "first-order", "mse"] = "kl"
    """shares: one backward pass a format, with all sites held in it; kl: one forward pass a pair;
    fisher: one backward pass for all pairs; fisher-output (Model Optimizer's) and first-order
    (auto-round's): backward passes too; mse: of the weights alone."""
    in_plan: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    """Share of the calibration data with which plans under refinement are looked at: a backward
    pass that says what each weight costs within the plan. 0: exchanges go by the profile."""


class SearchSection(Section):
    """`[search]`: what is optimised, by whom, for how long."""

    sampler: Sampler = "tpe"
    """Optuna's sampler; cmaes takes one objective."""
    trials: Count = 60
    """Trials of the study, the seeds (uniform plans, exact optima) included."""
    refine: Annotated[int, Field(ge=0)] = 20
    """Trials after those, which exchange formats between sites of the front's plans."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of every random draw; the same seed gives the same trials."""
    objectives: Objectives = ("kl", "weight_bits")
    """What is optimised: names of measures, or your own as module:function (minimised) or
    maximize:module:function."""
    pruner: Pruner = "none"
    """Stops hopeless trials early; one objective only."""
    targets: Targets = ()
    """Values of weight_bits at which plans are refined, compared and returned as well."""
    anchors: Literal["all", "targets"] = "all"
    """targets: leaves out the costs of the uniform plans, at which that is done otherwise."""
    rungs: Rungs = (1.0,)
    """Shares of the search's windows that a trial is judged on one after the other, as long as
    it is worth it; the last is 1."""
    timeout_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Wall time after which no further trial starts."""
    storage: Annotated[Text, AfterValidator(_url)] | None = None
    """Optuna storage URL; without it, a SQLite file in the run directory."""
    budget: Mapping[CostName, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """Bounds on costs, each kept by every plan that is returned: name -> bound."""


class CostSection(Section):
    """`[cost]`: what the costs of activations are counted at."""

    tokens: Count = 256
    """Length of the sequence whose activations memory_density and activation_bits count."""


class ProveSection(Section):
    """`[prove]`: the proof on held-out text."""

    plans: Count = 10
    """How many plans of the front are proven, beside the uniform plans."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals."""


class SearchConfig(Section):
    """A whole TOML file of mpq-search."""

    model: ModelSection
    data: DataSection = DataSection()
    space: SpaceSection
    profile: ProfileSection = ProfileSection()
    search: SearchSection = SearchSection()
    cost: CostSection = CostSection()
    prove: ProveSection = ProveSection()

    def resolved(self) -> dict[str, Any]:
        """Every key that applies, defaults written out, as plain values; no None."""
        table = self.model_dump(mode="json", exclude_none=True)
        keys = data_keys(self.data.source)
        table["data"] = {key: value for key, value in table["data"].items() if key in keys}
        return table


_TOKEN_KEYS = (
    "window",
    "calibration_tokens",
    "search_tokens",
    "heldout_tokens",
    "judge_every",
)
_SOURCE_KEYS: Mapping[str, tuple[str, ...]] = {
    "builtin": _TOKEN_KEYS,
    "wikitext2": _TOKEN_KEYS,
    "file": ("path", "heldout_path", *_TOKEN_KEYS),
    "messages": ("path", *_TOKEN_KEYS),
    "dataset": ("dataset", "subset", "split", "column", *_TOKEN_KEYS),
    "sst2": (
        "path",
        "calibration_examples",
        "search_examples",
        "heldout_examples",
        "max_length",
        "prompt",
        "choices",
    ),
}


def data_keys(source: str) -> tuple[str, ...]:
    """The keys of `[data]` that apply to a source."""
    return ("source", *_SOURCE_KEYS[source], "batch_size")
