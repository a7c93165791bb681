"""A process that has to do with the generations of table topics is killed at each step, and again and again."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from support.model_source import ITEMS, ModelSource, update
from support.rebuild_rig import Load, Looks, config_for, differing, dropped, filled, looking_at, rebuilt
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.seed import announced_seed
from support.sinks_under_test import SinkUnderTest, kafka_under_test
from support.topic_rows import reader_of
from support.waiting import wait_for
from walbus.consumers.rebuilding import discard
from walbus.position import parse_position

pytestmark = pytest.mark.one_version

#: Does something, and is killed as soon as a step is done, or just before it.
STEPS = """
import json, os, signal, threading
from pathlib import Path
from walbus.config import ConsumerConfig
from walbus.consumers import rebuilding
from walbus.consumers.sinks import kafka_copy, kafka_home

def ends(owner, name, when):
    step = getattr(owner, name)
    def ending(*args, **named):
        if when == "behind":
            step(*args, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **named)
    setattr(owner, name, ending)

told = json.loads({told!r})
if told["step"]:
    ends(getattr(globals()[told["step"][0]], told["step"][1]), told["step"][2], told["when"])
config = ConsumerConfig(sink="kafka", tables=("public.*",), **told["options"])
folder, stop = Path(told["folder"]), threading.Event()
if told["command"] == "rebuild":
    rebuilding.rebuild("test", config, relay_url=told["url"], folder=folder, stop=stop)
else:
    getattr(rebuilding, told["command"])("test", config, folder)
"""

Begins = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def under_test(kafka: str, tmp_path: Path) -> SinkUnderTest:
    return kafka_under_test(tmp_path, kafka)


@pytest.fixture
def begins(under_test: SinkUnderTest, relay: ScriptedRelay) -> Iterator[Begins]:
    """Starts a process that ends at a step of its own accord, if it is told one."""
    started: list[subprocess.Popen[bytes]] = []

    def begins(command: str, when: str = "", step: str = "") -> subprocess.Popen[bytes]:
        told = json.dumps(
            {
                "command": command,
                "when": when,
                "step": step.split(".") if step else None,
                "url": relay.url,
                "options": under_test.options,
                "folder": str(under_test.place.folder),
            }
        )
        started.append(subprocess.Popen([sys.executable, "-c", STEPS.format(told=told)]))
        return started[-1]

    yield begins
    for process in started:
        process.kill()
        process.wait()


def killed(process: subprocess.Popen[bytes]) -> None:
    assert process.wait(60) == -signal.SIGKILL, "the step was there"


def shown(under_test: SinkUnderTest) -> str:
    """Which generation counts."""
    reader = reader_of(under_test)
    return reader.turned().prefix.removeprefix(reader.prefix)


def lies_there(under_test: SinkUnderTest) -> set[str]:
    """The generations that have topics beside the one checkpoint that stays."""
    prefix = reader_of(under_test).prefix
    found = AdminClient({"bootstrap.servers": under_test.options["bootstrap_servers"]}).list_topics(timeout=30).topics
    own = [topic for topic in found if topic.startswith(prefix) and topic != f"{prefix}.checkpoint"]
    return {topic.removeprefix(prefix).partition(".")[0] for topic in own}


@pytest.mark.parametrize(
    ("when", "step", "swapped"),
    [
        ("behind", "kafka_home.Home.note", False),
        ("behind", "kafka_copy.KafkaCopy.commit", False),
        ("behind", "kafka_copy.KafkaCopy.hold", False),
        ("before", "kafka_copy.KafkaCopy._point", False),
        ("behind", "kafka_copy.KafkaCopy._point", True),
    ],
)
def test_a_rebuild_that_is_killed_at_a_step_leaves_one_live_generation_and_the_consumer_follows(
    when: str,
    step: str,
    swapped: bool,
    under_test: SinkUnderTest,
    relay: ScriptedRelay,
    source: ModelSource,
    begins: Begins,
) -> None:
    filled(relay, under_test, source)
    load, looks = Load(source, announced_seed(step), pause=0.05), Looks(looking_at(under_test))
    with load, looks, consumer(relay, under_test) as running:
        killed(begins("rebuild", when, step))
        assert shown(under_test) == ("-1" if swapped else "")
        reached = source.end
        wait_for(lambda: parse_position(running.status()["last_done"]) >= reached, what="the consumer goes on")
        assert dropped(under_test) is swapped
        rebuilt(relay, under_test)
        assert shown(under_test) == ("-2" if swapped else "-1")
    with consumer(relay, under_test):
        equal(under_test, relay)
    assert differing(relay, under_test) == [0]


def test_a_rebuild_that_is_killed_again_and_again_comes_to_its_end_with_no_row_lost(
    under_test: SinkUnderTest, relay: ScriptedRelay, source: ModelSource, begins: Begins
) -> None:
    chance = random.Random(announced_seed("a rebuild of topics is killed at any moment"))
    filled(relay, under_test, source)
    swaps = 0
    load, looks = Load(source, chance.getrandbits(32), pause=0.05), Looks(looking_at(under_test))
    with load, looks, consumer(relay, under_test) as running:
        for _ in range(8):
            rebuilding = begins("rebuild")
            time.sleep(chance.uniform(0.5, 5))  # the moment of a kill is the test's input
            rebuilding.kill()
            rebuilding.wait()
            swaps += dropped(under_test)
        reached = source.end
        wait_for(lambda: parse_position(running.status()["last_done"]) >= reached, what="the consumer goes on")
        swaps += dropped(under_test)  # of a swap that the cluster ended only behind the kill
        rebuilt(relay, under_test)
        swaps += dropped(under_test)
    with consumer(relay, under_test) as running:
        followed(running, under_test, relay, update(ITEMS, 3, name="behind all of it"))
    assert differing(relay, under_test) == [0]
    assert swaps >= 1
    assert lies_there(under_test) == {shown(under_test)}


@pytest.mark.parametrize("command", ["discard", "drop_kept"])
@pytest.mark.parametrize(("when", "step"), [("before", "kafka_home.Home.delete"), ("behind", "kafka_home.Home.delete")])
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
        killed(begins("rebuild", "behind", "kafka_copy.KafkaCopy.commit"))
    live = shown(under_test)
    assert len(lies_there(under_test)) == 2
    with Looks(looking_at(under_test)):
        killed(begins(command, when, step))
        if command == "drop_kept":
            dropped(under_test)
        else:
            discard("test", config_for(under_test), under_test.place.folder)
    assert (shown(under_test), lies_there(under_test)) == (live, {live})
    rebuilt(relay, under_test)
    assert under_test.rows() == source.rows(ITEMS)
