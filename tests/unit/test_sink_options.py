"""A sink's own keys: what is wrong with them is told key by key, with the value, where it is and what to write."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from walbus.config_problems import InvalidConfig
from walbus.consumers.sinks import open_sink
from walbus.consumers.sinks.base import SinkPlace
from walbus.errors import ConfigError, SinkRefused

SECRET = "hunter22-canary"


def refused(kind: str, folder: Path, **options: Any) -> list[str]:
    """The lines that tell what is wrong."""
    with pytest.raises(ConfigError) as caught:
        open_sink(kind, options, SinkPlace("x", folder, ("*.*",)))
    error = caught.value
    return [str(one) for one in error.problems] if isinstance(error, InvalidConfig) else [str(error)]


def test_every_key_that_is_wrong_is_told_with_what_to_write(tmp_path: Path) -> None:
    assert refused("webhook", tmp_path, changes="many", request_second=3) == [
        "missing key (at key consumer.x.url); write it under [consumer.x]",
        "missing key (at key consumer.x.secret); write it under [consumer.x]",
        "'many' will not do: input should be a valid integer, unable to parse string as an integer "
        "(at key consumer.x.changes); write a whole number",
        "the sink has no such key (at key consumer.x.request_second); did you mean request_seconds?",
    ]


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("sqlite", {"paht": "a"}, "the sink has no such key (at key consumer.x.paht); did you mean path?"),
        ("sqlite", {"path": 3}, "should be a path (at key consumer.x.path); write a path in quotes"),
        ("sqlite", {"path": ""}, "'.' is a folder (at key consumer.x.path); write the path of the database's file"),
        ("postgres", {}, "missing key (at key consumer.x.dsn); write it under [consumer.x]"),
        (
            "redis",
            {"ttl": {"public.t": 0}},
            "0 will not do: input should be greater than or equal to 1 (at key consumer.x.ttl.public.t); "
            "write a larger number",
        ),
        (
            "redis",
            {"ttl": {"t": 5}},
            'this is none of the consumer\'s tables (at key consumer.x.ttl."t"); write schema.table, of a table that '
            "is among its tables",
        ),
    ],
)
def test_a_key_that_is_wrong_is_named(tmp_path: Path, kind: str, options: dict[str, Any], line: str) -> None:
    (told,) = refused(kind, tmp_path, **options)
    assert told.endswith(line)


def test_a_value_that_may_be_secret_is_not_told(tmp_path: Path) -> None:
    keys = {"url": SECRET, "secret": SECRET, "old_secret": SECRET, "headers": {"A B": SECRET}}
    lines = refused("webhook", tmp_path, **keys)
    assert len(lines) == len(keys)
    assert not any(SECRET in line for line in lines)


@pytest.mark.parametrize("content", [b"no database" * 100, b"tiny"])
def test_a_file_that_is_no_database_is_refused_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SinkRefused, match="move this one away"):
        open_sink("sqlite", {"path": path}, SinkPlace("x", tmp_path, ("*.*",)))
    assert path.read_bytes() == content


def test_a_folder_with_files_of_others_does_not_become_an_index(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    with pytest.raises(SinkRefused, match="files of somebody else, and no index"):
        open_sink("tantivy", {"path": folder}, SinkPlace("x", tmp_path, ("*.*",)))
    assert not folder.is_symlink()
    assert [one.name for one in folder.iterdir()] == ["letter.txt"]


def test_an_empty_folder_and_one_of_a_start_that_was_killed_become_an_index(tmp_path: Path) -> None:
    for name, files in (("empty", ()), ("begun", (".managed.json", ".tantivy-writer.lock"))):
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_text("[]" if file.endswith("json") else "")
        with closing(open_sink("tantivy", {"path": folder}, SinkPlace("x", tmp_path, ("*.*",)))):
            assert folder.is_symlink()
