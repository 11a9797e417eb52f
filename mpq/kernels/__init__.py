"""Tensors meet formats here: rounding, scaling, packed codes.

May import: torch, `mpq.formats` and `mpq.errors`. `fake_quant.py` is the only door.
Not here: what a format is (`mpq.formats`), which tensor takes which (`mpq.plans`).
"""
