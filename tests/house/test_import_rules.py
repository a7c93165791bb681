"""The import contracts hold, and break when they are broken: a contract that cannot fail proves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = "Imports point upstream only, and every module has its layer"
SANS_IO = "Protocol modules know no socket, clock, file, process or driver"


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on a tree of its own, in a process of its own (it imports nothing, and caches)."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    """The package, its rooms and the contracts, free to be spoiled."""
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copy(ROOT / "pyproject.toml", tree)
    for folder in ("walbus", "bootstrap", "capture", "consumers", "relay"):
        shutil.copytree(ROOT / folder, tree / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def test_the_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("walbus/lsn.py", "import walbus.consumers", LAYERS),
        ("capture/__init__.py", "from walbus.relay import open_reader", LAYERS),
        ("relay/__init__.py", "def later():\n    import walbus.bootstrap", LAYERS),
        ("walbus/nobody_gave_me_a_layer.py", "", LAYERS),
        ("walbus/records.py", "import socket", SANS_IO),
        ("walbus/lsn.py", "import time", SANS_IO),
        ("walbus/values/__init__.py", "from pathlib import Path", SANS_IO),
        ("walbus/schema.py", "from walbus.status import write_status", SANS_IO),
    ],
)
def test_a_broken_contract_is_named(copied_tree: Path, module: str, line: str, contract: str) -> None:
    with (copied_tree / module).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint_imports(copied_tree)
    assert done.returncode != 0
    assert f"{contract} BROKEN" in done.stdout
