"""The sites of a Llama, written down from its shapes: what tests of plans and costs look at."""

from mpq.plans.site import TOKENS, Site


def llama_sites(
    *, blocks=2, hidden=64, inner=176, heads=4, kv_heads=2, outputs=False, stored_bits=32
) -> tuple[Site, ...]:
    head = hidden // heads
    sites = []
    for block in range(blocks):
        layers = {
            "self_attn.q_proj": (hidden, hidden, "qkv"),
            "self_attn.k_proj": (kv_heads * head, hidden, "qkv"),
            "self_attn.v_proj": (kv_heads * head, hidden, "qkv"),
            "self_attn.o_proj": (hidden, hidden, None),
            "mlp.gate_proj": (inner, hidden, "gate_up"),
            "mlp.up_proj": (inner, hidden, "gate_up"),
            "mlp.down_proj": (hidden, inner, None),
        }
        common = {"block": block, "stored_bits": stored_bits}
        for layer, (rows, columns, fused) in layers.items():
            module = f"model.layers.{block}.{layer}"
            shapes = {"weight": (rows, columns), "input": (TOKENS, columns)}
            if outputs:
                shapes["output"] = (TOKENS, rows)
            for role, shape in shapes.items():
                name = f"{module}.{role}"
                group = f"model.layers.{block}.{fused}.{role}" if fused else name
                kind = layer.split(".")[-1]
                sites.append(
                    Site(name=name, role=role, kind=kind, shape=shape, group=group, **common)
                )
        operands = {
            "q": (heads, TOKENS, head),
            "k": (kv_heads, TOKENS, head),
            "v": (kv_heads, TOKENS, head),
            "probs": (heads, TOKENS, TOKENS),
        }
        for role, shape in operands.items():
            name = f"model.layers.{block}.self_attn.{role}"
            sites.append(
                Site(name=name, role=role, kind="self_attn", shape=shape, group=name, **common)
            )
    return tuple(sites)


def outside_sites(*, hidden=64, words=256, stored_bits=32) -> tuple[Site, ...]:
    """A head that is tied to the embedding: one tensor with two names."""
    tied = Site(
        name="lm_head.weight",
        role="weight",
        kind="lm_head",
        block=-1,
        shape=(words, hidden),
        group="lm_head.weight",
        stored_bits=stored_bits,
        aliases=("model.embed_tokens.weight",),
    )
    return (tied,)
