"""Which tensor gets which format: sites, plans, rules, and the additive optimum.

May import `formats` and `errors` only: no torch, no model. Wrapping a model with a plan looks
as if it belonged here and does not: that is `modeling.wrap`.
"""
