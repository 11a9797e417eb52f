"""Number formats as plain data: what an element, a scale and a block are, and what they cost.

May import: `mpq.errors` and the standard library; no torch, so that plans and costs stay light.
Not here: rounding. How a tensor takes a format is in `mpq.kernels`.
"""
