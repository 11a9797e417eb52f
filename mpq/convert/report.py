"""What conversion did to each tensor, as rows, and to the model, as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mpq.plans.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """How one stored tensor was converted.

    Attributes:
        site: Its name.
        format: Its format's text.
        method: `gptq`, or `rtn`: rounded to nearest.
        loss: ½ tr(ΔW·H·ΔWᵀ), H = 2/n Σ xxᵀ over the n tokens it was calibrated on: the squared
            error of the outputs, summed over channels, mean over tokens. Without H, ½ |ΔW|².
        rtn_loss: The same if it had been rounded to nearest in this format.
        damping: Share of the mean of H's diagonal that was added to it; 0 for `rtn`.
        reason: Why it was rounded to nearest though `gptq` was asked for; else empty.
        num_tokens: Tokens that it was calibrated on.
        num_values: Values in the tensor.
        num_bits: Bits that they take: codes, scales, zero points, order of columns.
        bias: `added` or `corrected` where the bias makes up for the mean error; else empty.
    """

    site: str
    format: str
    method: str
    loss: float
    rtn_loss: float
    damping: float
    reason: str
    num_tokens: int
    num_values: int
    num_bits: int
    bias: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """The same as a table's row."""
        return asdict(self) | {"bits_per_value": self.num_bits / self.num_values}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "TensorReport":
        """The report that a row was made from."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutReport:
    """A model on held-out windows before and after conversion.

    Attributes:
        num_tokens: Tokens in them.
        loss_before: Cross entropy of the model that was given, nats a token.
        loss_after: The same of the converted model.
        kl: KL(given ‖ converted), nats a token.
    """

    num_tokens: int
    loss_before: float
    loss_after: float
    kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Bytes of a model's stored tensors.

    Attributes:
        before: Unquantised, in the model's own dtype.
        after: Packed, with all that is stored beside the codes; the tensors left alone included.
        converted_values: Values of the converted tensors.
        converted_bits: Bits that these take.
    """

    before: int
    after: int
    converted_values: int
    converted_bits: int

    @property
    def bits_per_value(self) -> float:
        """Mean bits of a converted value, metadata counted."""
        return self.converted_bits / self.converted_values if self.converted_values else 0.0


def size_of(
    reports: Sequence[TensorReport],
    sites: Mapping[str, Site],
    bytes_before: int,
    bytes_added: int = 0,
) -> Size:
    """The bytes before and after.

    Args:
        reports: Of all converted tensors.
        sites: Site by name.
        bytes_before: Of all the model's stored tensors, each counted once.
        bytes_added: Of biases that layers were given.
    """
    values = sum(report.num_values for report in reports)
    bits = sum(report.num_bits for report in reports)
    replaced = sum(sites[r.site].stored_bits * r.num_values for r in reports) // 8
    return Size(
        before=bytes_before,
        after=bytes_before + bytes_added - replaced + -(-bits // 8),
        converted_values=values,
        converted_bits=bits,
    )
