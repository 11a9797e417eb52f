"""Compiled loops of the CPU path: tiles that stay in the cache, one read and one write a value.

All compiled code stands in this file, for numba's cache on disk looks at the file of a loop alone:
a change elsewhere would go unseen. Loops are plain, so that LLVM vectorises them; indices that are
summed are unsigned, or numba would look for negative ones at every value. Nothing is reassociated
or contracted (`fastmath` stays off), so the arithmetic is IEEE 754's, as eager torch's is.

Importing this module imports numba: only `mpq.kernels.cpu` does, on first use.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba.extending import overload
from numpy import float32, float64, int32, int64, uint64
from numpy.typing import NDArray

from mpq.kernels.cpu_numbers import (
    ASYMMETRIC,
    FLOAT,
    INTEGER,
    NESTED,
    POWER,
    SHARED,
    SPANNING,
    STORED_BFLOAT16,
    STORED_FLOAT16,
    SYMMETRIC,
    Given,
    Numbers,
    Place,
    Rounding,
    Scaling,
    Tile,
)

Loop = TypeVar("Loop", bound=Callable[..., Any])
Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

INFINITY = int32(0x7F800000)
MAGNITUDE = int32(0x7FFFFFFF)
SIGN = int32(-0x80000000)
HALF_INFINITY = int32(0x7C00)


def compiled(loop: Loop) -> Loop:
    """The function, compiled on first call, kept on disk, without the interpreter's lock."""
    return numba.njit(loop, nogil=True, cache=True, error_model="numpy")  # type: ignore[no-any-return]


# --- one value ------------------------------------------------------------------------------


@compiled
def bits_of(value: float32) -> int32:
    """The bits of a float32."""
    return np.float32(value).view(np.int32)


@compiled
def float_of(bits: int32) -> float32:
    """The float32 of these bits."""
    return np.int32(bits).view(np.float32)


@compiled
def round_bits(magnitude: int32, shift: int32) -> int32:
    """The bits of a float32 without its last `shift` bits, to nearest, ties to even."""
    half = int32(int32(int32(1) << int32(shift)) >> int32(1))
    rounds = int32(half != 0)
    odd = int32(int32(magnitude >> int32(shift)) & rounds)
    raised = int32(int32(magnitude + int32(half - rounds)) + odd)
    return int32(raised & int32(int32(-1) << int32(shift)))


@compiled
def round_to_float(value: float32, r: Rounding) -> float32:
    """The nearest value of a float element."""
    bits = bits_of(value)
    size = at_most(float_of(int32(bits & MAGNITUDE)), r.high)
    steps = float32(float32(size + r.magic) - r.magic)
    digits = float_of(round_bits(bits_of(size), r.shift))
    rounded = steps if size < r.normal else digits
    return float_of(int32(bits_of(rounded) | int32(bits & SIGN)))


@compiled
def round_to_power(value: float32, r: Rounding) -> float32:
    """The nearest power of two, or zero; a tie goes to the even code."""
    bits = bits_of(value)
    magnitude = bits_of(at_most(float_of(int32(bits & MAGNITUDE)), r.high))
    odd = int32(int32(int32(magnitude >> int32(23)) - int32(r.first)) & int32(1))
    nearest = int32(int32(int32(magnitude + odd) + int32(0x3FFFFF)) & INFINITY)
    power = max(nearest, int32(r.lowest))
    held = int32(0) if magnitude <= int32(r.underflow) else power
    return float_of(int32(held | int32(bits & SIGN)))


@compiled
def at_most(value: float32, high: float32) -> float32:
    """The value, or the bound that it exceeds."""
    return high if value > high else value


@compiled
def at_least(value: float32, low: float32) -> float32:
    """The value, or the bound that it falls short of."""
    return low if value < low else value


@compiled
def clamped(value: float32, low: float32, high: float32) -> float32:
    """The value within bounds."""
    return at_least(at_most(value, high), low)


@compiled
def from_half(bits: int32) -> float32:
    """The float32 of a float16's bits."""
    size = int32(int32(bits & int32(0x7FFF)) << int32(13))
    scaled = bits_of(float32(float_of(size) * float32(2.0**112)))
    is_special = int32(bits & HALF_INFINITY) == HALF_INFINITY
    held = int32(size | INFINITY) if is_special else scaled
    return float_of(int32(held | int32(bits & SIGN)))


@compiled
def to_half(value: float32) -> int32:
    """The bits of the nearest float16; NaN stays NaN."""
    bits = bits_of(value)
    magnitude = int32(bits & MAGNITUDE)
    normal = int32(int32(round_bits(magnitude, 13) - int32(112 << 23)) >> int32(13))
    small = int32(bits_of(float32(float_of(magnitude) + float32(0.5))) - int32(126 << 23))
    code = small if magnitude < int32(113 << 23) else min(normal, HALF_INFINITY)
    held = int32(0x7E00) if magnitude > INFINITY else code
    return int32(held | int32(int32(bits >> int32(16)) & int32(0x8000)))


@compiled
def to_bfloat16(value: float32) -> int32:
    """The bits of the nearest bfloat16; NaN stays NaN."""
    bits = bits_of(value)
    magnitude = int32(bits & MAGNITUDE)
    code = int32(round_bits(magnitude, 16) >> int32(16))
    held = int32(0x7FC0) if magnitude > INFINITY else code
    return int32(held | int32(int32(bits >> int32(16)) & int32(0x8000)))


def widened(stored: Any) -> float32:
    """The float32 of what a tensor stores: float32, or the bits of bfloat16 or float16."""
    raise NotImplementedError("only compiled code calls this")


def narrowed(value: float32, stored: Any) -> Any:
    """A float32 as `stored` is stored."""
    raise NotImplementedError("only compiled code calls this")


def _widened(stored: Any) -> Callable[..., Any]:
    if stored == numba.types.uint16:
        return lambda stored: float_of(int32(stored) << int32(16))
    if stored == numba.types.int16:
        return lambda stored: from_half(int32(stored))
    return lambda stored: stored


def _narrowed(value: Any, stored: Any) -> Callable[..., Any]:  # noqa: ARG001
    # The arguments' types choose: numba wants the names of `narrowed` in each.
    if stored == numba.types.uint16:
        return lambda value, stored: np.uint16(to_bfloat16(value))  # noqa: ARG005
    if stored == numba.types.int16:
        return lambda value, stored: np.int16(to_half(value))  # noqa: ARG005
    return lambda value, stored: value  # noqa: ARG005


overload(widened, strict=False)(_widened)
overload(narrowed, strict=False)(_narrowed)


# --- a tile of values -----------------------------------------------------------------------


@compiled
def round_values(v: Floats, zero_points: Floats, count: int, r: Rounding) -> None:
    """Rounds values in units of the element, in place; a table needs `zero_points` as scratch."""
    if r.kind == INTEGER:
        for i in range(count):
            v[i] = np.rint(clamped(v[i], r.low, r.high)) + r.zero
    elif r.kind == FLOAT:
        for i in range(count):
            v[i] = round_to_float(v[i], r)
    elif r.kind == POWER:
        for i in range(count):
            v[i] = round_to_power(v[i], r)
    elif r.kind == ASYMMETRIC:
        for i in range(count):
            v[i] = round_asymmetric(v[i], zero_points[i], r.high)
    else:
        round_to_table(v, zero_points, count, r)


@compiled
def round_to_table(v: Floats, entries: Floats, count: int, r: Rounding) -> None:
    """The nearest entries: those of the highest thresholds that are reached."""
    for i in range(count):
        entries[i] = r.values[0]
    for t in range(r.values.size - 1):
        threshold, entry = r.thresholds[t], r.values[t + 1]
        for i in range(count):
            entries[i] = entry if v[i] >= threshold else entries[i]
    for i in range(count):
        v[i] = entries[i]


@compiled
def round_asymmetric(value: float32, zero_point: float32, highest: float32) -> float32:
    """The nearest whole number whose sum with the zero point is a code; a tie goes to even."""
    rounded = np.rint(value)
    error = np.trunc(float32((value - rounded) * float32(2.0)))
    half = float32(zero_point * float32(0.5))
    odd = float32(zero_point - float32(np.floor(half) * float32(2.0)))
    rounded = float32(rounded + float32(error * odd))
    return float32(clamped(rounded, -zero_point, float32(highest - zero_point)) + float32(0.0))


@compiled
def divide(v: Floats, units: Floats, count: int) -> None:
    """Values in units of the element; an underflowed unit counts as 1."""
    for i in range(count):
        v[i] = v[i] if units[i] == 0 else float32(v[i] / units[i])


@compiled
def multiply(v: Floats, units: Any, count: int) -> None:
    """The inverse of `divide`; a unit of NaN makes its values NaN."""
    for i in range(count):
        v[i] = float32(v[i] * units[i])


@compiled
def bound(v: Floats, lows: Floats, highs: Floats, count: int, zero: float32) -> None:
    """Values within bounds, with a zero of the element's."""
    for i in range(count):
        v[i] = clamped(v[i], lows[i], highs[i]) + zero


@compiled
def spread(of_blocks: Any, tile: Tile, of_values: Any) -> None:
    """What each block has, for each of its values."""
    height, blocks = uint64(tile.height), uint64(tile.blocks)
    if tile.across:
        for row in range(height):
            start = row * blocks
            for lane in range(blocks):
                of_values[start + lane] = of_blocks[lane]
    else:
        for block in range(blocks):
            start = block * height
            one = of_blocks[block]
            for i in range(start, start + height):
                of_values[i] = one


@compiled
def tile_at(place: Place, index: int) -> Tile:
    """A tile by its number."""
    if place.across:
        lanes = -(-place.inner // place.blocks)
        lane = index % lanes * place.blocks
        across = index // lanes
        bands = -(-place.length // place.size)
        outer, first = across // bands, across % bands * place.size
        height = min(place.size, place.length - first)
        width = min(place.blocks, place.inner - lane)
        start = (outer * place.length + first) * place.inner + lane
        return Tile(True, start, height, width, width, height * width, outer * place.inner + lane)
    reach = place.blocks * place.size
    segments = -(-place.length // reach)
    first = index % segments * reach
    stored = min(reach, place.length - first)
    blocks = -(-stored // place.size)
    start = index // segments * place.length + first
    return Tile(False, start, place.size, blocks, stored, blocks * place.size, 0)


@compiled
def load(x: Any, place: Place, tile: Tile, v: Floats) -> None:
    """The tile's values as float32."""
    width = uint64(tile.stored)
    for row in range(uint64(tile.height if tile.across else 1)):
        source, target = uint64(tile.start) + row * uint64(place.inner), row * width
        for i in range(width):
            v[target + i] = widened(x[source + i])
    for i in range(uint64(tile.stored), uint64(tile.count if not tile.across else 0)):
        v[i] = float32(0.0)


@compiled
def store(v: Floats, place: Place, tile: Tile, out: Any) -> None:
    """Writes the tile."""
    width = uint64(tile.stored)
    for row in range(uint64(tile.height if tile.across else 1)):
        target, source = uint64(tile.start) + row * uint64(place.inner), row * width
        for i in range(width):
            out[target + i] = narrowed(v[source + i], out[target + i])


@compiled
def store_checked(v: Floats, tile: Tile, x: Any, out: Any) -> None:
    """Writes a tile along memory; where `x` is not finite, NaN."""
    start = uint64(tile.start)
    for i in range(uint64(tile.stored)):
        size = int32(bits_of(widened(x[start + i])) & MAGNITUDE)
        value = v[i] if size < INFINITY else float32(np.nan)
        out[start + i] = narrowed(value, out[start + i])


# --- the scales of its blocks ---------------------------------------------------------------


@compiled
def ordered(value: float32) -> int32:
    """A whole number in the order of the float: below 0 for negatives, NaN outermost."""
    bits = bits_of(value)
    return int32(bits ^ int32(int32(bits >> int32(31)) & MAGNITUDE))


@compiled
def peaks_of(v: Floats, tile: Tile, peaks: Integers) -> None:
    """The bits of each block's largest magnitude."""
    height, blocks = uint64(tile.height), uint64(tile.blocks)
    if tile.across:
        for lane in range(blocks):
            peaks[lane] = int32(0)
        for row in range(height):
            start = row * blocks
            for lane in range(blocks):
                bits = int32(bits_of(v[start + lane]) & MAGNITUDE)
                peaks[lane] = max(peaks[lane], bits)
    else:
        for block in range(blocks):
            peak = int32(0)
            for i in range(block * height, block * height + height):
                peak = max(peak, int32(bits_of(v[i]) & MAGNITUDE))
            peaks[block] = peak


@compiled
def extremes_of(v: Floats, tile: Tile, lows: Integers, highs: Integers) -> None:
    """The least and largest value of each block and 0, as `ordered` whole numbers."""
    height, blocks = uint64(tile.height), uint64(tile.blocks)
    if tile.across:
        for lane in range(blocks):
            lows[lane] = highs[lane] = int32(0)
        for row in range(height):
            start = row * blocks
            for lane in range(blocks):
                key = ordered(v[start + lane])
                lows[lane] = min(lows[lane], key)
                highs[lane] = max(highs[lane], key)
    else:
        for block in range(blocks):
            low = high = int32(0)
            for i in range(block * height, block * height + height):
                key = ordered(v[i])
                low, high = min(low, key), max(high, key)
            lows[block], highs[block] = low, high


@compiled
def stored_bits(wanted: float32, stored: int) -> int32:
    """The bits of a scale as it is stored, saturating at what that holds."""
    if stored == STORED_BFLOAT16:
        return min(to_bfloat16(wanted), int32(0x7F7F))
    if stored == STORED_FLOAT16:
        return min(to_half(wanted), int32(0x7BFF))
    return min(bits_of(wanted), int32(0x7F7FFFFF))


@compiled
def stored_scale(bits: int, stored: int) -> float32:
    """The scale of which these are the stored bits."""
    if stored == STORED_BFLOAT16:
        return float_of(int32(bits << int32(16)))
    if stored == STORED_FLOAT16:
        return from_half(int32(bits))
    return float_of(bits)


@compiled
def symmetric_units(peaks: Integers, units: Floats, count: int, s: Scaling, r: Rounding) -> None:
    """The largest magnitude over the element's largest, as stored."""
    for i in range(count):
        wanted = float32(float_of(peaks[i]) / float32(r.largest))
        unit = stored_scale(stored_bits(wanted, s.stored), s.stored)
        units[i] = unit if peaks[i] < INFINITY else float32(np.nan)


@compiled
def nested_units(
    peaks: Integers, units: Floats, above: Floats, place: Place, tile: Tile, n: Numbers
) -> None:
    """An e4m3 of the scale above, times it."""
    for i in range(tile.blocks):
        at = tile.row + i if tile.across else (tile.start + i * tile.height) // place.row
        scale = above[at if above.size > 1 else 0]
        over = scale if scale != 0 else float32(1.0)
        wanted = float32(float32(float_of(peaks[i]) / float32(n.element.largest)) / over)
        unit = float32(round_to_float(wanted, n.block_scale) * scale)
        units[i] = unit if peaks[i] < INFINITY else float32(np.nan)


@compiled
def zero_point_of(low: float32, unit: float32, highest: float32) -> float32:
    """The whole number nearest to -low/unit among the codes."""
    divisor = unit if unit != 0 else float32(1.0)
    return clamped(np.rint(float32(-low / divisor)), float32(0.0), highest)


@compiled
def spanning_units(
    lows: Integers, highs: Integers, units: Floats, zero_points: Floats, count: int, n: Numbers
) -> None:
    """The range of a block over the codes, and its zero point."""
    r, s = n.element, n.scale
    for i in range(count):
        key = lows[i]
        low = float_of(int32(key ^ int32(int32(key >> int32(31)) & MAGNITUDE)))
        high = float_of(highs[i])
        wanted = float32((float64(high) - float64(low)) / r.largest)
        bits = stored_bits(wanted, s.stored)
        unit = stored_scale(bits, s.stored)
        zero_point = zero_point_of(low, unit, r.high)
        if s.spans and bits > 1:
            divisor = unit if unit != 0 else float32(1.0)
            last = round_asymmetric(float32(high / divisor), zero_point, r.high) + zero_point
            if last < r.high:
                unit = stored_scale(int32(bits - 1), s.stored)
                zero_point = zero_point_of(low, unit, r.high)
        is_finite = highs[i] < INFINITY and lows[i] > ~INFINITY
        units[i] = unit if is_finite else float32(np.nan)
        zero_points[i] = zero_point


@compiled
def needs_two_steps(peaks: Integers, count: int, s: Scaling) -> bool:
    """Whether a block's scale or its inverse lies beyond float32."""
    low, high = int32(0x7FFFFFFF), int32(0)
    for i in range(count):
        peak = peaks[i]
        high = max(high, peak)
        low = min(low, peak if peak != 0 or s.zeros_matter else int32(0x7FFFFFFF))
    return low < s.lowest_safe or high > s.highest_safe


@compiled
def shared_units(
    peaks: Integers, units: Floats, roots: Floats, count: int, s: Scaling, is_wide: bool
) -> None:
    """2^(exponent of the largest magnitude - that of the element's), by the scale's rule.

    What lies beyond float32 is the product of two of its powers of two, a unit and a root.
    """
    lowest, highest = int64(s.lowest), int64(s.highest)
    if not is_wide:
        # Only blocks of zeros come to these bounds, and any scale gives them their zeros.
        lowest, highest = max(lowest, int64(s.offset - 100)), min(highest, int64(127))
    for i in range(count):
        bits = np.float64(float_of(peaks[i])).view(np.int64) + int64(s.carry)
        exponent = min(max((bits >> 52) - 1023, lowest), highest) - int64(s.offset)
        half = exponent >> 1 if is_wide else int64(0)
        roots[i] = float_of(int32((half + 127) << 23))
        unit = float_of(int32((exponent - half + 127) << 23))
        units[i] = unit if peaks[i] < INFINITY else float32(np.nan)


@compiled
def truncated(limit: float, r: Rounding, negative: bool) -> float32:
    """The largest magnitude of the element at or below a limit."""
    limit = min(limit, r.largest)
    if r.kind == INTEGER or r.kind == ASYMMETRIC:  # noqa: PLR1714
        return float32(np.floor(limit))
    if r.kind == FLOAT or r.kind == POWER:  # noqa: PLR1714
        exponent = max((np.float64(limit).view(np.int64) >> 52) - 1023, int64(r.step))
        step = np.int64((exponent - int64(r.digits) + 1023) << 52).view(np.float64)
        return float32(np.floor(limit / step) * step)
    best = float32(0.0)
    for t in range(r.values.size):
        size = -r.values[t] if negative else r.values[t]
        best = max(best, size if size <= limit else float32(0.0))
    return best


@compiled
def bounds_of(
    units: Floats, roots: Floats, lows: Floats, highs: Floats, tile: Tile, n: Numbers
) -> bool:
    """Sets what each block's values may reach in the dtype; whether that bounds any of them."""
    any_bound, largest = False, n.element.largest
    for i in range(tile.blocks):
        unit = float64(units[i]) * float64(roots[i])
        if not unit * largest <= n.scale.limit:
            any_bound = True
            highs[i] = truncated(n.scale.held / unit, n.element, False)
            lows[i] = -truncated(n.scale.held / unit, n.element, True)
        else:
            lows[i], highs[i] = float32(-largest), float32(largest)
    return any_bound


# --- a share of a tensor's tiles ------------------------------------------------------------


@compiled
def quantize_tiles(
    x: Any, out: Any, place: Place, n: Numbers, above: Floats, first: int, last: int
) -> None:
    """Writes the tiles `first` to `last` in a format whose scales are chosen for each block."""
    r, s = n.element, n.scale
    v, units = np.empty(place.room, np.float32), np.empty(place.room, np.float32)
    roots, extra = np.empty(place.room, np.float32), np.empty(place.room, np.float32)
    unit, root = np.empty(place.blocks, np.float32), np.ones(place.blocks, np.float32)
    low, high = np.empty(place.blocks, np.float32), np.empty(place.blocks, np.float32)
    peaks, least = np.empty(place.blocks, np.int32), np.empty(place.blocks, np.int32)
    for index in range(first, last):
        tile = tile_at(place, index)
        load(x, place, tile, v)
        is_wide = False
        if s.kind == SPANNING:
            extremes_of(v, tile, least, peaks)
            spanning_units(least, peaks, unit, low, tile.blocks, n)
            spread(low, tile, extra)
        else:
            peaks_of(v, tile, peaks)
        if s.kind == SYMMETRIC:
            symmetric_units(peaks, unit, tile.blocks, s, r)
        elif s.kind == NESTED:
            nested_units(peaks, unit, above, place, tile, n)
        elif s.kind == SHARED:
            is_wide = needs_two_steps(peaks, tile.blocks, s)
            shared_units(peaks, unit, root, tile.blocks, s, is_wide)
        spread(unit, tile, units)
        divide(v, units, tile.count)
        if is_wide:
            spread(root, tile, roots)
            divide(v, roots, tile.count)
        round_values(v, extra, tile.count, r)
        if bounds_of(unit, root, low, high, tile, n):
            spread(low, tile, roots)
            spread(high, tile, extra)
            bound(v, roots, extra, tile.count, r.zero)
            spread(root, tile, roots)
        if is_wide:
            multiply(v, roots, tile.count)
        multiply(v, units, tile.count)
        store(v, place, tile, out)


@compiled
def quantize_values(
    x: Any, out: Any, place: Place, r: Rounding, given: Given, first: int, last: int
) -> None:
    """Writes the tiles `first` to `last` under one unit for all values."""
    v, zero_points = np.empty(place.room, np.float32), np.empty(place.room, np.float32)
    for i in range(place.room):
        zero_points[i] = given.zero_point
    for index in range(first, last):
        tile = tile_at(place, index)
        load(x, place, tile, v)
        for i in range(tile.count):
            v[i] = float32(v[i] / given.divisor)
        round_values(v, zero_points, tile.count, r)
        for i in range(tile.count):
            bounded = float32(clamped(v[i], given.low, given.high) + r.zero)
            v[i] = float32(bounded * given.unit)
        if given.keeps_faults:
            store_checked(v, tile, x, out)
        else:
            store(v, place, tile, out)


@compiled
def find_extremes(
    x: Any, place: Place, lows: Integers, highs: Integers, is_finite: bool, first: int, last: int
) -> None:
    """The least and largest values of each tile, and 0; of the finite ones if so asked."""
    v = np.empty(place.room, np.float32)
    for index in range(first, last):
        tile = tile_at(place, index)
        load(x, place, tile, v)
        if is_finite:
            for i in range(tile.count):
                size = int32(bits_of(v[i]) & MAGNITUDE)
                v[i] = v[i] if size < INFINITY else float32(0.0)
        at = uint64(index) * uint64(place.blocks)
        if tile.across:
            at = uint64(tile.row)
        extremes_of(v, tile, lows[at:], highs[at:])
