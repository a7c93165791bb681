"""Every exception becomes one line on stderr and an exit code; no traceback reaches an operator.

A `WalbusError` says itself what is wrong, where, and how to mend it. A wrong command line is an error of usage.
Anything else is a bug of ours: one line that asks to report it with `--debug`, under which its traceback is printed.
Secrets are starred in all of it.

To a supervisor the exit code also says whether starting again can help: `TRY_AGAIN` for errors that may pass and for
bugs, the design's codes (1 failed, 2 configuration) for what only an operator can mend.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Final, TextIO

import typer

from walbus.cli.lifeline import is_supervised
from walbus.config_problems import InvalidConfig
from walbus.diagnostics import Redactor
from walbus.errors import Directive, WalbusError, directive_of

#: What every line of an error begins with; `walbus run` knows its children's by it.
ERROR_PREFIX: Final = "walbus: error: "

#: Exit code of a supervised process that may be started again (EX_TEMPFAIL of sysexits.h).
TRY_AGAIN: Final = 75


class Reporter:
    """How this process tells of errors.

    Attributes:
        debug: whether a bug's traceback is printed.
        redactor: stars secrets; replaced once the configuration is known.
    """

    def __init__(self, stream: TextIO, *, supervised: bool | None = None) -> None:
        self.debug = False
        self.redactor = Redactor()
        self._stream = stream
        self._supervised = is_supervised() if supervised is None else supervised

    def report(self, error: BaseException) -> int:
        """Prints the error; the exit code."""
        if self.debug and not isinstance(error, (WalbusError, typer.TyperException)):
            self._print("".join(traceback.format_exception(error)).rstrip())
        for line in lines_of(error):
            self._print(ERROR_PREFIX + " ".join(line.split()))
        return exit_code_of(error, supervised=self._supervised)

    def _print(self, text: str) -> None:
        print(self.redactor.text(text), file=self._stream, flush=True)


def reporter_of(context: typer.Context) -> Reporter:
    """The reporter of the command that runs."""
    reporter = context.find_object(Reporter)
    assert reporter is not None  # noqa: S101 - `main` gives it to every command
    return reporter


def lines_of(error: BaseException) -> list[str]:
    """What to tell an operator: one line, or one for each problem of a configuration."""
    if isinstance(error, InvalidConfig):
        return [str(problem) for problem in error.problems]
    if isinstance(error, WalbusError):
        return [str(error)]
    if isinstance(error, typer.TyperException):
        return [f"{error.format_message().rstrip('.')}; see walbus --help"]
    kind, text = type(error).__name__, str(error)
    return [f"unexpected {kind}{': ' + text if text else ''}; please report it with the output of walbus --debug"]


def exit_code_of(error: BaseException, *, supervised: bool) -> int:
    """The process's exit code after an error."""
    if isinstance(error, typer.TyperException):
        return error.exit_code
    bug = not isinstance(error, WalbusError)
    if supervised and (bug or directive_of(error) is not Directive.STOP):
        return TRY_AGAIN
    return error.exit_code if isinstance(error, WalbusError) else 1


def run_reported(command: Callable[[], object], reporter: Reporter) -> int:
    """Runs a command; its exit code (a command returns None for 0), every error reported."""
    try:
        code = command()
    except KeyboardInterrupt:
        return 130
    except typer.Abort:
        return 1
    except Exception as error:  # the boundary: nothing may pass as a traceback
        return reporter.report(error)
    return code if isinstance(code, int) else 0
