"""Tensors meet formats here: rounding, scaling, packed codes.

May import: torch, numpy, `mpq.formats`, `mpq.errors`, and numba and triton on first use.
`fake_quant.py` is the door; `mpq.convert`, which rounds column by column, takes the steps behind
it.
Not here: what a format is (`mpq.formats`), which tensor takes which (`mpq.plans`).
"""
