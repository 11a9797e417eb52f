"""Stock transformers models, seen and run through a plan.

This room finds a model's sites, wraps them reversibly, reaches into attention and experts through
transformers' own interfaces, and restarts a forward pass at any block. It imports torch,
transformers, `mpq.kernels`, `mpq.plans` and `mpq.formats`; no modelling code is copied. What a
format does to a tensor lives in `mpq.kernels`, which sites exist as plain facts in
`mpq.plans.site`, and what a plan costs in `mpq.cost`.
"""
