"""What each tensor suffers in each format: the damage table and the two ways to measure it.

May import modeling, kernels, plans, formats and the leaves; never search or plots. What looks as
if it belonged but does not: choosing formats by the table, which is `plans/allocate.py`.
"""
