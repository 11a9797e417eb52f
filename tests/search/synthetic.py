"""A search problem without a model: damages with interactions, measured on noisy windows."""

import math
from functools import cache

import numpy as np

from mpq.formats.zoo import parse_format
from mpq.plans.plan import Plan
from mpq.plans.site import TOKENS, Site
from mpq.search.build import build_space
from mpq.search.space import Space

FORMATS = ("bfp2", "bfp3", "bfp4", "bfp5", "bfp6")
LAYERS = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
LAYERS |= {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up"}
FUSED |= {"up_proj": "gate_up"}


def make_sites(num_blocks: int = 3, *, activations: bool = False) -> tuple[Site, ...]:
    sites = []
    for block in range(num_blocks):
        for kind, shape in LAYERS.items():
            module = f"model.layers.{block}.{kind}"
            fused = FUSED.get(kind)
            group = f"model.layers.{block}.{fused or kind}.weight"
            common = {"kind": kind, "block": block}
            sites.append(
                Site(name=f"{module}.weight", role="weight", shape=shape, group=group, **common)
            )
            if activations:
                group = f"model.layers.{block}.{fused or kind}.input"
                flowing = (TOKENS, shape[1])
                sites.append(
                    Site(
                        name=f"{module}.input", role="input", shape=flowing, group=group, **common
                    )
                )
    return tuple(sites)


@cache
def bits_of(text: str) -> float:
    return parse_format(text).bits_per_value


class Problem:
    """Measures a plan as `Evaluate` does: own damages, interactions, and noise of windows.

    `calls` counts plans that were really measured.
    """

    def __init__(self, sites: tuple[Site, ...], num_windows: int = 32, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.sites = sites
        self.names = [site.name for site in sites]
        self.sensitivity = np.exp(rng.normal(0, 1.2, len(sites)))
        self.coupling = np.triu(np.abs(rng.normal(0, 0.6, (len(sites), len(sites)))), 1)
        self.window_factors = np.exp(rng.normal(0, 0.2, num_windows))
        self.misjudged = np.exp(rng.normal(0, 0.5, len(sites)))
        self.num_windows = num_windows
        self.batch_size = 4
        self.forward_seconds = 0.0
        self.calls = 0

    def noise(self, formats: dict[str, object]) -> np.ndarray:
        """How far each site's format is from exact: a quarter for each bit more."""
        bits = [
            parse_format(str(formats[n])).bits_per_value if n in formats else 32
            for n in self.names
        ]
        return np.array([math.sqrt(4.0 ** -(b - 0.5)) if b < 32 else 0.0 for b in bits])

    def own_damage(self, site: str, text: str) -> float:
        """The profile's estimate of one pair, wrong by `misjudged`."""
        index = self.names.index(site)
        noise = self.noise({site: text})
        return float(self.sensitivity[index] * self.misjudged[index] * noise[index] ** 2)

    def damage(self, plan: Plan) -> float:
        noise = self.noise(dict(plan.formats))
        scaled = np.sqrt(self.sensitivity) * noise
        return float(np.sum(scaled**2) + scaled @ self.coupling @ scaled * 0.3)

    def __call__(
        self, plan: Plan, first: int = 0, last: int | None = None
    ) -> dict[str, np.ndarray]:
        self.calls += 1
        factors = self.window_factors[first:last]
        jitter = np.random.default_rng(int(plan.digest[:8], 16)).normal(0, 0.01, self.num_windows)
        kl = self.damage(plan) * factors * (1 + jitter[first:last])
        return {"kl": kl, "loss": 3 + kl, "accuracy": 1 / (1 + kl)}


def formats(*texts):
    """The formats of these texts."""
    return [parse_format(text) for text in texts]


def flat(site, text):
    """The same damage for all pairs."""
    return 1.0


def make_space(
    problem: Problem, *, formats: tuple[str, ...] = FORMATS, **options: object
) -> Space:
    candidates = [parse_format(text) for text in formats]
    return build_space(
        problem.sites,
        {site.name: candidates for site in problem.sites},
        damage=problem.own_damage,
        model="synthetic",
        **options,
    )
