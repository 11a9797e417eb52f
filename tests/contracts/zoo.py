"""The formats that every contract is checked on: each family, its corners, its options."""

from tests.oracles.facts import Facts, read

STATIC = [
    "fixed8.4", "fixed4.0", "fixed6.8", "fixed12.6", "fixed2.0",
    "log2", "log3", "log4", "log8", "log9", "log4(zero=false)", "log6(bias=20)",
    "minifloat-e4m3", "minifloat-e5m2", "minifloat-e2m1", "minifloat-e3m0", "minifloat-e1m2",
    "minifloat-e8m3", "minifloat-e4m3(bias=11)", "dmf-e4m3", "dmf-e2m2", "dmf-e3m4", "dmf-e3m1",
    "fp8-e4m3", "fp8-e5m2", "fp16", "bf16",
    "int8-tensor(absmax=3.5)", "int8f-tensor(absmax=3.5)", "int4f-tensor-sf32(absmax=2.5)",
]  # fmt: skip
"""Scales that do not depend on the data."""

POWER = [
    "bfp2", "bfp3", "bfp4", "bfp6", "bfp8", "bfp12", "bfp4-b32", "bfp5-b7", "bfp6(exponent=5)",
    "bmf8-e4m3", "bmf8-e5m2", "bmf6-e3m2", "bmf4-e2m1", "bmf4-e2m1-b32", "bmf5-e4m0",
    "bl2", "bl3", "bl4", "bl8", "bl4-b32", "bl4(zero=false)", "bl8(zero=false)",
    "mxint8", "mxfp8-e4m3", "mxfp8-e5m2", "mxfp6-e3m2", "mxfp6-e2m3", "mxfp4",
]  # fmt: skip
"""A power of two for each block, chosen by the floor rule."""

FLOAT = [
    "int2", "int3", "int4", "int6", "int8", "int4-g32", "int3-g16-sf16", "int8-g32-sf32",
    "int8-tensor", "int8-token", "nf4", "nf4-g64", "nf4-g16-sf32", "fp8-e4m3-tensor",
    "fp8-e5m2-token", "minifloat-e2m1-g32",
]  # fmt: skip
"""A float for each group, with symmetric codes (NF4's table apart)."""

FULL_RANGE = [
    "int2f", "int3f", "int4f", "int8f", "int4f-g32", "int2f-g16", "int3f-g16-sf16",
    "int5f-g64-sf32", "int8f-g32-sf32", "int8f-tensor", "int8f-token",
]  # fmt: skip
"""A float for each group, whose sign gives the lowest code to the farthest value."""

ZERO_POINT = ["int2a", "int4a", "int4a-g64", "int8a-g32", "int3a-g16-sf16", "int4a-g16-sf32"]
TWO_LEVEL = ["nvfp4", "nvfp4-token"]
OTHER_RULES = ["bfp4(scale_rule=ceil)", "bfp4(scale_rule=mse)", "mxfp4(scale_rule=mse)"]

ADAPTIVE = [*POWER, *FLOAT, *FULL_RANGE, *ZERO_POINT, *TWO_LEVEL, *OTHER_RULES]
"""The scale follows the data, so a power of two passes through."""

ALL = [*STATIC, *ADAPTIVE, "nvfp4(absmax=3.5)"]

FACTS: dict[str, Facts] = {text: read(text) for text in ALL}

SYMMETRIC = [
    text
    for text, facts in FACTS.items()
    if facts.codes.values == tuple(-value for value in reversed(facts.codes.values))
]
"""Formats whose codes mirror each other: not fixed point, full ranges, zero points and NF4."""

ROWS_APART = [text for text in ALL if FACTS[text].group != "tensor" and text != "nvfp4"]
"""Formats in which no row of the other axes looks at another."""
