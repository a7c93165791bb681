"""`walbus` as users run it: a process with arguments, an exit code, and what it prints.

Mostly it is a copy of one that has loaded everything (`support.started_copy`); `PROGRAM` is the start for real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from support.started_copy import Copy, Template

PROGRAM = (sys.executable, "-P", "-m", "walbus")


@dataclass(frozen=True)
class Ended:
    """What became of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def error_lines(self) -> list[str]:
        """The lines that tell an error to an operator."""
        return [line for line in self.stderr.splitlines() if line.startswith("walbus: error: ")]

    def one_line(self) -> str:
        """The one line of the error; there is no other, and no traceback."""
        assert "Traceback" not in self.stderr, self.stderr
        assert len(self.error_lines) == 1, self.stderr
        return self.error_lines[0].removeprefix("walbus: error: ")


def environment(**extra: str) -> dict[str, str]:
    """Ours without any configuration of Walbus, and without what changes from test to test."""
    left_out = ("WALBUS_", "PYTEST_CURRENT_TEST")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)} | extra


@cache
def template() -> Template:
    """What this test process's rooms are copied from."""
    return Template(environment())


def _start(
    arguments: tuple[str, ...],
    stdout: IO[bytes],
    stderr: IO[bytes],
    cwd: Path | None,
    constants: Mapping[str, float] | None,
    variables: Mapping[str, str],
) -> Copy | subprocess.Popen[bytes]:
    """A process in a session of its own; a copy where it has no environment of its own."""
    wanted = environment(**variables)
    with Path(os.devnull).open("rb") as nothing:
        if wanted == template().environment:
            descriptors = (nothing.fileno(), stdout.fileno(), stderr.fileno())
            return template().start(
                arguments, folder=cwd or Path.cwd(), descriptors=descriptors, constants=constants or {}
            )
        assert not constants, "a process with an environment of its own is started for real"
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=nothing,
            stdout=stdout,
            stderr=stderr,
            env=wanted,
            cwd=cwd,
            start_new_session=True,
        )


def walbus(
    *arguments: str,
    deadline: float = 120.0,
    cwd: Path | None = None,
    constants: Mapping[str, float] | None = None,
    **variables: str,
) -> Ended:
    """Runs a command to its end.

    Args:
        arguments: of the command line.
        deadline: seconds that it may take.
        cwd: its folder.
        constants: other values of modules' constants, by full names: for what is waited for in vain.
        variables: of its environment.
    """
    with ExitStack() as held:
        stdout, stderr = (held.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        process = _start(arguments, stdout, stderr, cwd, constants, variables)
        try:
            code = process.wait(deadline)
        finally:
            process.kill()
            process.wait()
        said = []
        for stream in (stdout, stderr):
            stream.seek(0)
            said.append(stream.read().decode())
    return Ended(code, *said)


class Running:
    """A command that runs until it is stopped; its stderr goes into a file; `constants` as of `walbus`."""

    def __init__(
        self, *arguments: str, log: Path, constants: Mapping[str, float] | None = None, **variables: str
    ) -> None:
        self.log_path = log
        with log.open("ab") as stream, Path(os.devnull).open("wb") as nothing:
            self.process = _start(arguments, nothing, stream, None, constants, variables)

    def log(self) -> str:
        """What it said on stderr so far."""
        return self.log_path.read_text(errors="replace")

    def stop(self, number: signal.Signals = signal.SIGTERM, deadline: float = 40.0) -> int:
        """Its exit code after a signal; one that does not end is killed, and the test fails."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it did not stop within {deadline} s:\n{self.log()[-4000:]}") from None


def write_config(path: Path, sections: Mapping[str, Mapping[str, object]], data_dir: Path) -> Path:
    """Writes a walbus.toml; values are strings, numbers, booleans or lists of strings."""
    lines = [f"data_dir = {json.dumps(str(data_dir))}"]
    for name, keys in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    path.write_text("\n".join(lines) + "\n")
    return path
