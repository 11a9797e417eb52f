import inspect

import pytest

from mpq import errors

CLASSES = [one for one in vars(errors).values() if inspect.isclass(one)]


@pytest.mark.parametrize("one", CLASSES)
def test_whoever_catches_the_base_catches_them_all(one):
    assert issubclass(one, errors.MpqError)
    assert one.__doc__


def test_errors_of_values_are_value_errors_and_a_runs_are_not():
    values = {one for one in CLASSES if issubclass(one, ValueError)}
    assert set(CLASSES) - values == {errors.MpqError, errors.RunError}
    assert issubclass(errors.RunError, RuntimeError)


def test_a_bug_is_no_deliberate_error():
    assert not issubclass(KeyError, errors.MpqError)
    assert issubclass(errors.MpqError, Exception)
