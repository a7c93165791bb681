"""The ways in which capture reads its slot: options of [source] for each, and what the server needs to show them."""

from __future__ import annotations

import random
from typing import Any

from support.database import Database

#: Way -> options of [source].
WAYS: dict[str, dict[str, Any]] = {
    "whole": {"streaming": False, "catch_up": False},
    "streamed": {"catch_up": False},
    "prepared": {"two_phase": True},
    "catch-up": {"streaming": False, "catch_up_step_bytes": 1 << 20},
}

#: Settings under which transactions of 64 kB are streamed, and some can be prepared.
SERVER = {"logical_decoding_work_mem": "64kB", "max_prepared_transactions": "20"}

DRAWN = "drawn"  #: one of them, by the seed


def chosen_way(way: str, database: Database, seed: int) -> str:
    """The way itself, or a drawn one that this PostgreSQL has; skips the test if it lacks what is asked for."""
    if way == DRAWN:
        way = random.Random(seed).choice([name for name in WAYS if name != "prepared" or database.major >= 15])
        print(f"capture reads {way}")
    if way == "prepared":
        database.needs(15, "decoding at PREPARE by pgoutput")
    return way
