"""The scalar oracle: one value at a time, exact arithmetic, the tie rule spelled out.

Rule (design section 3): the code nearest to the correctly rounded float32 quotient of the value by
the stored scale; a quotient by a power of two is taken exactly. The result is the correctly
rounded float32 product of code and scale.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import ml_dtypes
import numpy as np

from tests.oracles.facts import Facts, read

_STORED_AS = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}


def quantize(x: np.ndarray, text: str, axis: int = -1) -> np.ndarray:
    """Finite `x` through the format `text`, in the dtype of `x`; blocks lie along `axis`."""
    facts = read(text)
    values = np.asarray(x, dtype=np.float32)
    result = np.array(x)
    if text == "fp32":
        return result
    tensor_maximum = float(np.max(np.abs(values), initial=0.0))
    for where in blocks(values.shape, facts, axis):
        block = [float(values[i]) for i in where]
        if facts.per_token:
            row = _row(where[0], axis, values)
            tensor_maximum = float(np.max(np.abs(row)))
        for index, value in zip(
            where, quantize_block(block, facts, tensor_maximum, x.dtype), strict=True
        ):
            result[index] = value
    return result


def blocks(shape: tuple[int, ...], facts: Facts, axis: int) -> Iterator[list[tuple[int, ...]]]:
    """The indices of each block's values; a tail that does not fill a block is a short block."""
    if facts.group == "tensor" or not shape:
        everything = list(np.ndindex(*shape))
        if everything:
            yield everything
        return
    axis %= len(shape)
    rows = 1
    length: int = shape[axis]
    if isinstance(facts.group, tuple):
        rows, length = facts.group
    elif facts.group != "row":
        length = int(facts.group)
    keys: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in np.ndindex(*shape):
        key = list(index)
        key[axis] //= length
        if rows > 1 and len(shape) > 1:
            other = _other_axis(axis, len(shape))
            key[other] //= rows
        keys.setdefault(tuple(key), []).append(index)
    yield from keys.values()


def _other_axis(axis: int, dims: int) -> int:
    """The second axis of a two-dimensional block: the last one that is not `axis`."""
    return dims - 2 if axis == dims - 1 else dims - 1


def _row(index: tuple[int, ...], axis: int, values: np.ndarray) -> np.ndarray:
    at: list[int | slice] = list(index)
    at[axis] = slice(None)
    return values[tuple(at)]


def quantize_block(
    block: Sequence[float], facts: Facts, tensor_maximum: float, dtype: np.dtype
) -> list[float]:
    """One block's values (exact float32) through the format."""
    maximum = max(abs(value) for value in block)
    if facts.scale == "none":
        return [_scaled(value, facts, 1.0, dtype) for value in block]
    if facts.scale == "power":
        exponent = shared_exponent(block, facts, maximum)
        return [_scaled(value, facts, 2.0**exponent, dtype) for value in block]
    if facts.scale == "range":
        return _with_zero_point(block, facts, dtype)
    if facts.scale == "two-level":
        scale = _nvfp4_scale(maximum, tensor_maximum, facts)
    elif facts.scale == "signed":
        # The farthest from zero takes the lowest code; of equally far ones, those below zero do.
        scale = stored_scale(maximum, facts) * np.float32(1 if -maximum in block else -1)
    else:
        scale = stored_scale(facts.absmax if facts.absmax is not None else maximum, facts)
    return [_scaled(value, facts, scale, dtype) for value in block]


def stored_scale(maximum: float, facts: Facts) -> np.float32:
    """The maximum over the element's largest value, as it is stored: rounded, never infinite."""
    return _stored(np.float32(maximum) / np.float32(facts.anchor), facts.storage)


def _stored(scale: np.float32, storage: str) -> np.float32:
    dtype = _STORED_AS[storage]
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.float32(dtype(min(float(scale), largest)))


def _nvfp4_scale(maximum: float, tensor_maximum: float, facts: Facts) -> np.float32:
    """The block's e4m3 scale times the tensor's float32 scale."""
    whole = facts.absmax if facts.absmax is not None else tensor_maximum
    tensor_scale = np.float32(whole) / np.float32(6 * 448)
    if tensor_scale == 0:
        return np.float32(0)
    wanted = _quotient(float(np.float32(maximum) / np.float32(6)), tensor_scale)
    block_scale = np.float32(ml_dtypes.float8_e4m3fn(min(wanted, 448.0)))
    return block_scale * tensor_scale


def shared_exponent(block: Sequence[float], facts: Facts, maximum: float) -> int:
    """The exponent of the power of two that a block shares.

    OCP MX stores the scale's own exponent (E8M0, -127 to 127); all others the exponent of the
    block's maximum, which is scaled onto the element's highest power of two, the anchor.
    """
    anchor = floor_log2(facts.anchor)
    lowest, highest = facts.exponents
    stored_less_scale = 0 if facts.stores_scale else anchor

    def within(exponent: int) -> int:
        stored = exponent + stored_less_scale
        return max(lowest, min(highest, stored)) - stored_less_scale

    if maximum == 0:
        return lowest - stored_less_scale
    floor = floor_log2(maximum)
    is_power = maximum == 2.0**floor
    if facts.round_maximum and maximum / 2.0**floor > 1.5:
        floor += 1
    if facts.rule == "floor":
        return within(floor - anchor)
    if facts.rule == "ceil":
        return within(floor_log2(maximum) + (not is_power) - anchor)
    # "mse": of the floor and its two neighbours the one with the least squared error.
    candidates = [within(floor - anchor + step) for step in (0, -1, 1)]
    return min(candidates, key=lambda exponent: _squared_error(block, facts, exponent))


def _squared_error(block: Sequence[float], facts: Facts, exponent: int) -> Fraction:
    scale = 2.0**exponent
    errors = (
        Fraction(facts.codes.nearest(value / scale)) * Fraction(scale) - Fraction(value)
        for value in block
    )
    return sum((error * error for error in errors), Fraction(0))


def floor_log2(x: float) -> int:
    return math.frexp(x)[1] - 1


def _with_zero_point(block: Sequence[float], facts: Facts, dtype: np.dtype) -> list[float]:
    """Asymmetric integers: the range always holds zero, and zero is a code."""
    low, high = min(0.0, *block), max(0.0, *block)
    exact = (Fraction(high) - Fraction(low)) / Fraction(facts.anchor)
    scale = _stored(np.float32(float(exact)), facts.storage)
    if scale == 0:
        return [0.0] * len(block)
    zero = facts.codes.nearest(_quotient(-low, scale))
    last = facts.codes.nearest(Fraction(_quotient(high, scale)) + Fraction(zero))
    if last < facts.anchor and facts.width <= ml_dtypes.finfo(_STORED_AS[facts.storage]).nmant + 1:
        # The codes are not spanned; under the next stored scale below they are.
        stored_as = _STORED_AS[facts.storage]
        below = np.float32(np.nextafter(stored_as(scale), stored_as(0)))
        scale = below if below > 0 else scale
        zero = facts.codes.nearest(_quotient(-low, scale))
    result = []
    for value in block:
        quotient = Fraction(_quotient(value, scale))
        code = facts.codes.nearest(quotient + Fraction(zero))
        smaller = np.arange(abs(code - zero), -1, -1) * np.sign(code - zero)
        result.append(_cast(code - zero, smaller.tolist(), scale, dtype))
    return result


def _scaled(value: float, facts: Facts, scale: float | np.float32, dtype: np.dtype) -> float:
    """The value of the code nearest to the quotient; a float32 scale gives a float32 quotient."""
    if scale == 0:
        return math.copysign(0.0, value) if facts.codes.signed_zero else 0.0
    quotient = _quotient(value, scale) if isinstance(scale, np.float32) else value / scale
    if facts.codes.signed_zero:
        magnitudes = facts.codes.magnitudes
        code = magnitudes.nearest(abs(quotient))
        return math.copysign(_cast(code, magnitudes.falling, scale, dtype), value)
    code = facts.codes.nearest(quotient)
    return _cast(code, facts.codes.falling if code > 0 else facts.codes.rising, scale, dtype)


def _quotient(value: float, scale: np.float32) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value) / scale)


def _cast(
    code: float, smaller: Sequence[float], scale: float | np.float32, dtype: np.dtype
) -> float:
    """Code times scale in float32, then in `dtype`.

    Where that is infinite, the first of the `smaller` codes, which fall in magnitude, that is not.
    """
    result = _product(code, scale, dtype)
    if math.isfinite(result):
        return result
    held = (_product(other, scale, dtype) for other in smaller if abs(other) < abs(code))
    return next((value for value in held if math.isfinite(value)), 0.0)


def _product(code: float, scale: float | np.float32, dtype: np.dtype) -> float:
    """Of an exact power of two, or of a float32: rounded to float32, then to `dtype`."""
    with np.errstate(over="ignore"):
        narrow = np.float32(code) if isinstance(scale, np.float32) else code
        product = np.float32(narrow * scale)
        # A code of 0 has no sign, whatever the scale's.
        return float((product if code else np.abs(product)).astype(dtype))
