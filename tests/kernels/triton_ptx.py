"""Compiles kernels for GPUs that need not be there, and prints what their PTX holds, as JSON.

Run in a process of its own, where Triton does not interpret as it does in the tests:
`python -m tests.kernels.triton_ptx 80 bfp4/float32/-1 int4/bfloat16/0 90 bfp4/float32/-1/codes`;
`codes` asks for the kernels that encode and decode instead of those that fake-quantise. What is
compiled is what `mpq.kernels.triton` launches, arguments and all; only the launch is left out.
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
from mpq.kernels.triton_encoded import decode_blocks, encode_blocks

SHAPE = (48, 320)
INSTRUCTION = re.compile(r"^\s+(?:@\S+ )?([a-z]\w*(?:\.\w+)+)", re.MULTILINE)


class AbsentGpu:
    """What Triton asks its driver before it compiles; a device's number is its architecture."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def compiled(case: str) -> list[dict[str, Any]]:
    """What each kernel that a format launches became."""
    text, dtype, axis, *task = case.split("/")
    found = []

    def compile_only(kernel: Any, grid: tuple[int]) -> Any:
        def record(*args: Any, **options: Any) -> None:
            done = kernel.run(*args, grid=grid, warmup=True, **options)
            ptx = done.asm["ptx"]
            found.append(
                {
                    "kernel": kernel.__name__,
                    "case": case,
                    "target": re.findall(r"^\.target (\w+)", ptx, re.MULTILINE),
                    "instructions": sorted(set(INSTRUCTION.findall(ptx))),
                    "binary": len(done.asm["cubin"]),
                }
            )

        return record

    triton.runtime.jit.JITFunction.__getitem__ = compile_only
    x = torch.ones(SHAPE, dtype=getattr(torch, dtype))
    assert covers(parse_format(text), x, int(axis)), case
    if task:
        decode_blocks(encode_blocks(x, parse_format(text), int(axis)), x.dtype)
    else:
        fake_quantize(x, parse_format(text), int(axis))
    return found


def main(*words: str) -> None:
    told = []
    for word in words:
        if word.isdigit():
            triton.runtime.driver.set_active(AbsentGpu(int(word)))
        else:
            told += compiled(word)
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
