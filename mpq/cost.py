"""Cost: bits, bytes and densities of a plan, from the sites' shapes alone.

One accounting: everything that is stored counts (codes, scales, zero points, shared exponents),
in whole bits, as `Format.bits` states and `kernels.fake_quant.encode` stores them. A measure is a
whole number of bits over some of the sites, divided by a constant of the model; so a bound on a
measure is a bound on bits (`bit_limit`), and the additive solver can keep it exactly.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from mpq.errors import BudgetError
from mpq.formats.format import Format
from mpq.plans.plan import Plan
from mpq.plans.site import Site

REFERENCE_BITS = 32
"""Bits a value of the model that memory density compares with: float32."""

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How a measure of cost is read: which way is better, and in what unit."""

    direction: Direction
    unit: str
    meaning: str


COST_MEASURES: Mapping[str, Measure] = {
    "weight_bits": Measure(
        direction="minimize",
        unit="bits a value",
        meaning="mean stored bits of a weight, over all weight sites",
    ),
    "weight_bytes": Measure(
        direction="minimize", unit="bytes", meaning="stored size of all weight sites"
    ),
    "activation_bits": Measure(
        direction="minimize",
        unit="bits a value",
        meaning="mean bits of an activation, over all activation sites of one sequence",
    ),
    "memory_density": Measure(
        direction="maximize",
        unit="x",
        meaning="size in float32 over size in the plan, weights and matmul operands together",
    ),
    "kv_bytes": Measure(
        direction="minimize", unit="bytes a token", meaning="keys and values that a token stores"
    ),
}
"""Every measure of cost by its name, in the order in which tables list them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan costs. A mean over no values is 0.

    Attributes:
        weight_bits: Mean stored bits of a weight over all weight sites that were counted.
        block_weight_bits: The same without sites outside of the blocks (embeddings and head).
        weight_bytes: Stored size of the counted weight sites, in whole bytes, rounded up once.
        total_bytes: As `weight_bytes`, with biases and everything given as `rest`.
        activation_bits: Mean bits of an activation value in a sequence of `tokens` tokens.
        memory_density: 32-bit size over size, of weights and matmul operands of one sequence.
        kv_bytes: Bytes of keys and values that one token stores.
        tokens: The sequence length that the activations were counted at.
    """

    weight_bits: float
    block_weight_bits: float
    weight_bytes: int
    total_bytes: int
    activation_bits: float
    memory_density: float
    kv_bytes: float
    tokens: int


def site_bits(site: Site, given: Format | None, tokens: int) -> int:
    """Exact stored bits of a site's tensor in a sequence of `tokens` tokens.

    Without a format, or with an identity format (fp32), the tensor stays as it is and takes
    `site.stored_bits` a value.
    """
    shape = site.shape_at(tokens)
    if given is None or given.is_identity:
        return site.stored_bits * math.prod(shape)
    return given.bits(shape, site.axis)


def bit_table(
    sites: Sequence[Site], formats: Sequence[Format | None], tokens: int = 256
) -> npt.NDArray[np.int64]:
    """Bits of every site in every format, int64 [sites, formats]; see `site_bits`."""
    rows = [[site_bits(site, given, tokens) for given in formats] for site in sites]
    return np.array(rows, dtype=np.int64).reshape(len(sites), len(formats))


def cost(
    plan: Plan, sites: Sequence[Site], tokens: int = 256, *, rest: Sequence[Site] = ()
) -> Cost:
    """What `plan` costs on a model with these sites.

    Args:
        plan: Sites that it does not name count in the model's own dtype.
        sites: What is counted: the quantisable sites of the model, as `modeling.sites` lists
            them (without embeddings and head unless asked for).
        tokens: Length of the sequence whose activations are counted; no batch.
        rest: Stored sites beside them (embeddings, head) which only `total_bytes` counts.
    """
    everything = {site.name: site for site in (*sites, *rest)}
    bits = {
        name: site_bits(site, plan.formats.get(name), tokens) for name, site in everything.items()
    }

    values = {name: math.prod(site.shape_at(tokens)) for name, site in everything.items()}

    def measured(name: str) -> float:
        used = counted(name, sites, plan)
        used_bits, used_values = (sum(of[site.name] for site in used) for of in (bits, values))
        return measure_value(name, used_bits, used_values, tokens)

    in_blocks = [site for site in counted("weight_bits", sites) if site.block >= 0]
    in_blocks_bits = sum(bits[site.name] for site in in_blocks)
    stored_bits = sum(bits[name] for name, site in everything.items() if site.is_stored)
    return Cost(
        weight_bits=measured("weight_bits"),
        block_weight_bits=_mean(in_blocks_bits, sum(values[site.name] for site in in_blocks)),
        weight_bytes=int(measured("weight_bytes")),
        total_bytes=-(-stored_bits // 8),
        activation_bits=measured("activation_bits"),
        memory_density=measured("memory_density"),
        kv_bytes=measured("kv_bytes"),
        tokens=tokens,
    )


def counted(measure: str, sites: Sequence[Site], plan: Plan | None = None) -> tuple[Site, ...]:
    """The sites whose bits make up a measure of cost.

    `memory_density` is the figure of the system that mpq descends from (LLM-mixed-Q, its
    quantized_layer_profiler.py): weights, biases, inputs of linear layers and both operands of
    the attention matmuls. An input that three layers share is counted for each of them, and
    outputs are not counted. `kv_bytes` counts `k` and `v`, or in their place the outputs of
    `k_proj` and `v_proj` where the plan names those (LLM-QAT stores keys before the rotation).
    """
    if measure in ("weight_bits", "weight_bytes"):
        return tuple(site for site in sites if site.role == "weight")
    if measure == "activation_bits":
        return tuple(site for site in sites if not site.is_stored)
    if measure == "memory_density":
        return tuple(site for site in sites if site.role != "output")
    if measure == "kv_bytes":
        return _cached(sites, plan)
    raise BudgetError(f"{measure!r} is no measure of cost; there are {', '.join(COST_MEASURES)}")


def _cached(sites: Sequence[Site], plan: Plan | None) -> tuple[Site, ...]:
    named = plan.formats if plan is not None else {}
    outputs = {site.name: site for site in sites if site.role == "output"}
    cached = []
    for site in sites:
        if site.role in ("k", "v"):
            before_rotation = f"{site.name}_proj.output"
            stands_in = before_rotation in named and before_rotation in outputs
            cached.append(outputs[before_rotation] if stands_in else site)
    return tuple(cached)


def bit_limit(measure: str, bound: float, sites: Sequence[Site], tokens: int = 256) -> int:
    """The largest whole number of bits of `counted(measure, sites)` that keeps a bound.

    The bound is an upper one for measures that are minimised and a lower one for those that are
    maximised. A plan keeps the limit exactly when its `Cost`, a float, keeps the bound; so a
    plan keeps its own cost as a budget, and 4.1 bits for each of 10 values are 41.

    Raises:
        BudgetError: The bound is not a positive finite number, or the sites hold nothing that
            the measure counts.
    """
    if not (math.isfinite(bound) and bound > 0):
        raise BudgetError(f"a budget is a positive finite number: {measure} = {bound}")
    values = _values(counted(measure, sites), tokens)
    if not values:
        raise BudgetError(
            f"a budget needs something to count: no site that {measure} counts is among the "
            f"{len(sites)} sites"
        )
    exact = Fraction(float(bound))
    if measure == "weight_bytes":
        return 8 * math.floor(exact)
    if measure == "memory_density":
        limit = math.floor(REFERENCE_BITS * values / exact)
    elif measure == "kv_bytes":
        limit = math.floor(exact * 8 * tokens)
    else:
        limit = math.floor(exact * values)
    # A measure is the nearest float of its quotient: one bit more may still round to the bound.
    next_value = measure_value(measure, limit + 1, values, tokens)
    upper = COST_MEASURES[measure].direction == "minimize"
    return limit + (next_value <= bound if upper else next_value >= bound)


def measure_value(measure: str, bits: int, values: int, tokens: int) -> float:
    """A measure's value, in its own unit, from the sites that it counts.

    Args:
        measure: A key of `COST_MEASURES`.
        bits: Of those sites, as the plan stores them.
        values: In those sites, activations over `tokens` tokens.
        tokens: Length of the sequence.
    """
    if measure == "weight_bytes":
        return -(-bits // 8)
    if measure == "memory_density":
        return REFERENCE_BITS * values / bits if bits else 0.0
    if measure == "kv_bytes":
        return bits / (8 * tokens)
    return _mean(bits, values)


def _values(sites: Iterable[Site], tokens: int) -> int:
    return sum(math.prod(site.shape_at(tokens)) for site in sites)


def _mean(bits: int, values: int) -> float:
    return bits / values if values else 0.0
