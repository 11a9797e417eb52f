"""docs/formats.md tells the truth: its table is what the code says, and no family is missing.

`python -m tests.formats.test_formats_docs` prints the table to paste.
"""

import re
from pathlib import Path

import numpy as np
import torch

from mpq.formats.element import FloatElement, IntegerElement, LogElement, reach
from mpq.formats.format import Format
from mpq.formats.scale import StaticScale
from mpq.formats.zoo import FAMILIES, parse_format
from mpq.kernels.fake_quant import quantize

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
LISTED = (
    *("fixed8.4", "int8-tensor", "int8-token", "int4-g128", "int4f-g128", "int2-g128"),
    *("int2f-g128", "int4a-g64", "log8", "log4"),
    *("minifloat-e4m3", "minifloat-e2m1", "dmf-e4m3", "bfp8", "bfp6", "bfp4", "bfp4-b32", "bfp2"),
    *("bmf8-e4m3", "bmf4-e2m1", "bl8", "bl4", "mxint8", "mxfp8-e4m3", "mxfp8-e5m2"),
    *("mxfp6-e2m3", "mxfp6-e3m2", "mxfp4", "nvfp4", "nf4-g64", "fp8-e4m3", "fp8-e5m2"),
    *("fp16", "bf16"),
)
SHAPE = (4096, 4096)


def number(value: float) -> str:
    """A number as a reader writes it: powers of two beyond six digits as powers."""
    mantissa, exponent = value, 0
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        while mantissa >= 2:
            mantissa, exponent = mantissa / 2, exponent + 1
        while mantissa < 1:
            mantissa, exponent = mantissa * 2, exponent - 1
        return f"2^{exponent}" if mantissa == 1 else f"{mantissa:.9g}·2^{exponent}"
    return f"{value:.7g}"


def smallest(named: Format) -> float:
    """The smallest magnitude of the element that is not zero."""
    match named.element:
        case FloatElement(min_exponent=lowest, fraction=digits):
            return float(2.0 ** (lowest - digits))
        case LogElement(min_exponent=lowest):
            return float(2.0**lowest)
        case IntegerElement():
            return 1.0
    return min(abs(value) for value in named.element.values if value)


def decibels(text: str, deviation: float) -> float:
    """The signal-to-noise ratio of normal values, 20·log10 |x| / |x - quantize(x)|."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 1024))) * deviation
    noise = (quantize(x.float(), text) - x).square().sum()
    return float(10 * torch.log10(x.square().sum() / noise))


def rows() -> list[str]:
    """The table's rows."""
    lines = []
    for text in LISTED:
        named = parse_format(text)
        unit = 1.0
        if isinstance(named.scale, StaticScale):
            unit = 2.0**-named.scale.fraction
        low, high = smallest(named) * unit, reach(named.element) * unit
        block = "none" if named.block is None else f"{named.block.count(SHAPE):,}"
        bits = named.bits(SHAPE) / (SHAPE[0] * SHAPE[1])
        lines.append(
            f"| `{text}` | {named.element.width} | {number(low)} | {number(high)} "
            f"| {block} | {bits:.4f} | {decibels(text, 1.0):.1f} | {decibels(text, 0.02):.1f} |"
        )
    return lines


def test_the_table_is_what_the_code_says():
    listed = re.findall(r"^\| `[^|]*\|.*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    listed = [line for line in listed if line.count("|") == 9]
    for told, row in zip(listed, rows(), strict=True):
        *facts, wide, narrow = told.strip("| ").split(" | ")
        *expected, its_wide, its_narrow = row.strip("| ").split(" | ")
        assert facts == expected
        assert abs(float(wide) - float(its_wide)) <= 0.1
        assert abs(float(narrow) - float(its_narrow)) <= 0.1


def test_every_family_has_a_section():
    page = PAGE.read_text(encoding="utf-8")
    for family in FAMILIES:
        assert any(f"`{example}`" in page for example in family.examples), family.examples


def test_every_text_form_on_the_page_is_a_format():
    page = PAGE.read_text(encoding="utf-8")
    heads = "fixed|int|log|minifloat-e|dmf-e|bfp|bmf|bl|mxint|mxfp|nvfp|nf|fp|bf"
    forms = set(re.findall(rf"`((?:{heads})\d[^` ]*)`", page))
    assert len(forms) > 30
    for text in forms:
        parse_format(text)


if __name__ == "__main__":
    print("\n".join(rows()))  # noqa: T201
