"""Documents that lie are worse than none: links lead somewhere, and the commands they give exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_group

from walbus.cli.application import app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = get_group(app).commands
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
SHELL = re.compile(r"^```(?:sh|bash|console|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub and most renderers give to headings."""
    prose = FENCE.sub("", document.read_text())
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower() for heading in HEADING.findall(prose))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def is_dead(link: str, document: Path) -> bool:
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.exists() or not target.is_relative_to(ROOT):
        return True
    return bool(anchor) and target.suffix == ".md" and anchor not in anchors(target)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = [a or b for a, b in LINK.findall(FENCE.sub("", document.read_text()))]
    assert [link for link in links if not re.match(r"[a-z]+:", link) and is_dead(link, document)] == []


def shell_lines(document: Path) -> list[str]:
    """The commands of a document's shell blocks, continuation lines joined and prompts removed."""
    blocks = "\n".join(SHELL.findall(document.read_text())).replace("\\\n", " ")
    return [line.strip().removeprefix("$ ") for line in blocks.splitlines() if line.strip()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_make_targets_in_documents_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z.][\w./ -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {name for group in targets for name in group.split()}
    used = {match for line in shell_lines(document) for match in re.findall(r"\bmake ([a-z][\w-]*)", line)}
    assert used - known == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_extras_in_documents_exist(document: Path) -> None:
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    used = {e for extras in re.findall(r"walbus\[([a-z,]+)\]", document.read_text()) for e in extras.split(",")}
    assert used - known == set()


#: Commands that documents may name as planned, and that do not exist yet.
PLANNED = {"consumers", "dead-letters", "log", "rebuild", "snapshot", "verify"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_walbus_commands_in_documents_exist(document: Path) -> None:
    named = set(re.findall(r"`walbus ([a-z][a-z-]*)", document.read_text()))
    typed = {word for line in shell_lines(document) for word in re.findall(r"(?:^|/)walbus ([a-z-]+)", line)}
    assert (named - PLANNED | typed) - COMMANDS.keys() == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_options_of_walbus_in_documents_exist(document: Path) -> None:
    unknown = []
    for line in shell_lines(document):
        for word, rest in re.findall(r"(?:^|/)walbus ([a-z]+)([^|#;&]*)", line):
            known = {option for parameter in COMMANDS[word].params for option in parameter.opts}
            unknown += sorted(set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest)) - known)
    assert unknown == []


def test_every_decision_stands_in_the_index_once() -> None:
    pages = sorted(page.name for page in (ROOT / "docs" / "adr").glob("*.md") if not page.name.startswith("0001"))
    index = (ROOT / "docs" / "adr" / "0001-record-decisions.md").read_text()
    assert sorted(re.findall(r"\((\d{4}-[\w-]+\.md)\)", index)) == pages
    assert len({page[:4] for page in pages}) == len(pages)
