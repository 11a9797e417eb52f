"""What a format's text says, read by a small parser of the oracle's own (design section 3)."""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from tests.oracles import codes as sets
from tests.oracles.codes import Codes

# Bits of exponent and of mantissa, and the largest value, of what a float scale is stored in.
STORAGE_BITS = {"bf16": 16, "fp16": 16, "fp32": 32, "e4m3": 8}


@dataclass(frozen=True)
class Facts:
    """One format, as plain facts.

    `scale`: "none"; "float" (the maximum over the largest code); "signed" (what is farthest from
    zero over the lowest code); "range" (maximum less minimum, with a zero point); "power" (a
    shared power of two); "two-level" (NVFP4).
    `group`: what shares a scale: so many values along the axis, "row" (all of the axis),
    "tensor", or (rows, columns).
    `anchor`: the magnitude of the element that the maximum of a block is scaled onto: its largest
    value for a float scale, its highest power of two for a shared exponent.
    `exponents`: the lowest and highest exponent that is stored for a block; `stores_scale`: it is
    the scale's own, not that of the block's maximum.
    """

    text: str
    codes: Codes
    width: int
    scale: str = "none"
    group: int | str | tuple[int, int] = "row"
    storage: str = "bf16"
    anchor: float = 1.0
    rule: str = "floor"
    exponents: tuple[int, int] = (-127, 128)
    stores_scale: bool = False
    absmax: float | None = None
    per_token: bool = False
    round_maximum: bool = False


@functools.cache
def read(text: str) -> Facts:
    """The facts of a text form.

    Raises:
        ValueError: the oracle does not know this text.
    """
    match = re.fullmatch(r"([a-z]+)([^()]*?)(?:\((.*)\))?", text)
    if match is None:
        raise ValueError(text)
    family, rest, inside = match.groups()
    options = dict(pair.split("=") for pair in inside.split(",")) if inside else {}
    reader = _READERS.get(family)
    if reader is None:
        raise ValueError(text)
    head, *suffixes = rest.split("-")
    return reader(text, head, suffixes, options)


def _exponent_and_mantissa(suffixes: list[str]) -> tuple[int, int]:
    match = re.fullmatch(r"e(\d+)m(\d+)", suffixes[0])
    if match is None:
        raise ValueError(suffixes)
    return int(match[1]), int(match[2])


def _group(suffixes: list[str], options: dict[str, str], letter: str, default: int | str):
    if "block" in options:
        rows, _, columns = options["block"].partition("x")
        return (int(rows), int(columns)) if columns else int(rows)
    for suffix in suffixes:
        if re.fullmatch(letter + r"\d+", suffix):
            return int(suffix[1:])
        if suffix == "tensor":
            return "tensor"
    return default


def _storage(suffixes: list[str]) -> str:
    stored = {"sf16": "fp16", "sf32": "fp32", "sbf16": "bf16"}
    return next((stored[s] for s in suffixes if s in stored), "bf16")


def _absmax(options: dict[str, str]) -> float | None:
    return float(options["absmax"]) if "absmax" in options else None


def _bias(options: dict[str, str]) -> int | None:
    return int(options["bias"]) if "bias" in options else None


def _fixed(text, head, suffixes, options):
    width, fraction = (int(part) for part in "-".join([head, *suffixes]).split("."))
    return Facts(text, sets.twos_complement(width, fraction), width)


def _int(text, head, suffixes, options):
    kind = head.lstrip("0123456789")
    width = int(head.removesuffix(kind))
    common = {
        "group": _group(suffixes, options, "g", "row"),
        "storage": _storage(suffixes),
        "absmax": _absmax(options),
    }
    if kind == "f":
        full = sets.twos_complement(width)
        scale = "signed" if common["absmax"] is None else "float"
        return Facts(text, full, width, scale, anchor=-full.values[0], **common)
    if kind == "a":
        # The codes 0 .. 2^b - 1 less the zero point; the scalar oracle shifts them.
        unsigned = sets.from_patterns(width, Fraction, signed_zero=False)
        return Facts(text, unsigned, width, "range", anchor=2.0**width - 1, **common)
    symmetric = sets.twos_complement(width, symmetric=True)
    return Facts(text, symmetric, width, "float", anchor=symmetric.largest, **common)


def _log(text, head, suffixes, options):
    zero = options.get("zero", "true") == "true"
    return Facts(text, sets.logarithmic(int(head), _bias(options), zero), int(head))


def _minifloat(text, head, suffixes, options):
    e, m = _exponent_and_mantissa(suffixes)
    return _maybe_scaled(text, sets.minifloat(e, m, _bias(options)), 1 + e + m, suffixes, options)


def _dmf(text, head, suffixes, options):
    e, m = _exponent_and_mantissa(suffixes)
    return Facts(text, sets.denormalised(e, m, _bias(options)), 1 + e + m)


def _shared(suffixes, options, default_block: int):
    bits = int(options.get("exponent", 8))
    return {
        "scale": "power",
        "group": _group(suffixes, options, "b", default_block),
        "rule": options.get("scale_rule", "floor"),
        "exponents": (1 - 2 ** (bits - 1), 2 ** (bits - 1)),
    }


def _bfp(text, head, suffixes, options):
    width = int(head)
    return Facts(
        text,
        sets.sign_magnitude(width),
        width,
        anchor=2.0 ** (width - 2),
        **_shared(suffixes, options, 16),
    )


def _bmf(text, head, suffixes, options):
    e, m = _exponent_and_mantissa(suffixes)
    elements = sets.minifloat(e, m)
    return Facts(
        text, elements, int(head), anchor=_top_binade(elements), **_shared(suffixes, options, 16)
    )


def _bl(text, head, suffixes, options):
    elements = sets.logarithmic(int(head), zero=options.get("zero", "true") == "true")
    return Facts(
        text,
        elements,
        int(head),
        anchor=elements.largest,
        round_maximum=True,
        **_shared(suffixes, options, 16),
    )


def _mx(text, head, suffixes, options):
    if text.startswith("mxint"):
        # OCP MX 1.0, section 5.3.4: two's complement with an implied scale of 2^-6.
        elements = sets.twos_complement(8, fraction_bits=6, symmetric=True)
    else:
        name = suffixes[0] if suffixes and suffixes[0][0] == "e" else "e2m1"
        elements = OCP_ELEMENTS[name]()
    shared = _shared(suffixes, options, 32)
    shared["exponents"] = (-127, 127)  # E8M0, OCP MX 1.0 section 5.4.1: the top code is NaN
    return Facts(
        text, elements, int(head), anchor=_top_binade(elements), stores_scale=True, **shared
    )


def _nvfp(text, head, suffixes, options):
    return Facts(
        text,
        sets.minifloat(2, 1),
        4,
        "two-level",
        group=_group(suffixes, options, "b", 16),
        storage="e4m3",
        anchor=6.0,
        absmax=_absmax(options),
        per_token="token" in suffixes,
    )


def _nf(text, head, suffixes, options):
    return Facts(
        text,
        sets.normal_float(),
        4,
        "float",
        group=_group(suffixes, options, "g", "row"),
        storage=_storage(suffixes),
        absmax=_absmax(options),
    )


def _fp(text, head, suffixes, options):
    if head == "32":
        return Facts(text, Codes((), (), signed_zero=True), 32)
    if head == "16":
        return _maybe_scaled(text, sets.ieee(5, 10), 16, suffixes, options)
    return _maybe_scaled(text, OCP_ELEMENTS[suffixes[0]](), 8, suffixes, options)


def _maybe_scaled(text, elements, width, suffixes, options):
    """A float stands alone, or under a float scale if a suffix says who shares it."""
    scaled = any(re.fullmatch(r"tensor|token|g\d+", suffix) for suffix in suffixes)
    return Facts(
        text,
        elements,
        width,
        "float" if scaled else "none",
        group=_group(suffixes, options, "g", "row"),
        storage=_storage(suffixes),
        anchor=elements.largest,
        absmax=_absmax(options),
    )


def _bf(text, head, suffixes, options):
    return _maybe_scaled(text, sets.ieee(8, 7), 16, suffixes, options)


def _top_binade(elements: Codes) -> float:
    power = 1.0
    while power * 2 <= elements.largest:
        power *= 2
    while power > elements.largest:
        power /= 2
    return power


OCP_ELEMENTS = {
    "e4m3": sets.ocp_e4m3,
    "e5m2": lambda: sets.ieee(5, 2),
    "e3m2": lambda: sets.minifloat(3, 2),
    "e2m3": lambda: sets.minifloat(2, 3),
    "e2m1": lambda: sets.minifloat(2, 1),
}

_READERS = {
    "fixed": _fixed,
    "int": _int,
    "log": _log,
    "minifloat": _minifloat,
    "dmf": _dmf,
    "bfp": _bfp,
    "bmf": _bmf,
    "bl": _bl,
    "mxint": _mx,
    "mxfp": _mx,
    "nvfp": _nvfp,
    "nf": _nf,
    "fp": _fp,
    "bf": _bf,
}
