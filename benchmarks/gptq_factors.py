"""Prints what GPTQ leaves of round-to-nearest's loss in each format, and what solving costs.

    python benchmarks/gptq_factors.py [format ...] [--rows 256] [--columns 512] [--tokens 2048]
                                      [--timed 640 2048] [--seed 0]

A layer of normal weights sees correlated inputs: neighbouring features go together, and some are
larger than others. Each row of the table is the loss 1/2 tr(dW H dW^T) as a share of
`mpq.quantize`'s: of round-to-nearest under searched grids, of GPTQ, and of GPTQ with the columns
in the order of diag H, with groups chosen during the sweep (exact), and with searched grids. The
weights' standard deviation is 1, so that formats without scales cover them. Then the milliseconds
of one weight of `--timed` rows and columns beside those of factorising its Hessian, the least of
three.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from machine import description
from torch import Tensor

from mpq.convert.factor import factorize
from mpq.convert.hessian import HessianSum
from mpq.convert.solver import SolverOptions, solve
from mpq.formats.zoo import examples, parse_format

COLUMNS = {
    "rtn mse": SolverOptions(method="rtn", grid="mse"),
    "gptq": SolverOptions(),
    "order": SolverOptions(act_order=True),
    "order exact": SolverOptions(act_order=True, groups="exact"),
    "order mse": SolverOptions(act_order=True, grid="mse"),
}
TIMED = ("int4-g128", "bfp4", "nf4-g64")


def main() -> None:
    """Solves the layer in each format and prints a table, then times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", default=[t for t in examples() if t != "fp32"])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--timed", type=int, nargs=2, default=(640, 2048))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(description())
    size = (arguments.rows, arguments.columns, arguments.tokens)
    print_factors(arguments.formats, size, arguments.seed)
    print_times(tuple(arguments.timed), arguments.seed)


def layer(rows: int, columns: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight [rows, columns] and the Hessian of its inputs."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(columns)
    mix = torch.randn(columns, columns, generator=generator)
    mix *= 0.9 ** (places[:, None] - places).abs()
    spread = torch.exp(0.5 * torch.randn(columns, generator=generator))
    total = HessianSum(columns)
    total.add(torch.randn(tokens, columns, generator=generator) @ mix * spread)
    return torch.randn(rows, columns, generator=generator), total.hessian()


def print_factors(texts: Sequence[str], size: tuple[int, int, int], seed: int) -> None:
    """One row a format: losses as shares of round-to-nearest's."""
    weight, hessian = layer(*size, seed)
    print(f"{size[0]}x{size[1]} weight, {size[2]} tokens, seed {seed}")
    print(f"{'format':<30}" + "".join(f"{name:>13}" for name in COLUMNS))
    for text in texts:
        shares = []
        for options in COLUMNS.values():
            solution = solve(weight, hessian, parse_format(text), options=options)
            shares.append(solution.loss / solution.rtn_loss)
        print(f"{text:<30}" + "".join(f"{share:>13.3f}" for share in shares), flush=True)


def print_times(shape: tuple[int, int], seed: int) -> None:
    """Milliseconds of one solution in each timed format, and of the factorisation in it."""
    weight, hessian = layer(*shape, shape[1], seed)
    print(f"milliseconds for {shape[0]}x{shape[1]}")
    print(f"{'factor':<30}{least_ms(lambda: factorize(hessian, 0.01)):>13.2f}")
    for text in TIMED:
        format = parse_format(text)
        print(f"{text:<30}{least_ms(lambda f=format: solve(weight, hessian, f)):>13.2f}")


def least_ms(call: Callable[[], object], repeats: int = 3) -> float:
    """The least milliseconds of some calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


if __name__ == "__main__":
    main()
