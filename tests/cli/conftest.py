import logging

import pytest


@pytest.fixture(autouse=True)
def logging_as_before():
    """Programs set up logging for their process; here the next test shares it."""
    root, own = logging.getLogger(), logging.getLogger("mpq")
    before = root.level, list(root.handlers), own.level
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    own.setLevel(before[2])
