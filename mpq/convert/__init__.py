"""Conversion: weights become codes and scales that lose little of a layer's output.

This room holds the GPTQ solver, which takes a weight and the second moments of its inputs, and
the exports to other tools' checkpoints; it imports torch, `mpq.modeling`, `mpq.kernels`,
`mpq.plans`, `mpq.formats` and `mpq.files`.
How values are rounded under given scales lives in `mpq.kernels`, which tensor takes which format
in `mpq.plans`, and how much a format hurts before anything is converted in `mpq.profiling`.
"""
