"""Programs that cache rows in a Redis, whose keys the sink deletes as they change.

cache = Cache(client, in_slot)               of a cluster
seen = cache.begin("public.items:1")         before the program reads the source
cache.fill("public.items:1", seen, "value")  whether it was stored: not if the row may have changed meanwhile
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from redis.crc import key_slot

from support.sinks_under_test import SinkUnderTest
from walbus.consumers.sinks import SinkPlace
from walbus.consumers.sinks.redis_scripts import FILL

SLOTS = 16_384


@cache
def tags() -> list[str]:
    """By slot: the text that has a key lie there, made as the page for users says."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < SLOTS:
        found.setdefault(key_slot(b"%x" % number), f"{number:x}")
        number += 1
    return [found[slot] for slot in range(SLOTS)]


def in_slot(key: str) -> tuple[str, str]:
    """The keys that the version and the epoch of a cached key lie under on a cluster."""
    tag = tags()[key_slot(key.encode())]
    return f"walbus:test:v:{{{tag}}}:{key}", f"walbus:test:epoch:{{{tag}}}"


class Cache:
    """A program that caches rows: it looks at the version and the epoch, reads the source, and fills.

    Args:
        client: of a server or a cluster, for texts.
        beside: the keys that the version and the epoch of a key lie under.
    """

    def __init__(self, client: Any, beside: Callable[[str], tuple[str, str]]) -> None:
        self._client, self._beside = client, beside

    def begin(self, key: str) -> tuple[str, str]:
        version, epoch = self._client.mget(*self._beside(key))
        return version or "", epoch or ""

    def fill(self, key: str, seen: tuple[str, str], value: str, ms: int = 0) -> bool:
        return bool(self._client.eval(FILL, 3, key, *self._beside(key), *seen, value, ms))


def cached(client: Any) -> set[str]:
    """All keys but those of the sink's own."""
    return {key for key in client.scan_iter() if not key.startswith("walbus:")}


def caching(folder: Path, url: str) -> SinkUnderTest:
    """The sink that deletes what changed."""
    options = {"url": url, "invalidate": "delete"}
    return SinkUnderTest("redis", options, SinkPlace("test", folder, ("public.*",)), lambda _: {})
