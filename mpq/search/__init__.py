"""The search: spaces, the guided decoding, exchanges, the Optuna study, the front and its proof.

It may import plans, formats, cost, config and run; its measurements come from a callable, so it
sees neither a model nor torch; `study.py`, `claims.py`, `samplers.py`, `storage.py` and
`workers.py` are the only doors to Optuna.
The additive optimum is not here (mpq/plans/allocate.py), nor is what builds a model, data and
the callable from a TOML file (mpq/cli/search_wiring.py, mpq/cli/evaluation.py).
"""
