"""Text becomes `windows` of tokens, labelled sentences become `examples`; `sources` reads both.

May import `assets` and `errors`; `sources` is the only door to the package `datasets`. The text
itself looks as if it belonged here and does not: no data set is ever copied into the project.
"""
