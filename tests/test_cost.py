import math

import numpy as np
import pytest

from mpq.config_sections import COST_NAMES
from mpq.cost import COST_MEASURES, Cost, bit_limit, bit_table, cost, counted, site_bits
from mpq.errors import BudgetError
from mpq.formats.zoo import parse_format
from mpq.plans.plan import Plan
from mpq.plans.rules import resolve
from mpq.plans.site import TOKENS, Site
from tests.plans.llama import llama_sites, outside_sites

SITES = llama_sites()
# Llama-3.2-1B's shapes, two of its sixteen blocks.
LLAMA_1B = llama_sites(blocks=2, hidden=2048, inner=8192, heads=32, kv_heads=8)
BLOCKS = {"bfp4": (4, 16), "bfp6": (6, 16), "bfp8": (8, 16)}


def uniform(text, sites=SITES, pattern="*"):
    return resolve({pattern: text}, sites)


def ancestors_density(width, *, hidden, inner, heads, kv_heads, tokens):
    """LLM-mixed-Q's figure for one block, from its own definition, without sites.

    quantized_layer_profiler.py: linear layers hold in * out parameters and tokens * in
    activations (an input that three layers read counts three times), a matmul holds both of its
    operands; a block of 16 values holds 16 widths and one exponent of 8 bits.
    """
    head = hidden // heads
    layers = [(hidden, hidden), (hidden, kv_heads * head), (hidden, kv_heads * head)]
    layers += [(hidden, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]
    values = sum(rows * columns for rows, columns in layers)
    values += sum(tokens * rows for rows, _ in layers)
    values += tokens * head * (heads + 2 * kv_heads) + heads * tokens * tokens
    return 32 * values / (values // 16 * (16 * width + 8))


@pytest.mark.parametrize(("text", "figure"), [("bfp6", 4.92), ("bfp4", 7.11), ("bfp8", 3.76)])
@pytest.mark.parametrize("tokens", [16, 256, 2048])
def test_memory_density_is_the_ancestors_figure(text, figure, tokens):
    found = cost(uniform(text, LLAMA_1B), LLAMA_1B, tokens).memory_density
    assert round(found, 2) == figure
    own = ancestors_density(
        int(text[3:]), hidden=2048, inner=8192, heads=32, kv_heads=8, tokens=tokens
    )
    assert found == own == 32 / (int(text[3:]) + 8 / 16)


def test_memory_density_counts_short_blocks_as_they_are_stored():
    # 100 tokens: rows of probabilities end in a block of 4, which has an exponent of its own.
    # LLM-mixed-Q charged it like 16 values; what is stored is 4 * 6 + 8 bits.
    probs = Site(name="p", role="probs", kind="a", block=0, shape=(TOKENS, TOKENS), group="p")
    found = cost(uniform("bfp6", [probs]), [probs], 100).memory_density
    assert found == 32 * 100 * 100 / (100 * (100 * 6 + 7 * 8))


def test_weights_alone_leave_activations_at_32_bits():
    found = cost(uniform("bfp4", LLAMA_1B, "*.weight"), LLAMA_1B, 256)
    weights = sum(math.prod(site.shape) for site in LLAMA_1B if site.role == "weight")
    others = sum(math.prod(site.shape_at(256)) for site in LLAMA_1B if site.role != "weight")
    assert found.memory_density == 32 * (weights + others) / (4.5 * weights + 32 * others)
    assert (found.weight_bits, found.activation_bits) == (4.5, 32)


def test_outputs_are_no_operands():
    with_outputs = llama_sites(outputs=True)
    plan = uniform("bfp4", with_outputs, "*.output")
    assert cost(plan, with_outputs).memory_density == cost(Plan.of({}), SITES).memory_density
    assert cost(plan, with_outputs).activation_bits < 32


def test_an_empty_plan_costs_what_the_model_is_stored_in():
    halved = llama_sites(stored_bits=16)
    found = cost(Plan.of({}), halved)
    assert (found.weight_bits, found.activation_bits, found.memory_density) == (16, 16, 2)
    weights = sum(math.prod(site.shape) for site in halved if site.role == "weight")
    assert found.weight_bytes == found.total_bytes == 2 * weights


def test_an_identity_format_leaves_the_tensor_as_it_is_stored():
    halved = llama_sites(stored_bits=16)
    assert cost(uniform("fp32", halved), halved) == cost(Plan.of({}), halved)


def test_weight_bits_is_a_mean_over_values():
    names = [site.name for site in SITES if site.role == "weight"]
    plan = Plan.of({name: "bfp4" if "q_proj" in name else "bfp8" for name in names})
    small = 2 * 64 * 64
    all_values = sum(math.prod(site.shape) for site in SITES if site.role == "weight")
    bits = small * 4.5 + (all_values - small) * 8.5
    assert cost(plan, SITES).weight_bits == bits / all_values
    assert cost(plan, SITES).weight_bytes == bits / 8


def test_embeddings_and_head_are_reported_in_and_out():
    plan = uniform("bfp4", pattern="*.weight")
    within = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 176)
    apart = cost(plan, SITES, rest=outside_sites())
    assert apart.weight_bits == apart.block_weight_bits == 4.5
    assert apart.total_bytes == apart.weight_bytes + 4 * 64 * 256
    together = cost(plan, (*SITES, *outside_sites()))
    assert together.block_weight_bits == 4.5
    assert together.weight_bits == (4.5 * within + 32 * 64 * 256) / (within + 64 * 256)
    assert together.total_bytes == together.weight_bytes == apart.total_bytes


def test_a_tensor_given_twice_is_stored_once():
    plan = uniform("bfp4", pattern="*.weight")
    assert cost(plan, SITES, rest=SITES).total_bytes == cost(plan, SITES).total_bytes


def test_biases_are_stored_and_are_no_weights():
    bias = Site(name="b", role="bias", kind="a", block=0, shape=(48,), group="b")
    found = cost(Plan.of({}), (*SITES, bias))
    assert found.total_bytes - found.weight_bytes == 4 * 48
    assert found.weight_bits == 32


@pytest.mark.parametrize(
    ("text", "bits"), [("bfp4", 4.5), ("bfp8", 8.5), ("int8-token", 9), ("fp32", 32)]
)
def test_kv_bytes_are_what_a_token_stores(text, bits):
    # Two blocks, keys and values, 2 heads of 16 values; one block of 16 values a head, and for
    # int8-token a bfloat16 scale for every 16 values.
    found = cost(uniform(text, pattern="*.self_attn.[kv]"), SITES, 256)
    assert found.kv_bytes == 2 * 2 * 2 * 16 * bits / 8


def test_kv_bytes_follow_the_outputs_of_k_and_v_where_those_are_what_is_stored():
    sites = llama_sites(outputs=True)
    plan = uniform("bfp4", sites, "*.k_proj.output")
    assert cost(plan, sites).kv_bytes == 2 * 2 * 16 * (4.5 + 32) / 8
    assert cost(uniform("bfp4", sites, "*.q_proj.output"), sites).kv_bytes == 2 * 2 * 2 * 16 * 4


def test_means_over_nothing_are_zero():
    assert cost(Plan.of({}), ()) == Cost(
        weight_bits=0.0,
        block_weight_bits=0.0,
        weight_bytes=0,
        total_bytes=0,
        activation_bits=0.0,
        memory_density=0.0,
        kv_bytes=0.0,
        tokens=256,
    )


def test_the_table_of_bits_is_what_plans_cost():
    formats = [parse_format(text) for text in ("bfp4", "int4-g128", "mxfp4")]
    weights = [site for site in SITES if site.role == "weight"]
    table = bit_table(weights, [*formats, None], 64)
    assert table.dtype == np.int64
    for column, text in enumerate(map(str, formats)):
        assert table[:, column].sum() == 8 * cost(uniform(text, weights), weights).weight_bytes
    assert table[:, 3].tolist() == [32 * math.prod(site.shape) for site in weights]
    assert bit_table([], formats).shape == (0, 3)


def test_the_axis_of_a_site_decides_about_short_blocks():
    tall = Site(name="t", role="weight", kind="c", block=0, shape=(16, 3), axis=0, group="t")
    flat = Site(name="f", role="weight", kind="c", block=0, shape=(16, 3), group="f")
    given = parse_format("bfp4")
    assert site_bits(tall, given, 1) == 3 * (16 * 4 + 8)
    assert site_bits(flat, given, 1) == 16 * (3 * 4 + 8)


@pytest.mark.parametrize("text", ["bfp4", "int4a-g64", "mxfp6-e2m3", "nvfp4", "nf4-g64", "bl8"])
def test_bits_are_what_encode_stores(text):
    torch = pytest.importorskip("torch")
    from mpq.kernels.fake_quant import encode

    for site in llama_sites(blocks=1, hidden=48, inner=100):
        if site.role == "weight":
            stored = encode(torch.randn(site.shape), text, site.axis).num_bits
            assert site_bits(site, parse_format(text), 1) == stored


# --- budgets --------------------------------------------------------------------------------


def measured(measure, plan, sites, tokens=256):
    return getattr(cost(plan, sites, tokens), measure)


def bits_of(measure, plan, sites, tokens=256):
    return sum(
        site_bits(site, plan.formats.get(site.name), tokens) for site in counted(measure, sites)
    )


@pytest.mark.parametrize("measure", COST_MEASURES)
@pytest.mark.parametrize("text", ["bfp3", "bfp4", "int3-g128", "int5-g32", "fp8-e4m3"])
def test_a_plan_keeps_a_bound_exactly_when_its_bits_keep_the_limit(measure, text):
    plan = uniform(text)
    value = measured(measure, plan, SITES)
    used = bits_of(measure, plan, SITES)
    downwards = COST_MEASURES[measure].direction == "minimize"
    assert used <= bit_limit(measure, value, SITES)
    for tighter in (math.nextafter(value, 0.0 if downwards else math.inf), value * 0.99):
        bound = tighter if downwards else value * 1.01
        assert used > bit_limit(measure, bound, SITES)
    looser = value * 1.01 if downwards else value * 0.99
    assert used <= bit_limit(measure, looser, SITES)


def test_a_bound_means_what_it_says():
    # 4.1 in binary is a little less than 4.1; ten values at 4.1 bits are 41 bits all the same.
    ten = Site(name="t", role="weight", kind="t", block=0, shape=(10,), group="t")
    assert bit_limit("weight_bits", 4.1, [ten]) == 41
    assert bit_limit("weight_bytes", 5.9, [ten]) == 40


@pytest.mark.parametrize("bound", [0, -1.0, math.nan, math.inf])
def test_a_bound_is_a_positive_number(bound):
    with pytest.raises(BudgetError, match=f"positive finite number: kv_bytes = {bound}"):
        bit_limit("kv_bytes", bound, SITES)


def test_a_bound_on_nothing_is_refused():
    weights = [site for site in SITES if site.role == "weight"]
    with pytest.raises(BudgetError, match="no site that kv_bytes counts is among the 14 sites"):
        bit_limit("kv_bytes", 5, weights)


def test_a_measure_that_does_not_exist_is_refused():
    with pytest.raises(BudgetError, match="'wieght_bits' is no measure of cost; there are weight"):
        counted("wieght_bits", SITES)


def test_every_measure_is_a_field_of_cost_and_a_name_of_the_config():
    assert tuple(COST_MEASURES) == COST_NAMES
    found = cost(Plan.of({}), SITES)
    for name, measure in COST_MEASURES.items():
        assert getattr(found, name) > 0
        assert measure.unit
        assert measure.meaning
    assert COST_MEASURES["memory_density"].direction == "maximize"
