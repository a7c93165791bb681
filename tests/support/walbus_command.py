"""`walbus` as users run it: a process with arguments, an exit code, and what it prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
    """Ours without any configuration of Walbus."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WALBUS_")} | extra


def walbus(*arguments: str, deadline: float = 120.0, cwd: Path | None = None, **variables: str) -> Ended:
    """Runs a command to its end."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=deadline,
        env=environment(**variables),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Running:
    """A command that runs until it is stopped; its stderr goes into a file."""

    def __init__(self, *arguments: str, log: Path, **variables: str) -> None:
        self.log_path = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [*PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment(**variables),
                start_new_session=True,
            )

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
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


def write_config(path: Path, sections: Mapping[str, Mapping[str, object]], data_dir: Path) -> Path:
    """Writes a walbus.toml; values are strings, numbers, booleans or lists of strings."""
    lines = [f"data_dir = {json.dumps(str(data_dir))}"]
    for name, keys in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    path.write_text("\n".join(lines) + "\n")
    return path
