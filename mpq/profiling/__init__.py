"""What each tensor suffers in each format, and how its values are spread: two tables, measured.

May import modeling, kernels, plans, formats and the leaves; never search or plots. What looks as
if it belonged but does not: choosing formats by the damage table, which is `plans/allocate.py`.
"""
