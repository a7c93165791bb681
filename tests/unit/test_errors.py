"""Every error knows what to do about it."""

from __future__ import annotations

import pytest

from walbus import errors
from walbus.errors import Directive, WalbusError, directive_of

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WalbusError)]
RETRIED = {
    "SourceUnavailable", "SlotInUse", "LogMissing", "LogFull", "LogUnreachable", "LogBusy", "StoreFull",
    "RelayUnavailable", "CheckpointUnavailable", "SinkUnavailable",
}  # fmt: skip


def made(kind: type[WalbusError]) -> WalbusError:
    return kind("broken", status=404) if kind.__name__ == "RequestRefused" else kind("broken")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_each_error_has_one_directive_and_an_exit_code(kind: type[WalbusError]) -> None:
    expected = Directive.RETRY if kind.__name__ in RETRIED else Directive.STOP
    if kind.__name__ == "PositionTrimmed":
        expected = Directive.BOOTSTRAP
    assert directive_of(made(kind)) is expected
    assert kind.exit_code == (2 if issubclass(kind, errors.UsageError) else 1)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_docstring_of_the_module_draws_every_error(kind: type[WalbusError]) -> None:
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("error", "directive"),
    [
        (ConnectionResetError(), Directive.RETRY),
        (TimeoutError(), Directive.RETRY),
        (OSError(5, "Input/output error"), Directive.STOP),
        (ValueError(), Directive.STOP),
        (KeyboardInterrupt(), Directive.STOP),
    ],
)
def test_errors_of_others_have_a_directive_too(error: BaseException, directive: Directive) -> None:
    assert directive_of(error) is directive


def test_an_error_prints_what_where_and_mend_on_one_line() -> None:
    assert str(WalbusError("broken")) == "broken"
    assert str(WalbusError("broken", where="0/1")) == "broken (at 0/1)"
    assert str(WalbusError("broken", where="0/1", mend="mend it")) == "broken (at 0/1); mend it"
