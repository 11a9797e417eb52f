"""What one look at a plan says of giving a site another format."""

from collections.abc import Mapping
from typing import NamedTuple


class Move(NamedTuple):
    """A site of a plan leaves its format for another one.

    Attributes:
        slope: Change of the plan's divergence to first order, nats per judged position.
        apart: Squared distance of the tensor's values in the two formats, over the sum of both
            formats' squared errors: 0 where the values are the same, 1 where the errors know
            nothing of each other, 2 where they are opposite.
    """

    slope: float
    apart: float


Moves = Mapping[str, Mapping[str, Move]]
"""Site name -> text of a format -> the move there."""

UNTOUCHED = "fp32"
"""Text of the format that keeps every value."""
