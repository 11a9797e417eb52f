"""Compiles kernels for GPUs that need not be there, and prints what their PTX holds, as JSON.

Run in a process of its own, where Triton does not interpret as it does in the tests:
`python -m tests.kernels.triton_ptx 80,90 bfp4/float32 int4-g64/bfloat16`. What is compiled is what
`mpq.kernels.triton` launches, arguments and all: only the launch itself is left out.
"""

import json
import os
import re
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget

from mpq.formats.zoo import parse_format
from mpq.kernels.triton import covers, fake_quantize

SHAPE = (48, 320)


class AbsentGpu:
    """What Triton asks its driver before it compiles; a device's number is its architecture."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def compiled(text: str, dtype: torch.dtype, axis: int) -> list[tuple[str, str, int]]:
    """Name, PTX and bytes of the binary of each kernel that a format launches."""
    found = []

    def compile_only(kernel: Any, grid: tuple[int]) -> Any:
        def record(*args: Any, **options: Any) -> None:
            done = kernel.run(*args, grid=grid, warmup=True, **options)
            found.append((kernel.__name__, done.asm["ptx"], len(done.asm["cubin"])))

        return record

    triton.runtime.jit.JITFunction.__getitem__ = compile_only
    x = torch.ones(SHAPE, dtype=dtype)
    assert covers(parse_format(text), x, axis)
    fake_quantize(x, parse_format(text), axis)
    return found


def main(architectures: str, *cases: str) -> None:
    told = []
    for architecture in architectures.split(","):
        triton.runtime.driver.set_active(AbsentGpu(int(architecture)))
        for case in cases:
            text, dtype, axis = case.split("/")
            for name, ptx, size in compiled(text, getattr(torch, dtype), int(axis)):
                told.append(
                    {
                        "kernel": f"{name} of {case} for sm_{architecture}",
                        "target": re.findall(r"^\.target (\w+)", ptx, re.MULTILINE),
                        "bytes": size,
                        "instructions": sorted(set(re.findall(r"^\s+(?:@\S+ )?([a-z]\w*\.[\w.]+)", ptx, re.MULTILINE))),
                    }
                )
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
