"""SIGKILL to rooms in front of a broker, and to the broker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random

from support.waiting import wait_for
from support.whole_system import WholeSystem
from walbus.demo.kafka_server import Cluster


def kill_in_turn(system: WholeSystem, cluster: Cluster, victims: Sequence[str], rng: Random) -> None:
    """Kills rooms by their names, and the one `broker`, which is started again; at drawn moments."""
    for victim in victims:
        time.sleep(rng.uniform(0.1, 1.2))  # the moment of a kill is the test's input
        if victim == "broker":
            cluster.brokers[0].kill()
            cluster.brokers[0].start()
            cluster.await_answer()
        else:
            wait_for(lambda victim=victim: system.kill(victim), 60, what=f"{victim} to run and be killed")
