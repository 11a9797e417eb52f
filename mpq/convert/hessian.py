"""Second moments of a layer's inputs: the Hessian of its squared output error."""

import torch
from torch import Tensor

from mpq.errors import ModelError

TOKENS_AT_ONCE = 4096
"""Tokens that are converted to float64 at a time."""

PANEL = 512
"""Columns of a panel: of the symmetric sum only the panels on and right of the diagonal are kept
up to date, which halves the products."""


class HessianSum:
    """The sum of x x^T and of x over the tokens seen, in float64.

    The Hessian of 1/n sum ||dW x||^2 over n tokens, in the entries of a row of dW, is
    2/n sum x x^T (Frantar et al. 2022, GPTQ, section 3), the same for every row.

    Attributes:
        size: The number of features K of a token.
        name: What the inputs belong to, for messages.
        num_tokens: Tokens added so far.
    """

    def __init__(
        self, size: int, *, device: torch.device | str | None = None, name: str = ""
    ) -> None:
        if size < 1:
            raise ModelError(f"a Hessian needs at least 1 column, not {size}: give the K of x")
        self.size = size
        self.name = name
        self.num_tokens = 0
        self._products = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._total = torch.zeros(size, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Adds tokens.

        Args:
            x: [..., K], any float dtype; every axis but the last counts tokens.

        Raises:
            ModelError: The last axis is not K long, x is no float tensor, or a value of it is not
                finite; nothing of x is added then.
        """
        what = f"the inputs of {self.name}" if self.name else "the inputs"
        if x.dim() == 0 or x.shape[-1] != self.size or not x.is_floating_point():
            raise ModelError(
                f"{what} must be floats of shape [..., {self.size}], not {x.dtype} of shape "
                f"{tuple(x.shape)}: give what the layer multiplies with its weight"
            )
        count = int((~x.isfinite()).sum())
        if count:
            raise ModelError(
                f"{what} must be finite, but {count} of {x.numel()} values are not: calibrate in "
                f"a wider dtype (float32), or on other text"
            )
        tokens = x.reshape(-1, self.size)
        for start in range(0, tokens.shape[0], TOKENS_AT_ONCE):
            self._add_piece(tokens[start : start + TOKENS_AT_ONCE].to(self._total))
        self.num_tokens += tokens.shape[0]

    def _add_piece(self, piece: Tensor) -> None:
        self._total += piece.sum(dim=0)
        for start in range(0, self.size, PANEL):
            panel = piece[:, start : start + PANEL]
            self._products[start : start + PANEL, start:].addmm_(panel.T, piece[:, start:])

    def hessian(self) -> Tensor:
        """2/n sum x x^T, float64 [K, K], exactly symmetric; zeros where no token was added."""
        found = self._products * (2 / max(self.num_tokens, 1))
        # Panel by panel: a whole transposed copy of a large layer's Hessian takes gigabytes.
        for start in range(0, self.size, PANEL):
            end = start + PANEL
            corner = found[start:end, start:end].triu()
            found[start:end, start:end] = corner + corner.triu(1).T
            found[end:, start:end] = found[start:end, end:].T
        return found

    @property
    def mean(self) -> Tensor:
        """The mean input, float64 [K]; zeros where no token was added."""
        return self._total / max(self.num_tokens, 1)
