"""Small artefacts with known answers, in the layouts that mpq-search and mpq-profile write."""

from pathlib import Path

from mpq.files import write_csv, write_toml

# number, source, anchor, kl, weight_bits, state, feasible, evaluated
TRIALS = [
    (0, "uniform", "bfp3", 0.9, 3.5, "complete", 1, 1),
    (1, "uniform", "bfp4", 0.3, 4.5, "complete", 1, 1),
    (2, "allocation", "bfp4", 0.2, 4.5, "complete", 1, 1),
    (3, "sampler", "", 0.5, 4.0, "complete", 1, 1),
    (4, "sampler", "", 0.6, 4.2, "complete", 1, 1),
    (5, "refine", "bfp4", 0.15, 4.4, "complete", 1, 1),
    (6, "sampler", "", 0.01, 3.0, "pruned", 1, 1),
    (7, "sampler", "", 0.02, 3.1, "complete", 1, 0),
    (8, "sampler", "", 0.05, 9.0, "complete", 0, 1),
]
COLUMNS = ("number", "source", "anchor", "kl", "weight_bits", "state", "feasible", "evaluated")
FRONT = [0, 3, 5]
DRAWN = [0, 1, 2, 3, 4, 5, 8]

FORMATS = {
    "model.layers.0.self_attn.q_proj.weight": "bfp4",
    "model.layers.0.mlp.down_proj.weight": "bfp8",
    "model.layers.0.mlp.down_proj.input": "bfp6",
    "model.layers.0.self_attn.k": "bfp8",
    "model.layers.1.self_attn.q_proj.weight": "bfp6",
    "model.layers.1.mlp.down_proj.weight": "bfp4",
    "lm_head.weight": "bfp8",
}

DAMAGE = {
    ("model.layers.1.mlp.down_proj.weight", "bfp4"): 1e-3,
    ("model.layers.1.mlp.down_proj.weight", "bfp2"): 1e-1,
    ("model.layers.0.self_attn.q_proj.weight", "bfp2"): 2e-2,
    ("model.layers.0.self_attn.q_proj.weight", "bfp4"): 1e-4,
    ("lm_head.weight", "bfp2"): 3e-1,
}


def make_run(folder: Path) -> Path:
    """A run directory with a config, trials, one plan and one damage table."""
    write_toml(folder / "config.toml", {"search": {"objectives": ["kl", "weight_bits"]}})
    write_csv(folder / "trials.csv", [dict(zip(COLUMNS, row, strict=True)) for row in TRIALS])
    write_toml(folder / "plans" / "front_00.toml", {"schema": 1, "formats": FORMATS})
    rows = [
        {"site": site, "format": text, "damage": value, "method": "fisher"}
        for (site, text), value in DAMAGE.items()
    ]
    write_csv(folder / "sensitivity_fisher.csv", rows)
    return folder


# site: (count, mean, variance)
VARIANCES = {
    "lm_head.weight": (10, 0.0, 9.0),
    "model.layers.0.mlp.down_proj.weight": (10, 0.0, 0.5),
    "model.layers.0.self_attn.q_proj.weight": (10, 0.0, 0.25),
    "model.layers.0.self_attn.q": (10, 0.0, 4.0),
    "model.layers.1.self_attn.q_proj.weight": (10, 0.0, 0.125),
    "model.layers.1.mlp.down_proj.weight": (10, 0.0, 1.0),
    "model.layers.1.self_attn.q": (10, 0.0, 8.0),
}


def make_variance(folder: Path, sites=VARIANCES) -> Path:
    """A run directory with a variance table of site -> (count, mean, variance)."""
    columns = ("count", "mean", "variance")
    rows = [{"site": site, **dict(zip(columns, row, strict=True))} for site, row in sites.items()]
    write_csv(folder / "variance.csv", rows)
    return folder
