import logging

import pytest

from tests.modeling.families import save_llama


@pytest.fixture(autouse=True)
def logging_as_before():
    """Programs set up logging for their process; here the next test shares it."""
    root, own = logging.getLogger(), logging.getLogger("mpq")
    before = root.level, list(root.handlers), own.level
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    own.setLevel(before[2])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A small random Llama on disk, with a tokenizer of bytes and a text to profile it on."""
    return save_llama(tmp_path_factory.mktemp("model"))
