"""The whole demo as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.maven_jars import JARS
from support.services import missing
from support.waiting import wait_for
from walbus.demo import run as demo_run
from walbus.demo.jars import check_java, fetched
from walbus.demo.kafka_server import KAFKA, LEAST_JAVA
from walbus.errors import UsageError

pytestmark = pytest.mark.timeout(480)


def demo(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "walbus", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def processes_that_name(folder: Path) -> list[str]:
    """Command lines with the folder in them, of processes that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and "walbus demo" not in command:
            found.append(command)
    return found


@pytest.fixture
def folder(open_folder: Path) -> Iterator[Path]:
    """Where a demo shall lie; whatever happens in it, nothing may live there afterwards."""
    yield open_folder / "demo"
    wait_for(lambda: processes_that_name(open_folder) == [], what="nothing lives there")


def test_the_shop_with_kills_ends_without_a_difference_and_leaves_nothing(folder: Path):
    process = demo("--seconds", "5", "--rate", "80", "--kills", "2", "--seed", "7", "--data-dir", str(folder))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert out.splitlines()[-1] == "differences: 0"
    assert out.count("SIGKILL to") == 2
    assert err == ""
    assert not folder.exists()


def test_pgbench_ends_without_a_difference(folder: Path):
    arguments = ("--workload", "pgbench", "--seconds", "3", "--rate", "50", "--kills", "1")
    process = demo(*arguments, "--data-dir", str(folder))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert out.splitlines()[-1] == "differences: 0"


@pytest.fixture
def with_jars(tmp_path: Path) -> dict[str, str]:
    """An environment in which the demo finds the jars that tests keep."""
    try:
        check_java(LEAST_JAVA)
        fetched(KAFKA, JARS)
    except UsageError as error:
        missing("kafka", str(error))
    (tmp_path / "walbus").mkdir()
    (tmp_path / "walbus" / "jars").symlink_to(JARS)
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}


def test_with_the_log_on_kafka_it_ends_without_a_difference_and_leaves_nothing(folder: Path, with_jars: dict[str, str]):
    arguments = ("--engine", "kafka", "--seconds", "5", "--rate", "50", "--kills", "2", "--seed", "7")
    process = demo(*arguments, "--data-dir", str(folder), env=with_jars)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert out.splitlines()[-1] == "differences: 0"
    assert "the log lies on Apache Kafka" in out
    assert out.count("SIGKILL to") == 2
    assert err == ""
    assert not folder.exists()


def test_without_java_the_demo_on_kafka_says_what_to_install(folder: Path, tmp_path: Path):
    process = demo("--engine", "kafka", "--data-dir", str(folder), env={**os.environ, "PATH": str(tmp_path)})
    out, err = process.communicate(timeout=400)
    assert process.returncode != 0, out
    assert "there is no java" in err
    assert "apt-get install default-jdk-headless" in err
    assert not folder.exists()


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGINT, "load for"), (signal.SIGTERM, "copying")])
def test_an_interrupted_demo_leaves_neither_file_nor_process(folder: Path, number: signal.Signals, moment: str):
    process = demo("--seconds", "60", "--rate", "50", "--data-dir", str(folder))
    assert process.stdout is not None
    assert any(moment in line for line in process.stdout), process.communicate()[1]
    process.send_signal(number)
    _, err = process.communicate(timeout=150)
    assert process.returncode == 130
    assert err == ""
    assert not folder.exists()


def test_a_kept_demo_says_where_it_lies(folder: Path):
    process = demo("--seconds", "1", "--rate", "20", "--kills", "0", "--keep", "--data-dir", str(folder))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert f"kept: {folder}" in out
    assert (folder / "walbus.toml").exists()


def test_a_folder_with_something_in_it_is_one_line_and_exit_code_2(open_folder: Path):
    (open_folder / "precious").touch()
    process = demo("--data-dir", str(open_folder))
    _, err = process.communicate(timeout=150)
    assert (process.returncode, err.count("\n")) == (2, 1)
    assert "not an empty folder" in err
    assert [path.name for path in open_folder.iterdir()] == ["precious"]


def test_a_missing_extra_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo_run, "find_spec", lambda name: None if name == "tantivy" else object())
    with pytest.raises(UsageError, match=r"the demo needs tantivy; run pip install 'walbus\[demo\]'"):
        demo_run.run_demo(seconds=1)
