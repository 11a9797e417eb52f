"""Slow, plain-Python definitions of what mpq computes fast, and the proof that they are right.

Written from the design and the published specifications, never from mpq's code. May import
numpy and outside oracles (ml_dtypes, gfloat); imports nothing of mpq, not even its parser.
"""
