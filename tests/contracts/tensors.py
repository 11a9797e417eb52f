"""Tensors that break quantizers: ties, binades' edges, subnormals, outliers, tails, any layout."""

import ml_dtypes
import numpy as np
import torch

from tests.oracles.facts import Facts

NUMPY_OF = {
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float32: np.float32,
    torch.float64: np.float64,
}


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """The same values in the same width (numpy itself has no bfloat16)."""
    return x.detach().double().numpy().astype(NUMPY_OF[x.dtype])


def assert_same(got: torch.Tensor, want: torch.Tensor | np.ndarray, told: str = "") -> None:
    """Equal to the bit, the sign of zero included."""
    if isinstance(want, np.ndarray):
        want = torch.from_numpy(want.astype(np.float64))
    actual, expected = got.double(), want.double()
    assert actual.shape == expected.shape, told
    wrong = (actual != expected) | (torch.signbit(actual) != torch.signbit(expected))
    first = wrong.nonzero()[:1]
    assert not wrong.any(), (
        f"{told}: {int(wrong.sum())} of {wrong.numel()} differ, first at {first.tolist()}: "
        f"got {actual[wrong][:4].tolist()}, want {expected[wrong][:4].tolist()}"
    )


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adversarial() -> dict[str, torch.Tensor]:
    """Float32 matrices of a few blocks a row, none a multiple of 16 long."""
    noise = normal(3, 70)
    powers = torch.exp2(torch.arange(-35.0, 35.0)).repeat(2, 1)
    powers[1] = -powers[1].flip(0)
    outlier = noise * 1e-3
    outlier[:, ::16] = 100.0
    signed_zeros = torch.zeros(2, 35)
    signed_zeros[:, ::2] = -0.0
    mostly_zero = signed_zeros.clone()
    mostly_zero[1, 5] = -0.3
    return {
        "normal": noise,
        "weights": noise * 0.02,
        "one sign": noise.abs() + 1,
        "powers of two": powers,
        "small integers": torch.arange(-35.0, 35.0).repeat(2, 1),
        "halves and quarters": torch.arange(-70.0, 70.0).reshape(2, 70) / 4,
        "eighths": torch.arange(-105.0, 105.0).reshape(3, 70) / 8,
        "just below powers": torch.nextafter(powers, torch.zeros(())),
        "just above powers": powers * (1 + 2**-23),
        "three halves of powers": powers * 1.5,
        "outlier in each block": outlier,
        "signed zeros": signed_zeros,
        "mostly zero": mostly_zero,
        "tiny": noise * 1e-30,
        "huge": noise * 1e30,
        "wide": noise * torch.exp2(normal(3, 70, seed=1) * 12),
        "subnormal": noise * 2.0**-140,
        "least": torch.full((1, 17), 2.0**-149),
        "largest": torch.full((1, 17), torch.finfo(torch.float32).max)
        * torch.sign(noise[:1, :17]),
    }


def scale_of_one(facts: Facts, points: np.ndarray) -> torch.Tensor:
    """`points` in rows of one block each, begun so that the block's scale is one."""
    length = facts.group if isinstance(facts.group, int) else 16
    if facts.scale == "range":
        frame = [0.0, facts.anchor]
    elif facts.scale == "none":
        frame = []
    else:
        lowest, largest = facts.codes.values[0], facts.codes.largest
        frame = [lowest if facts.scale == "signed" else largest]
    body = length - len(frame)
    fill = np.full(-len(points) % body, points[-1])
    points = np.concatenate([points, fill]).astype(np.float32)
    rows = torch.from_numpy(points).reshape(-1, body)
    return torch.cat([torch.tensor(frame).repeat(len(rows), 1), rows], dim=1)
