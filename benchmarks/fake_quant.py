"""Prints what fake-quantising a 4096x4096 tensor costs, beside its clone and the eager path.

    python benchmarks/fake_quant.py [format ...] [--size 4096] [--threads 1] [--device cpu]

Every format is timed in float32 and bfloat16, with blocks along the last axis and the first, by
the path that MPQ_KERNEL or the device chooses. A call stands between a clone and an eager call;
`x clone` and `x eager` are the medians of the ratios of neighbours, so that a busy machine
disturbs both alike. All times are on the clock, the least of the repeats. GB/s counts one read and
one write of the tensor. Then, where they are importable, the same tensor by microxcaling (`mx`),
qtorch, torchao and gfloat, in the formats that they share; decoding the packed tensor, beside a
clone of the result and eager's decoding (with `--only-decoding`, nothing else; on a CPU in
processor time, which other processes disturb less); and nanoseconds a value over sizes of 2^16 to
2^28 values.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from machine import description
from rivals import RIVALS, Call
from torch import Tensor

from mpq.formats.zoo import parse_format
from mpq.kernels import eager
from mpq.kernels import encoded as eager_codes
from mpq.kernels.choice import choose
from mpq.kernels.fake_quant import decode, encode, quantize

FORMATS = (
    *("bfp4", "bfp6", "bfp8", "bfp4-b32", "bmf8-e4m3", "bl8", "mxint8", "mxfp8-e4m3", "mxfp4"),
    *("nvfp4", "int4", "int4-g128", "int4f-g128", "int4a-g64", "int8-tensor", "nf4-g64"),
    *("fixed8.4", "log8", "minifloat-e4m3", "dmf-e4m3", "fp8-e4m3", "bf16"),
)
GROWN = ("bfp4", "int4-g128", "nvfp4", "log8", "nf4-g64")
"""Formats whose cost is shown by size."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Times each format and prints a table, then other libraries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", default=FORMATS)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--powers", type=int, nargs="*", default=(16, 20, 24, 28))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only-decoding", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.size, arguments.size, generator=generator).to(arguments.device)
    print(f"{description()}\n{arguments.device}, {arguments.size}x{arguments.size}")
    if not arguments.only_decoding:
        print(f"{'format':<16}{'dtype':<10}{'axis':<6}{'path':<8}{'ms':>8}{'GB/s':>8}", end="")
        print(f"{'x clone':>9}{'x eager':>9}{'small us':>10}")
        print_each(print_row, arguments.formats, x, arguments.repeats)
        print_rivals(x, arguments.repeats)
    print(f"\n{'decoding':<16}{'dtype':<10}{'axis':<6}{'path':<8}{'ns a value':>11}", end="")
    print(f"{'x clone':>9}{'x eager':>9}")
    print_each(print_decoding, arguments.formats, x, arguments.repeats)
    if not arguments.only_decoding:
        print_growth(arguments.powers, arguments.device, arguments.repeats)


def print_each(
    printed: Callable[[str, Tensor, int, str, int], None],
    formats: Sequence[str],
    x: Tensor,
    repeats: int,
) -> None:
    """A row for each format, dtype and axis."""
    for text in formats:
        for name, dtype in DTYPES.items():
            for axis in (-1, 0):
                printed(text, x.to(dtype), axis, name, repeats)


def print_row(text: str, x: Tensor, axis: int, dtype: str, repeats: int) -> None:
    """One format, dtype and axis."""
    format = parse_format(text)
    small = x[:16, :256].clone()
    quantize(x, format, axis)  # what is compiled on first use is compiled here
    quantize(small, format, axis)
    own, clones, eagers, little = [], [], [], []
    for _ in range(repeats):
        clone = seconds(x.clone)
        own.append(seconds(lambda: quantize(x, format, axis)))
        clones.append(own[-1] / clone)
        eagers.append(own[-1] / seconds(lambda: eager.fake_quantize(x, format, axis)))
        little.append(seconds(lambda: quantize(small, format, axis), calls=20))
    best = min(own)
    print(
        f"{text:<16}{dtype:<10}{'last' if axis else 'first':<6}{choose(x, format, axis):<8}"
        f"{best * 1e3:>8.1f}{2 * x.nbytes / best / 1e9:>8.1f}"
        f"{statistics.median(clones):>9.2f}{statistics.median(eagers):>9.2f}"
        f"{min(little) * 1e6:>10.0f}"
    )


def print_decoding(text: str, x: Tensor, axis: int, dtype: str, repeats: int) -> None:
    """One format, dtype and axis of what is decoded."""
    encoded = encode(x, text, axis)
    decode(encoded)  # what is compiled on first use is compiled here
    clock = time.process_time if x.device.type == "cpu" else time.perf_counter
    timed = partial(seconds, calls=4, clock=clock)
    own, clones, eagers = [], [], []
    for _ in range(repeats):
        clone = timed(x.clone)
        own.append(timed(lambda: decode(encoded)))
        clones.append(own[-1] / clone)
        once = seconds(lambda: eager_codes.decode_blocks(encoded, x.dtype), clock=clock)
        eagers.append(own[-1] / once)
    path = choose(x, encoded.format, axis, "decode")
    print(
        f"{text:<16}{dtype:<10}{'last' if axis else 'first':<6}{path:<8}"
        f"{min(own) / x.numel() * 1e9:>11.2f}{statistics.median(clones):>9.2f}"
        f"{statistics.median(eagers):>9.3f}",
        flush=True,
    )


def print_rivals(x: Tensor, repeats: int) -> None:
    """Other libraries on the same tensor, each beside mpq."""
    print(f"\n{'library':<16}{'format':<16}{'x clone':>9}{'x mpq':>9}")
    for library, text, load in RIVALS:
        try:
            other = load()
        except ImportError:
            print(f"{library:<16}{text:<16}  not installed")
            continue
        other(x)
        clones, ours = [], []
        for _ in range(repeats):
            clone = seconds(x.clone)
            theirs = seconds(lambda: other(x))  # noqa: B023
            clones.append(theirs / clone)
            ours.append(theirs / seconds(lambda: quantize(x, text)))  # noqa: B023
        print(
            f"{library:<16}{text:<16}{statistics.median(clones):>9.2f}"
            f"{statistics.median(ours):>9.2f}"
        )


def print_growth(powers: Sequence[int], device: str, repeats: int) -> None:
    """Nanoseconds a value, float32, rows of 4,096 values, over powers of two of values."""
    print(f"\n{'ns a value':<16}" + "".join(f"{f'2^{power}':>8}" for power in powers))
    tensors = [torch.randn(1 << (power - 12), 4096, device=device) for power in powers]
    calls: dict[str, Call] = {"clone": torch.clone}
    calls |= {text: partial(quantize, format=text) for text in GROWN}
    for name, call in calls.items():
        cells = []
        for x in tensors:
            calls_each = max(1, (1 << 20) // x.numel())
            best = min(seconds(lambda: call(x), calls_each) for _ in range(repeats))  # noqa: B023
            cells.append(f"{best / x.numel() * 1e9:>8.2f}")
        print(f"{name:<16}" + "".join(cells))


def seconds(
    call: Callable[[], object], calls: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds, on the wall's clock or another, of one of some calls, work on a GPU included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = clock()
    for _ in range(calls):
        call()
    wait()
    return (clock() - start) / calls


if __name__ == "__main__":
    main()
