"""Conversion: a plan realised as codes and scales, by GPTQ or rounding, and handed to engines.

May import modeling, kernels, plans, formats, measures, data, run and files; no other stage. The
checkpoint that keeps the result lies in `modeling`, because loading needs it; the program lies in
`cli`.
"""
