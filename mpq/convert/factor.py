"""The triangular factor of a Hessian by which errors of earlier columns reach later ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_DAMPING = 1.0
"""The largest share of the mean diagonal that is added before the factorisation is given up."""

FIRST_DAMPING = 1e-8
"""What follows a damping of 0 that failed: times 10 would leave it there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factor:
    """A damped Hessian H as (I + F) D (I + F)^T, F strictly upper triangular, D diagonal.

    With dW the error of the whole row, column k of dW (I + F) is what rounding column k left over
    after it had taken up the errors of the columns before it, and
    tr(dW H dW^T) = sum_k D_k |column k of dW (I + F)|^2.

    GPTQ's upper Cholesky factor U of H^-1 (Frantar et al. 2022, section 3.3) says the same: its
    rows divided by its diagonal are (I + F)^-1, and D_k = 1 / U_kk^2. This form needs no inverse
    (Chee et al. 2023, QuIP, theorem 6: LDLQ is GPTQ).

    Attributes:
        feedback: F, float64 [K, K].
        pivots: D, float64 [K]; 0 for a dead column, which takes no part.
        damping: The share of the mean diagonal of live columns that was added in the end.
        added: What was added to the diagonal of live columns.
    """

    feedback: Tensor
    pivots: Tensor
    damping: float
    added: float


def factorize(hessian: Tensor, damping: float) -> Factor | None:
    """The factor of the damped Hessian; None where no damping up to `MAX_DAMPING` makes one.

    Dead columns (a diagonal of 0: no token ever had a value there) are cut off from the others.
    The damping is raised tenfold until the Cholesky factorisation succeeds.

    Args:
        hessian: float64 [K, K], symmetric; row and column k belong to the k-th column rounded.
        damping: The share of the mean diagonal to add first.
    """
    diagonal = hessian.diagonal()
    is_dead = diagonal == 0
    if bool(is_dead.all()):
        return None
    mean = float(diagonal[~is_dead].mean())
    share = damping
    while share <= MAX_DAMPING:
        root = _upper_root(hessian, is_dead, share * mean)
        if root is not None:
            pivots = root.diagonal().clone()
            feedback = root.div_(pivots)
            feedback.diagonal().zero_()
            pivots.square_().masked_fill_(is_dead, 0.0)
            return Factor(
                feedback=feedback, pivots=pivots, damping=share, added=float(share * mean)
            )
        share = share * 10 or FIRST_DAMPING
    return None


def _upper_root(hessian: Tensor, is_dead: Tensor, added: float) -> Tensor | None:
    """The upper triangular R with R R^T the damped Hessian; None where it is not definite.

    The lower Cholesky factor of the matrix with rows and columns reversed, reversed back.
    """
    damped = hessian.flip(0, 1)
    dead = is_dead.flip(0)
    damped.diagonal().add_(added)
    damped[dead, :] = 0.0
    damped[:, dead] = 0.0
    damped.diagonal().masked_fill_(dead, 1.0)
    root, fault = torch.linalg.cholesky_ex(damped)
    if int(fault) or not bool(root.diagonal().isfinite().all()):
        return None
    upper: Tensor = root.flip(0, 1)
    return upper
