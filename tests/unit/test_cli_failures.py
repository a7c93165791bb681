"""Every exception becomes one line and the right exit code."""

from __future__ import annotations

import io

import pytest
import typer

from walbus.cli.failures import TRY_AGAIN, Reporter, exit_code_of, run_reported
from walbus.config_problems import InvalidConfig
from walbus.diagnostics import Redactor
from walbus.errors import ConfigError, LogMissing, SourceMisconfigured, WalbusError


def reported(error: BaseException, *, supervised: bool = False, debug: bool = False) -> tuple[int, str]:
    stream = io.StringIO()
    reporter = Reporter(stream, supervised=supervised)
    reporter.debug = debug
    reporter.redactor = Redactor(["hunter22"])

    def fail() -> None:
        raise error

    return run_reported(fail, reporter), stream.getvalue()


def test_an_error_is_one_line_with_what_where_and_mend() -> None:
    error = SourceMisconfigured("wal_level is replica", where="host db", mend="set wal_level = logical")
    assert reported(error) == (
        1,
        "walbus: error: wal_level is replica (at host db); set wal_level = logical\n",
    )


def test_a_line_break_inside_an_error_makes_no_second_line() -> None:
    assert reported(WalbusError("connection failed:\n\tis the server running?"))[1].count("\n") == 1


def test_each_problem_of_a_configuration_has_its_line() -> None:
    error = InvalidConfig([ConfigError("unknown key", where="a"), ConfigError("missing key", where="b")])
    assert reported(error) == (2, "walbus: error: unknown key (at a)\nwalbus: error: missing key (at b)\n")


def test_a_bug_is_one_line_that_asks_for_a_report() -> None:
    code, text = reported(ZeroDivisionError("division by zero"))
    assert code == 1
    assert text.count("\n") == 1
    assert "--debug" in text
    assert "Traceback" not in text


def test_debug_shows_the_traceback_of_a_bug_but_not_of_an_error() -> None:
    assert "Traceback" in reported(ZeroDivisionError("x"), debug=True)[1]
    assert "Traceback" not in reported(WalbusError("x"), debug=True)[1]


def test_a_wrong_command_line_is_a_usage_error() -> None:
    code, text = reported(typer.BadParameter("not a number"))
    assert code == 2
    assert text.startswith("walbus: error: ")
    assert text.count("\n") == 1


@pytest.mark.parametrize("error", [WalbusError("server said hunter22"), RuntimeError("hunter22")])
def test_a_secret_is_starred_in_errors_and_tracebacks(error: Exception) -> None:
    assert "hunter22" not in reported(error, debug=True)[1]


def test_an_interrupt_says_nothing() -> None:
    assert reported(KeyboardInterrupt()) == (130, "")


@pytest.mark.parametrize(
    ("error", "alone", "supervised"),
    [
        (SourceMisconfigured("x"), 1, 1),
        (ConfigError("x"), 2, 2),
        (LogMissing("x"), 1, TRY_AGAIN),
        (ValueError("a bug"), 1, TRY_AGAIN),
        (OSError("fsync failed"), 1, TRY_AGAIN),
    ],
)
def test_a_supervisor_learns_whether_starting_again_can_help(error: Exception, alone: int, supervised: int) -> None:
    assert exit_code_of(error, supervised=False) == alone
    assert exit_code_of(error, supervised=True) == supervised
