"""Where a demo lies, and what becomes of it."""

from __future__ import annotations

import os
import shutil
import stat
import tomllib
from pathlib import Path

import pytest

from walbus.config import load_settings
from walbus.demo.folder import demo_folder
from walbus.demo.postgres import EmbeddedPostgres
from walbus.demo.programs import find_binaries, reachable, unprivileged_account
from walbus.errors import UsageError

pytestmark = pytest.mark.one_version

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")


def test_a_temporary_folder_goes_at_the_end_with_all_that_is_in_it():
    with demo_folder(None, keep=False) as folder:
        folder.data.mkdir()
        assert folder.root.exists()
    assert not folder.root.exists()


def test_a_kept_folder_stays(open_folder: Path):
    with demo_folder(open_folder / "demo", keep=True) as folder:
        folder.data.mkdir()
    assert (open_folder / "demo" / "data").exists()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UsageError, match="not an empty folder"), demo_folder(tmp_path, keep=False):
        pass
    assert (tmp_path / "precious").exists()


def test_an_empty_folder_that_was_there_is_there_afterwards_and_empty(tmp_path: Path):
    with demo_folder(tmp_path, keep=False) as folder:
        folder.data.mkdir()
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_is_read_back_and_closed_to_others(tmp_path: Path):
    with demo_folder(tmp_path / 'quo"te \\ 🦊', keep=False) as folder:
        source = {"dsn": "postgresql://u:p@127.0.0.1:1/x", "tables": ["public.*"]}
        folder.write_config({"source": source, "consumer.cache": {"sink": "sqlite", "path": str(folder.cache)}})
        assert stat.S_IMODE(folder.config.stat().st_mode) == 0o600
        assert tomllib.loads(folder.config.read_text())["source"] == source
        settings = load_settings(folder.config)
        assert settings.data_dir == folder.data
        assert settings.consumer["cache"].options == {"path": str(folder.cache)}


@as_root
def test_where_postgresqls_user_cannot_pass_the_source_lies_elsewhere(open_folder: Path):
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    with demo_folder(closed / "demo", keep=False) as folder:
        assert folder.root not in folder.postgres.parents
        assert reachable(folder.postgres.parent, unprivileged_account(), mode="-x")
    assert not folder.postgres.parent.exists()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@as_root
def test_a_server_in_a_folder_that_its_user_cannot_reach_is_refused(open_folder: Path):
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(UsageError, match="cannot reach"):
        EmbeddedPostgres(closed / "pg").start()


@as_root
def test_programs_that_the_user_cannot_reach_are_copied_with_their_libraries_and_run(open_folder: Path):
    package = find_binaries(18).parent.parent
    closed = open_folder / "venv"
    closed.mkdir(mode=0o700)
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, closed / part.name, symlinks=True, ignore=shutil.ignore_patterns("include", "pginstall"))
    server = EmbeddedPostgres(open_folder / "pg", bin_dir=closed / package.name / "pginstall18" / "bin")
    try:
        server.start()
        assert open_folder / "pg" in server.bin_dir.parents
        with server.connect() as session:
            assert session.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.remove()
