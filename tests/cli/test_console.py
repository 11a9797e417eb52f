import argparse
import logging
import signal

import pytest

from mpq.cli import console
from mpq.errors import BudgetError


def test_exit_codes_of_what_can_happen(capsys):
    def fail():
        raise BudgetError("no plan keeps 1 bit")

    def interrupt():
        raise KeyboardInterrupt

    def break_down():
        raise ZeroDivisionError("a bug")

    assert console.run_program(lambda: None) == 0
    assert console.run_program(fail) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: no plan keeps 1 bit\n"
    assert console.run_program(interrupt) == 130
    assert "kept" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError, match="a bug"):  # a bug keeps its traceback
        console.run_program(break_down)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whatever_comes_out_after_a_signal_ends_with_130(number, capsys):
    """Libraries turn an interruption into errors of their own; SQLAlchemy and Optuna do."""
    before = [signal.signal(signal.SIGINT, signal.default_int_handler)]
    before.append(signal.getsignal(signal.SIGTERM))

    def disguise():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise BudgetError("half of a transaction") from None

    assert console.run_program(disguise) == 130
    assert capsys.readouterr().err == f"{console.INTERRUPTED}\n"
    assert signal.getsignal(signal.SIGTERM) is before[1]
    assert signal.signal(signal.SIGINT, before[0]) is signal.default_int_handler


def test_a_signal_that_the_shell_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert console.run_program(lambda: signal.raise_signal(signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("flags", "level"),
    [([], "warning"), (["-v"], "info"), (["--log-level", "debug"], "debug")],
)
def test_log_flags(flags, level):
    parser = argparse.ArgumentParser()
    console.add_log_flags(parser)
    assert parser.parse_args(flags).log_level == level


def test_wrong_usage_exits_with_2(capsys):
    parser = argparse.ArgumentParser()
    console.add_log_flags(parser)
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--log-level", "loud"])
    assert exit_.value.code == console.EXIT_USAGE
    assert "loud" in capsys.readouterr().err


def test_mpq_is_heard_at_its_level_and_others_from_warning_on(capsys):
    console.set_up_logging("info")
    logging.getLogger("mpq.search").info("a trial")
    logging.getLogger("mpq.search").debug("a detail")
    logging.getLogger("other").info("chatter")
    logging.getLogger("other").warning("a warning")
    said = capsys.readouterr().err
    assert "a trial" in said
    assert "a warning" in said
    assert "a detail" not in said
    assert "chatter" not in said


def test_a_table_in_a_pipe_keeps_its_long_names(capsys):
    name = "model.language_model.layers.10.mlp.experts.101.gate_up_proj.weight"
    console.print_table("damage", ["site", "bfp4"], [[name, "1.0e-05"], ["[b]x[/b]", "2"]])
    said = capsys.readouterr().out
    assert said.startswith("damage\n")
    assert name in said
    assert "[b]x[/b]" in said  # names are text, never markup


def test_the_progress_bar_is_not_on_stdout(capsys):
    with console.progress_bar() as bar:
        bar.update(bar.add_task("trials", total=2), advance=2)
    said = capsys.readouterr()
    assert said.out == ""
    assert "2/2" in said.err
