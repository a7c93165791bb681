"""A process that has to do with a tantivy index's folders is killed at each step, stands still, or finds no room."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.model_source import ITEMS, ModelSource, insert, update
from support.rebuild_rig import Load, Looks, config_for, differing, dropped, filled, looking_at, rebuilt
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sinks_under_test import SinkUnderTest, tantivy_under_test
from support.waiting import wait_for
from walbus.consumers.rebuilding import discard
from walbus.errors import SinkRefused
from walbus.position import parse_position

pytestmark = pytest.mark.one_version

#: Does something, and is killed, or stopped, as soon as a step is done, or just before it.
STEPS = """
import os, pathlib, shutil, signal, sys, threading
from pathlib import Path
from walbus.config import ConsumerConfig
from walbus.consumers import rebuilding, run_consumer
from walbus.consumers.sinks import tantivy_copy, tantivy_folders, tantivy_index, tantivy_live

def ends(owner, name, when):
    step = getattr(owner, name)
    def ending(*args, **named):
        if when == "behind":
            step(*args, **named)
        os.kill(os.getpid(), signal.{signal})
        return step(*args, **named)
    setattr(owner, name, ending)

ends({owner}, {name!r}, {when!r})
config = ConsumerConfig(sink="tantivy", tables=("public.*",), path=Path({path!r}), heap_mb=16)
folder, stop = Path({folder!r}), threading.Event()
if {command!r} == "rebuild":
    rebuilding.rebuild("test", config, relay_url={url!r}, folder=folder, stop=stop)
elif {command!r} == "consume":
    run_consumer("test", config, relay_url={url!r}, folder=folder, status_path=None, stop=stop)
else:
    getattr(rebuilding, {command!r})("test", config, folder)
"""


@pytest.fixture
def under_test(tmp_path: Path) -> SinkUnderTest:
    return tantivy_under_test(tmp_path)


Begins = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def begins(under_test: SinkUnderTest, relay: ScriptedRelay) -> Iterator[Begins]:
    """Starts a process that ends at a step of its own accord."""
    started: list[subprocess.Popen[bytes]] = []

    def begins(command: str, when: str, step: str, by: str = "SIGKILL") -> subprocess.Popen[bytes]:
        owner, _, name = step.rpartition(".")
        code = STEPS.format(
            **{"owner": owner, "name": name, "when": when, "command": command, "signal": by, "url": relay.url},
            path=str(under_test.options["path"]),
            folder=str(under_test.place.folder),
        )
        started.append(subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]))
        return started[-1]

    yield begins
    for process in started:
        process.kill()
        process.wait()


def killed(process: subprocess.Popen[bytes]) -> None:
    assert process.wait(60) == -signal.SIGKILL, "the step was there"


def shown(under_test: SinkUnderTest) -> str:
    return str(Path(under_test.options["path"]).readlink())


def lies_there(under_test: SinkUnderTest) -> list[str]:
    path = Path(under_test.options["path"])
    return sorted(one.name for one in path.parent.iterdir() if one.name.startswith("index~") and one.is_dir())


@pytest.mark.parametrize(
    ("when", "step", "swapped"),
    [
        ("behind", "tantivy_folders.IndexFolders.beside", False),
        ("behind", "tantivy_copy.RowIndex", False),
        ("behind", "tantivy_copy.TantivyCopy.commit", False),
        ("behind", "tantivy_copy.TantivyCopy.furnish", False),
        ("behind", "tantivy_copy.TantivyCopy.hold", False),
        ("before", "tantivy_folders.IndexFolders.point_to", False),
        ("before", "pathlib.Path.replace", False),
        ("behind", "pathlib.Path.replace", True),
        ("before", "tantivy_index.RowIndex.hand_over", True),
        ("behind", "tantivy_index.RowIndex.hand_over", True),
    ],
)
def test_a_rebuild_that_is_killed_at_a_step_leaves_one_live_index_and_the_consumer_follows(
    when: str,
    step: str,
    swapped: bool,
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    begins: Begins,
) -> None:
    filled(relay, under_test, source)
    with Load(source, announced_seed(step)), Looks(looking_at(under_test)), consumer(relay, under_test) as running:
        killed(begins("rebuild", when, step))
        assert shown(under_test) == ("index~2" if swapped else "index~1")
        reached = source.end
        wait_for(lambda: parse_position(running.status()["last_done"]) >= reached, what="the consumer goes on")
        assert dropped(under_test) is swapped
        rebuilt(relay, under_test)
        assert shown(under_test) == ("index~3" if swapped else "index~2")
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert differing(relay, under_test) == [0]


@pytest.mark.parametrize("command", ["discard", "drop_kept"])
@pytest.mark.parametrize(
    ("when", "step"),
    [("before", "pathlib.Path.rename"), ("behind", "pathlib.Path.rename"), ("before", "shutil.rmtree")],
)
def test_a_deletion_that_is_killed_is_ended_by_the_next_one(
    command: str,
    when: str,
    step: str,
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    begins: Begins,
) -> None:
    filled(relay, under_test, source)
    if command == "drop_kept":
        rebuilt(relay, under_test)
    else:
        killed(begins("rebuild", "behind", "tantivy_copy.TantivyCopy.commit"))
    live = shown(under_test)
    assert len(lies_there(under_test)) == 2
    with Looks(looking_at(under_test)):
        killed(begins(command, when, step))
        if command == "drop_kept":
            dropped(under_test)
        else:
            discard("test", config_for(under_test), under_test.place.folder)
    assert (shown(under_test), lies_there(under_test)) == (live, [live])
    rebuilt(relay, under_test)
    assert under_test.rows() == source.rows(ITEMS)


@pytest.mark.parametrize(
    ("when", "step"),
    [
        ("behind", "pathlib.Path.mkdir"),
        ("before", "tantivy_folders.IndexFolders.begun"),
        ("before", "tantivy_folders.IndexFolders.point_to"),
        ("behind", "pathlib.Path.symlink_to"),
        ("behind", "pathlib.Path.replace"),
        ("behind", "tantivy_live.RowIndex"),
    ],
)
def test_a_first_start_that_is_killed_at_a_step_is_begun_again(
    when: str, step: str, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, begins: Begins
) -> None:
    source.commit([insert(ITEMS, 1)])
    killed(begins("consume", when, step))
    filled(relay, under_test, source)
    assert (shown(under_test), lies_there(under_test)) == ("index~1", ["index~1"])
    rebuilt(relay, under_test)


@pytest.mark.parametrize(
    ("when", "step"),
    [
        ("before", "tantivy_folders._exchange"),
        ("behind", "tantivy_folders._exchange"),
        ("before", "tantivy_index.RowIndex.close"),
        ("behind", "tantivy_index.RowIndex.close"),
    ],
)
def test_a_folder_of_before_has_an_answer_at_each_step_on_its_way_to_a_link(
    when: str, step: str, under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, begins: Begins
) -> None:
    filled(relay, under_test, source)
    path = Path(under_test.options["path"])
    folder = path.resolve()
    path.unlink()
    folder.rename(path)
    with Looks(looking_at(under_test)):
        killed(begins("consume", when, step))
        with consumer(relay, under_test) as running:
            followed(running, under_test, relay, update(ITEMS, 5, name="goes on"))
            assert (shown(under_test), lies_there(under_test)) == ("index~1", ["index~1"])
            rebuilt(relay, under_test)
    assert differing(relay, under_test) == [0]


def test_a_rebuild_that_stands_still_in_the_swap_keeps_the_writer_waiting_and_no_reader(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, begins: Begins
) -> None:
    filled(relay, under_test, source)
    with Looks(looking_at(under_test)) as looks, consumer(relay, under_test) as running:
        stands = begins("rebuild", "before", "tantivy_folders.IndexFolders.point_to", "SIGSTOP")
        stat = Path(f"/proc/{stands.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="it stands still")
        source.commit([update(ITEMS, 5, name="waits")])
        wait_for(lambda: "another process commits" in str(running.status().get("waiting_for")), what="the writer waits")
        seen = looks.seen
        wait_for(lambda: looks.seen > seen + 5, what="readers read on")
        with pytest.raises(SinkRefused, match="another `walbus rebuild` has to do with this index"):
            discard("test", config_for(under_test), under_test.place.folder)
        stands.send_signal(signal.SIGCONT)
        assert stands.wait(60) == 0
        assert shown(under_test) == "index~2"
        equal(under_test, relay)
    assert differing(relay, under_test) == [0]


@pytest.fixture
def little_room(tmp_path: Path) -> Iterator[Path]:
    """Three megabytes where the copy will lie."""
    place = tmp_path / "index~2"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system takes the right to mount one")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_copy_whose_disk_is_full_waits_and_the_live_index_goes_on(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, little_room: Path, begins: Begins
) -> None:
    path = Path(under_test.options["path"])
    path.symlink_to("index~1")
    path.with_name("index~1").mkdir()
    words = [" ".join(f"w{n}x{word}" for word in range(300)) for n in range(1_500)]
    source.commit([insert(ITEMS, 1_000 + n, "n", words[n]) for n in range(1_500)])
    filled(relay, under_test, source)
    with Looks(looking_at(under_test)) as looks, consumer(relay, under_test) as running:
        rebuilding = begins("rebuild", "before", "tantivy_folders.IndexFolders.point_to")
        wait_for(lambda: shutil.disk_usage(little_room).free < 1 << 18, what="the disk is full")
        followed(running, under_test, relay, update(ITEMS, 5, name="goes on"))
        assert (rebuilding.poll(), shown(under_test)) == (None, "index~1")
        seen = looks.seen
        subprocess.run(["mount", "-o", "remount,size=200m", str(little_room)], check=True)
        killed(rebuilding)  # where it would swap
        wait_for(lambda: looks.seen > seen)
    rebuilt(relay, under_test)
    assert shown(under_test) == "index~2"
    assert under_test.rows() == source.rows(ITEMS)
    with closing(under_test.open()) as sink:
        assert sink.checkpoint() is not None
