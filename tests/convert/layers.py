"""Layers to solve: weights, and Hessians of correlated inputs."""

import torch
from torch import Tensor

from mpq.convert.hessian import HessianSum


def correlated_inputs(tokens: int, size: int, seed: int = 0) -> Tensor:
    """Tokens whose neighbouring features go together, some of them large."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(size)
    mix = torch.randn(size, size, generator=generator)
    mix *= 0.9 ** (places[:, None] - places).abs()
    spread = torch.exp(0.5 * torch.randn(size, generator=generator))
    return torch.randn(tokens, size, generator=generator) @ mix * spread


def hessian_of(x: Tensor) -> Tensor:
    total = HessianSum(x.shape[-1])
    total.add(x)
    return total.hessian()


def weight_of(rows: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Entries of standard deviation 1, which formats without scales cover too."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator).to(dtype)


def loss_of(weight: Tensor, values: Tensor, hessian: Tensor, axis: int = -1) -> float:
    """1/2 tr(dW H dW^T), as the formula reads."""
    change = (weight.double() - values.double()).movedim(axis, -1)
    return float(torch.trace(change @ hessian @ change.T)) / 2
