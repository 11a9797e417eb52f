"""Every exception that mpq raises on purpose.

A message says the rule, the values that broke it, and the way out. Whoever catches `MpqError`
catches them all; the command-line programs print them without a traceback.
"""


class MpqError(Exception):
    """The base of every deliberate error of mpq."""


class FormatError(MpqError, ValueError):
    """A format that does not exist, or a tensor that a format cannot take."""


class PlanError(MpqError, ValueError):
    """A plan, a rule or a site name that does not fit the model."""


class BudgetError(MpqError, ValueError):
    """A budget that no plan can keep."""


class ModelError(MpqError, ValueError):
    """A model that cannot be loaded, wrapped, or quantised as asked."""


class CheckpointError(ModelError):
    """A packed checkpoint that cannot be written, or that is not what was written."""


class DataError(MpqError, ValueError):
    """Text or labels that cannot be read, or are fewer than asked for."""


class ConfigError(MpqError, ValueError):
    """A TOML file with unknown keys, wrong types or impossible values."""


class RunError(MpqError, RuntimeError):
    """A run directory that cannot be used as asked."""


class ExportError(MpqError, ValueError):
    """A weight that another tool's checkpoint cannot hold, or one that reads back otherwise."""
