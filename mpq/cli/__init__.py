"""One file per program: parse, wire, print; `console.py` is what all programs share.

May import every room below, but only inside functions, so that `--help` answers at once. What
looks as if it belonged but does not: anything that computes (the stages) or draws (`plots`).
"""
