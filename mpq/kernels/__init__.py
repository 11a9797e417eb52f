"""Tensors meet formats here: rounding, scaling, packed codes.

May import: torch, numpy, `mpq.formats`, `mpq.errors`, and numba and triton on first use.
`fake_quant.py` is the only door.
Not here: what a format is (`mpq.formats`), which tensor takes which (`mpq.plans`).
"""
