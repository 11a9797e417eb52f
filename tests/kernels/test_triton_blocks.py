"""The kernels compile for GPUs, to instructions of which each has one correctly rounded result.

Compiled in a process of its own, where Triton does not interpret; no GPU is needed. Values are
compared with eager's in test_triton.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the wheel is an extra: pip install 'mpq[triton]'")

ROOT = Path(__file__).parents[2]

CASES = [
    *("fixed8.4/float32/-1", "log8/bfloat16/-1", "minifloat-e4m3/float16/-1", "bf16/float32/-1"),
    *("minifloat-e8m3/float32/-1", "bfp4/float32/-1", "bfp4/bfloat16/0", "bl8/float32/-1"),
    *("bl4(zero=false)/float16/-1", "mxfp8-e5m2/float16/-1", "mxint8/bfloat16/-1"),
    *("bfp4(scale_rule=mse)/float32/-1", "bfp4(scale_rule=ceil,block=4x16)/float32/-1"),
    *("int4/float32/-1", "int4-g64-sf16/bfloat16/0", "int8-tensor(absmax=2.0)/float16/-1"),
    *("nf4-g64/float32/-1", "fp8-e4m3-tensor/bfloat16/-1", "int4a-g64/bfloat16/-1"),
    *("int4a-tensor/float32/-1", "int8a-g32-sf16/float32/-1", "nvfp4/bfloat16/-1"),
    *("int4f-g64/bfloat16/-1", "int8f-tensor/float32/-1"),
]
"""Each kind of element under each kind of scale, each dtype, each way to a scale."""

CODES = [
    *("fixed8.4/float32/-1", "log8/bfloat16/-1", "minifloat-e8m3/float32/-1", "bf16/float16/-1"),
    *("bfp5/bfloat16/0", "bl8/float32/-1", "mxfp8-e5m2/float16/-1", "bfp4(exponent=5)/float32/0"),
    *("bfp4(scale_rule=mse)/float32/-1", "int4-g64-sf16/bfloat16/0", "nf4-g64/float32/-1"),
    *("int8-tensor(absmax=2.0)/float16/-1", "int5a-g64/bfloat16/-1", "nvfp4/bfloat16/-1"),
    "int4f-g64-sf16/float32/-1",
]
"""The same, but for kernels that encode and decode."""

FEW = ["bfp4/bfloat16/0", "log8/bfloat16/-1", "nf4-g64/float32/-1", "int4a-tensor/float32/-1"]
"""One for each kernel."""


def coded(cases: list[str]) -> list[str]:
    """The cases, but of the kernels that encode and decode."""
    return [f"{case}/codes" for case in cases]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    cases = ["80", *CASES, *coded(CODES), "90", *FEW, *coded(FEW)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton_ptx", *cases],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_compiles_for_ampere_and_hopper(kernels):
    assert {kernel["kernel"] for kernel in kernels} == {
        *("quantize_alone", "quantize_powers", "quantize_floats", "quantize_asymmetric"),
        *("encode_alone", "encode_powers", "encode_floats", "encode_asymmetric"),
        *("decode_alone", "decode_powers", "decode_floats", "find_peaks", "pack"),
    }
    targets = {"".join(kernel["target"]) for kernel in kernels}
    assert targets == {"sm_80", "sm_90a"}
    assert all(kernel["binary"] > 1000 for kernel in kernels)


def test_no_instruction_rounds_in_a_way_of_its_own(kernels):
    faults = [
        f"{kernel['kernel']} of {kernel['case']}: {instruction}"
        for kernel in kernels
        for instruction in kernel["instructions"]
        if is_loose(instruction)
    ]
    assert not faults, "\n".join(faults)


def is_loose(instruction: str) -> bool:
    """Whether an instruction approximates, fuses, or takes subnormals for zero."""
    name, *parts = instruction.split(".")
    is_fused = name in {"fma", "mad"} and parts[-1][0] in "fb"
    return is_fused or not {"approx", "full", "ftz"}.isdisjoint(parts)


def test_every_division_and_product_is_rounded_to_nearest(kernels):
    arithmetic = {
        instruction
        for kernel in kernels
        for instruction in kernel["instructions"]
        if instruction.split(".")[0] in {"add", "sub", "mul", "div", "fma", "mad"}
        and instruction.split(".")[-1] in {"f16", "bf16", "f32", "f64"}
    }
    assert {"div.rn.f32", "div.rn.f64", "mul.rn.f32"} <= arithmetic
    assert {instruction.split(".")[1] for instruction in arithmetic} == {"rn"}


@pytest.mark.parametrize(
    ("instruction", "is_so"),
    [
        ("div.full.f32", True),
        ("div.approx.ftz.f32", True),
        ("fma.rn.f32", True),
        ("mul.ftz.f32", True),
        ("add.rn.f32x2", False),
        ("div.rn.f32", False),
        ("mad.lo.s32", False),
        ("div.s32", False),
    ],
)
def test_what_is_loose(instruction, is_so):
    assert is_loose(instruction) == is_so
