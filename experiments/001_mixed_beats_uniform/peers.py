"""What other tools' plans measure on the twelve windows: numbers as they were given to us.

Source: issue 3 of this project and the side-by-side that it quotes. Each tool ran from its own
code (auto-round 0.16.1, Model Optimizer 0.47.0; "kl_div rule" and "knapsack" are Model Optimizer's
threshold rule and an exact solver on the KL of one group quantised at a time), with the widths
2, 3, 4 and 8 at groups of 128; then all plans went through one quantiser (symmetric absmax,
rounded to nearest), lm_head and embeddings left alone, on Gemma 3 270M, and were judged at all
positions of the first twelve windows of 512 tokens of WikiText-2's raw test file. They were
measured once, by somebody else; `rivals.py` measures ours on the same windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Tie = Literal["tied", "untied", "uniform"]

CODE_BITS = (3.0, 3.5, 4.0, 5.0)
"""Mean bits a weight at which tools are compared, codes alone."""

FULL_PRECISION_LOSS = 3.3304
"""Of the model itself, nats a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One plan of another tool.

    Attributes:
        tool: Who made the plan.
        tie: "tied": q, k, v share a width, and so do gate and up; "uniform": one width for all.
        code_bits: Mean bits a weight, codes alone.
        loss: Nats a token on the twelve windows.
        kl: To full precision, nats a token; None where it was not given.
    """

    tool: str
    tie: Tie
    code_bits: float
    loss: float
    kl: float | None = None


def _line(tool: str, tie: Tie, losses: Sequence[float], **kl: float) -> tuple[Peer, ...]:
    return tuple(
        Peer(tool=tool, tie=tie, code_bits=bits, loss=loss, kl=kl.get(f"at_{10 * bits:.0f}"))
        for bits, loss in zip(CODE_BITS, losses, strict=True)
    )


PEERS: tuple[Peer, ...] = (
    *_line("AutoScheme", "untied", (8.260, 5.050, 4.073, 3.610), at_35=1.60, at_40=0.732),
    *_line("AutoScheme", "tied", (8.224, 5.607, 4.086, 3.716)),
    *_line("Model Optimizer, gradient", "tied", (8.477, 5.506, 4.105, 3.680), at_35=2.09),
    *_line("Model Optimizer, kl_div rule", "tied", (7.809, 5.458, 4.418, 3.732), at_35=2.16),
    *_line("exact knapsack on isolated KL", "tied", (7.577, 5.270, 4.060, 3.622),
           at_30=4.17, at_35=1.87, at_40=0.742),
    Peer(tool="int3-g128", tie="uniform", code_bits=3.0, loss=8.224, kl=4.78),
    Peer(tool="int4-g128", tie="uniform", code_bits=4.0, loss=4.086, kl=0.748),
    Peer(tool="int5-g128", tie="uniform", code_bits=5.0, loss=3.448, kl=0.113),
)  # fmt: skip

KL_RANGE = {4.0: (0.73, 1.09), 5.0: (0.27, 0.41)}
"""Code bits -> least and most KL among the tools; who had which was not given for all."""


def best_peer(tie: Tie, code_bits: float) -> Peer:
    """The plan of another tool with the least loss at so many code bits."""
    return min(
        (peer for peer in PEERS if (peer.tie, peer.code_bits) == (tie, code_bits)),
        key=lambda peer: peer.loss,
    )


def least_kl(tie: Tie, code_bits: float) -> float | None:
    """The KL to beat: the least that is known at so many code bits; None when none is.

    Where a KL was given for a range of tools only, its lower end stands for each of them.
    """
    known = [
        peer.kl
        for peer in PEERS
        if (peer.tie, peer.code_bits) == (tie, code_bits) and peer.kl is not None
    ]
    if code_bits in KL_RANGE:
        known.append(KL_RANGE[code_bits][0])
    return min(known, default=None)
