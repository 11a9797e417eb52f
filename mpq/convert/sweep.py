"""The sweep of GPTQ: columns rounded one by one, each after the errors of those before it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq.convert.factor import Factor
from mpq.convert.grid import Grid, read_back, round_column

ChooseGrid = Callable[[Tensor, slice], Grid]
"""(float64 [rows, columns], their places in the sweep) -> the grid of that group of columns."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grids:
    """Which grid each column of a sweep is rounded to.

    Attributes:
        given: The grids chosen beforehand; empty where each is chosen when the sweep gets there.
        group_of: For each column of the sweep, the index of its grid.
        choose: Chooses a grid when the sweep reaches the first column of a group; groups are
            then neighbours in the sweep.
        is_exact: Whether it sees the updates of the running batch of columns.
    """

    given: tuple[Grid, ...]
    group_of: tuple[int, ...]
    choose: ChooseGrid | None = None
    is_exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Swept:
    """What a sweep leaves, columns in the order of the sweep.

    Attributes:
        values: In units of the element, [K, rows].
        quantized: What they read back as, [K, rows] in the weight's dtype.
        grids: Those in use, by index.
        loss: 1/2 tr(dW H dW^T) with the damped H, dead columns left out: the sum over columns of
            D_k/2 |what rounding column k left over|^2.
    """

    values: Tensor
    quantized: Tensor
    grids: tuple[Grid, ...]
    loss: float


def sweep(
    weight: Tensor,
    factor: Factor,
    grids: Grids,
    *,
    batch_columns: int,
    value_dtype: torch.dtype,
) -> Swept:
    """The weight's columns rounded in order, each moved by the errors of the columns before it.

    The target of column k is w_k + sum over j < k of (w_j - q_j) F_jk, which makes
    tr(dW H dW^T) least given the columns before it (Frantar et al. 2022, GPTQ, section 3.3, in
    the form of Chee et al. 2023, QuIP, section 3).

    Args:
        weight: [K, rows]: the original, columns as rows, in the order of the sweep.
        factor: Of the Hessian in the same order.
        grids: What each column is rounded to.
        batch_columns: After how many columns all later ones are moved.
        value_dtype: The dtype of values in units of the element.
    """
    size = weight.shape[0]
    targets = weight.double()
    if targets is weight:
        targets = weight.clone()
    values = torch.empty(weight.shape, dtype=value_dtype, device=weight.device)
    quantized = torch.empty_like(weight, memory_format=torch.contiguous_format)
    found = list(grids.given)
    loss = 0.0
    for start in range(0, size, batch_columns):
        stop = min(start + batch_columns, size)
        changes = weight.new_zeros((stop - start, weight.shape[1]), dtype=torch.float64)
        left_over = torch.empty_like(changes)
        # Row k of this holds what column k takes from the columns of its batch.
        inner = factor.feedback[start:stop, start:stop].T.contiguous()
        for k in range(start, stop):
            done = changes[: k - start]
            if grids.group_of[k] == len(found) and grids.choose is not None:
                found.append(_chosen(targets, done, factor, grids, k))
            grid = found[grids.group_of[k]]
            target = torch.addmv(targets[k], done.T, inner[k - start, : k - start])
            rounded = round_column(target, grid)
            values[k] = rounded
            quantized[k] = read_back(rounded, grid)
            exact = quantized[k].double()
            torch.sub(weight[k], exact, out=changes[k - start])
            torch.sub(target, exact, out=left_over[k - start])
        loss += float(factor.pivots[start:stop] @ left_over.square_().sum(dim=1)) / 2
        targets[stop:].addmm_(factor.feedback[start:stop, stop:].T, changes)
    return Swept(values=values, quantized=quantized, grids=tuple(found), loss=loss)


def _chosen(targets: Tensor, done: Tensor, factor: Factor, grids: Grids, k: int) -> Grid:
    """The grid of the group of columns that starts at column k.

    Args:
        targets: The columns as rows, moved by the batches before the running one.
        done: The errors of the running batch's columns before k, as rows.
        factor: Of the Hessian.
        grids: How to choose.
        k: The group's first column.
    """
    if grids.choose is None:
        raise TypeError("a group without a grid needs a way to choose one")
    stop = k
    while stop < targets.shape[0] and grids.group_of[stop] == grids.group_of[k]:
        stop += 1
    columns = targets[k:stop]
    if grids.is_exact:
        columns = columns + factor.feedback[k - done.shape[0] : k, k:stop].T @ done
    return grids.choose(columns.T, slice(k, stop))
