"""What a process loads is its own room's, or every start pays for the others'."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What only some of the commands need, and what takes the longest to load.
HEAVY = {"aiohttp", "fastavro", "httpx", "psycopg", "psycopg_pool", "rocksdict", "tantivy", "zstandard"}
LOADED = f"print(*sorted({HEAVY!r} & set(sys.modules)))"


def loaded(*arguments: str) -> list[str]:
    """Of the heavy ones those that a command has loaded when it shows its help."""
    program = f"import atexit, sys; atexit.register(lambda: {LOADED}); from walbus.cli import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("command", ["capture", "bootstrap", "run", "snapshot", "doctor"])
def test_a_command_loads_no_other_command(command: str) -> None:
    assert loaded(command, "--help") == []


def test_the_help_names_every_command_and_loads_them_for_that() -> None:
    assert "httpx" in loaded("--help")
