"""The command line, and the one place that knows every room.

    application     the command line as a whole, and `main`
    commands        the commands by name, loaded when they are asked for
    failures        every exception becomes one line and an exit code
    options         the options that commands share; settings, log and secrets of this process
    lifeline        ends this process when its supervisor is dead
    stopping        signals as one `threading.Event`

    capture, relay, bootstrap, consume     one room in this process
    run             all rooms as processes: `supervisor` decides (pure), `children` does
    tail            changes, one a line: `tail_stream` reads, `tail_lines` writes
    doctor          source and machine: `doctor_examination`; `doctor_machine` and `doctor_mounts` look at the latter,
                    `doctor_rules` judges it, `doctor_report` prints
    status          what every room is doing: `status_report` gathers, `status_table` draws
    dead_letters    changes that a consumer parked: listed, retried, dropped
    token           makes a token for relay and bootstrap
    demo            everything on an embedded PostgreSQL

A command's module imports its room when the command runs, so that `walbus --help` stays quick and a missing extra
hurts nobody who does not use it.
"""

from __future__ import annotations

from typing import NoReturn

from walbus.cli.lifeline import hold_lifeline

__all__ = ["main"]


def main() -> NoReturn:
    """The command `walbus`."""
    hold_lifeline()
    from walbus.cli import application  # noqa: PLC0415  (takes seconds on a busy machine, and an orphan must end in them)

    application.main()
