"""Optimal Brain Quantization with GPTQ's fixed order, from the textbook: an oracle.

Frantar and Alistarh 2022 (OBC), equation 3, and Frantar et al. 2022 (GPTQ), section 3.2: with
H^-1 of the columns that remain, rounding column i moves every other by
-(w_i - q_i) / [H^-1]_ii [H^-1]_i,: and takes i out of H^-1 by one step of Gaussian elimination.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]


def obq(
    row: Row,
    hessian: NDArray[np.float64],
    order: Iterable[int],
    nearest: Callable[[float, int], float],
) -> tuple[Row, float]:
    """A row rounded column by column, and sum (w_i - q_i)^2 / (2 [H^-1]_ii).

    Args:
        row: The weights.
        hessian: Damped, so that it has an inverse.
        order: The columns in the order in which they are rounded.
        nearest: (value, column) -> the nearest value of the column's grid.
    """
    inverse = np.linalg.inv(hessian)
    row, rounded, loss = row.copy(), np.zeros_like(row), 0.0
    for i in order:
        rounded[i] = nearest(row[i], i)
        error = row[i] - rounded[i]
        loss += error**2 / (2 * inverse[i, i])
        row -= error / inverse[i, i] * inverse[i]
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return rounded, loss
