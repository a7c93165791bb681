"""Rules of naming and size that no linter knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("walbus", "capture", "relay", "bootstrap", "consumers")
SOURCES = sorted(file for top in (*CODE, "tests", "bench", ".ci") for file in (ROOT / top).rglob("*.py"))
TEXTS = [*SOURCES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.yml")]
VAGUE = re.compile(r"(utils?|helpers?|commons?|misc|managers?)(\.py)?$")
PERSONAL = re.compile(r"(?<![\w.:/$}])/(home|root|Users|mnt)/\w")


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [str(file) for file in SOURCES if VAGUE.search(file.name) or VAGUE.search(file.parent.name)] == []


def test_no_file_knows_a_developers_own_folders() -> None:
    found = [str(file.relative_to(ROOT)) for file in TEXTS if PERSONAL.search(file.read_text())]
    assert found == []


def test_test_modules_have_names_of_their_own() -> None:
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("file", [f for f in SOURCES if f.relative_to(ROOT).parts[0] in CODE], ids=str)
def test_a_module_says_what_it_is_for(file: Path) -> None:
    assert file.read_text().lstrip().startswith(('"""', 'r"""'))


@pytest.mark.parametrize(("tops", "most"), [(CODE, 450), (("tests", "bench"), 600)])
def test_no_module_outgrows_one_subject(tops: tuple[str, ...], most: int) -> None:
    """About 400 lines is where a file has become two things; a suite of tests may be somewhat longer."""
    files = [file for file in SOURCES if file.relative_to(ROOT).parts[0] in tops]
    grown = {str(file.relative_to(ROOT)): n for file in files if (n := len(file.read_text().splitlines())) > most}
    assert grown == {}
