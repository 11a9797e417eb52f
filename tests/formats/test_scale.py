"""Scales: what each refuses."""

import pytest

from mpq.errors import FormatError
from mpq.formats.scale import FloatScale, NestedScale, SharedExponent, StaticScale


def test_the_range_of_a_shared_exponent():
    assert (SharedExponent().lowest, SharedExponent().highest) == (-127, 128)
    e8m0 = SharedExponent(microscaling=True)
    assert (e8m0.lowest, e8m0.highest) == (-127, 127)  # OCP MX v1.0 §5.4.1: the top code is NaN
    assert (SharedExponent(width=5).lowest, SharedExponent(width=5).highest) == (-15, 16)


@pytest.mark.parametrize("absmax", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("scale", [FloatScale, NestedScale])
def test_a_calibrated_absmax_is_a_positive_number(scale, absmax):
    with pytest.raises(FormatError, match="must be finite and above 0, not"):
        scale(absmax=absmax)


def test_impossible_scales():
    with pytest.raises(FormatError, match=r"from -126 to 126 .* not 127"):
        StaticScale(fraction=127)
    with pytest.raises(FormatError, match="fixes no zero point"):
        FloatScale(zero_point=True, absmax=1.0)
    with pytest.raises(FormatError, match="from 2 to 8 bits, not 9"):
        SharedExponent(width=9)
    with pytest.raises(FormatError, match="E8M0, 8 bits, not 5"):
        SharedExponent(width=5, microscaling=True)
    with pytest.raises(FormatError, match="floor, ceil, mse, not 'round'"):
        SharedExponent(rule="round")
    with pytest.raises(FormatError, match=r"calibrated .* or per token, not both"):
        NestedScale(per_row=True, absmax=1.0)
