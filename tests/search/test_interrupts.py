"""Signals at any moment: what comes out, and what a study looks like after it."""

import signal
import sys

import pytest

from mpq.search.interrupts import Interrupts
from mpq.search.objective import make_objectives
from mpq.search.settings import SearchSettings
from mpq.search.study import Search
from tests.search.synthetic import Problem, make_sites, make_space


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """A shell that runs the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def under(interrupts, body, *, allowed=False):
    """Runs `body` in the context, inside of `allowed()` or not."""
    with interrupts:
        if allowed:
            with interrupts.allowed():
                body()
        else:
            body()


def test_a_signal_waits_for_a_safe_point():
    passed, interrupts = [], Interrupts()

    def body():
        ctrl_c()
        passed.append("held")
        interrupts.deliver()
        passed.append("never")

    with pytest.raises(KeyboardInterrupt):
        under(interrupts, body)
    assert passed == ["held"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_delivered_at_once_where_that_is_allowed():
    passed, interrupts = [], Interrupts()

    def body():
        passed.append("before")
        ctrl_c()
        passed.append("never")

    with pytest.raises(KeyboardInterrupt):
        under(interrupts, body, allowed=True)
    assert passed == ["before"]


def test_one_that_was_held_comes_out_where_it_is_allowed_again():
    passed, interrupts = [], Interrupts()

    def body():
        ctrl_c()
        with interrupts.allowed():
            passed.append("never")

    with pytest.raises(KeyboardInterrupt):
        under(interrupts, body)
    assert passed == []


def test_the_second_signal_is_delivered_wherever_it_comes():
    passed = []

    def body():
        ctrl_c()
        passed.append("held")
        ctrl_c()
        passed.append("never")

    with pytest.raises(KeyboardInterrupt):
        under(Interrupts(), body)
    assert passed == ["held"]


def test_one_that_is_held_at_the_end_is_not_lost():
    with pytest.raises(KeyboardInterrupt):
        under(Interrupts(), ctrl_c)


def test_other_exceptions_after_it_leave_as_an_interruption():
    def fail():
        raise ValueError("a transaction that cannot be closed")

    def interrupt_and_fail():
        ctrl_c()
        fail()

    with pytest.raises(KeyboardInterrupt) as caught:
        under(Interrupts(), interrupt_and_fail)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match="cannot be closed"):
        under(Interrupts(), fail)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_comes_out_inside_of_a_finaliser_is_not_lost():
    class Finalised:
        def __del__(self):
            ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        under(Interrupts(), Finalised, allowed=True)


def test_ignored_signals_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts():
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


POINTS = 14


def make_search(folder):
    problem = Problem(make_sites(1))
    return Search(
        make_space(problem),
        make_objectives(["kl", "weight_bits"]),
        SearchSettings(trials=8, refine=1, sampler="random"),
        problem,
        storage=f"sqlite:///{folder}/study.db",
    )


def run_with_ctrl_c_at(search, call):
    """Runs a search, with Ctrl-C at the given call of any Python function; how many there were."""
    num_calls = 0

    def count(*_):
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            sys.settrace(None)
            ctrl_c()

    before = sys.gettrace()
    sys.settrace(count)
    try:
        search.run()
    finally:
        sys.settrace(before)
    return num_calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """How many calls a search makes that nothing disturbs, and its plans."""
    run_with_ctrl_c_at(make_search(tmp_path_factory.mktemp("first")), -1)
    search = make_search(tmp_path_factory.mktemp("whole"))
    num_calls = run_with_ctrl_c_at(search, -1)
    return num_calls, sorted(record.choices for record in search.records())


@pytest.mark.slow
@pytest.mark.parametrize("point", range(POINTS))
def test_wherever_ctrl_c_comes_the_search_stops_and_goes_on(tmp_path, whole, point):
    """Most of these moments lie inside of Optuna, SQLAlchemy and sqlite3."""
    num_calls, plans = whole
    with pytest.raises(KeyboardInterrupt):
        run_with_ctrl_c_at(make_search(tmp_path), int(num_calls * (point + 0.37) / POINTS))
    resumed = make_search(tmp_path)
    resumed.run()
    assert sorted(record.choices for record in resumed.records()) == plans
    states = {trial.state.name for trial in resumed.study.get_trials()}
    assert states <= {"COMPLETE", "FAIL"}
