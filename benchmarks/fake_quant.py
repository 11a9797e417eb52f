"""Prints the CPU time of fake-quantising a 4096x4096 float32 tensor, against that of its clone.

    python benchmarks/fake_quant.py [format ...] [--size 4096] [--threads 1]

Each format is timed next to `tensor.clone()`, in CPU time, which a busy machine disturbs least,
and the ratio is of the fastest of each. `small` is one call on a 16x256 activation.
"""

import argparse
import time
from collections.abc import Callable

import torch

from mpq.formats.zoo import parse_format
from mpq.kernels.fake_quant import quantize

FORMATS = (
    *("bfp4", "bfp6", "bfp8", "bfp4-b32", "bmf8-e4m3", "bl8", "mxint8", "mxfp8-e4m3", "mxfp4"),
    *("nvfp4", "int4", "int4-g128", "int4a-g64", "int8-tensor", "nf4-g64"),
    *("fixed8.4", "log8", "minifloat-e4m3", "dmf-e4m3", "fp8-e4m3", "bf16"),
)


def main() -> None:
    """Times each format and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", default=FORMATS)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x = torch.randn(arguments.size, arguments.size, generator=torch.Generator().manual_seed(0))
    small = x[:16, :256].clone()
    print(f"{'format':<18}{'ms':>9}{'clone ms':>10}{'ratio':>8}{'small us':>10}")
    for text in arguments.formats:
        format = parse_format(text)
        clones, quantized, little = [], [], []
        for _ in range(arguments.repeats):
            clones.append(seconds(x.clone))
            quantized.append(seconds(lambda: quantize(x, format)))  # noqa: B023
            little.append(seconds(lambda: quantize(small, format), calls=20))  # noqa: B023
        clone, own = min(clones), min(quantized)
        print(
            f"{text:<18}{own * 1e3:>9.1f}{clone * 1e3:>10.1f}{own / clone:>8.2f}"
            f"{min(little) * 1e6:>10.0f}"
        )


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    """CPU seconds of one of some calls."""
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls


if __name__ == "__main__":
    main()
