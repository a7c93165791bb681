"""What a group of processes cannot fill, or have, is refused by name before anything is opened."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from walbus.config import ConsumerConfig
from walbus.consumers import run_consumer
from walbus.errors import ConfigError, UsageError
from walbus.table_mapping import TableMapping

POSTGRES = {"sink": "postgres", "dsn": "postgresql://127.0.0.1:1/none", "into": "{schema}_{partition}"}
REDIS = {"sink": "redis", "url": "redis://127.0.0.1:1", "key": "{partition}:{table}:{key}"}
OPENSEARCH = {"url": "http://127.0.0.1:1", "index": "{table}-{partition}"}


def refused(folder: Path, **section: Any) -> ConfigError:
    config = ConsumerConfig(**{"parts": 4, **section})
    with pytest.raises(ConfigError) as caught:
        run_consumer(
            "orders",
            config,
            relay_url="http://127.0.0.1:1",
            folder=folder / "orders",
            status_path=None,
            stop=threading.Event(),
        )
    assert list(folder.iterdir()) == []
    return caught.value


@pytest.mark.parametrize(
    ("sink", "keys", "why"),
    [
        ("sqlite", {}, "one process of one machine"),
        ("tantivy", {}, "one process of one machine"),
        ("stdout", {}, "one process"),
        ("webhook", {"url": "https://example.org/hook"}, "no tokens"),
        ("kafka", {"bootstrap_servers": "127.0.0.1:1"}, "one writer"),
        ("opensearch", OPENSEARCH, "no tokens"),
        ("elasticsearch", OPENSEARCH, "no tokens"),
        ("redis", {**REDIS, "invalidate": "delete"}, "by one name"),
    ],
)
def test_a_sink_that_cannot_tell_a_holder_from_the_one_before_is_refused(
    tmp_path: Path, sink: str, keys: dict[str, Any], why: str
) -> None:
    error = refused(tmp_path, **{**keys, "sink": sink})
    assert f"the sink {sink}" in error.what
    assert why in error.what
    assert error.where == "key consumer.orders.parts"
    assert "partition" in str(error.mend)


def test_a_place_that_parts_would_share_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, **{**POSTGRES, "into": "{schema}"}).where == "key consumer.orders.into"


def test_a_pointer_to_the_rows_of_one_part_is_refused_where_those_of_all_lie_together(tmp_path: Path) -> None:
    error = refused(tmp_path, **{**REDIS, "key": "{table}:{key}", "pointer": "{partition}:live"})
    assert error.where == "key consumer.orders.pointer"
    assert "{partition}" in str(error.mend)


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"partition": "1/4"}, "partition"),
        ({"on_error": "dead-letter"}, "on_error"),
        ({"table": {"public.items": TableMapping(columns=("id",))}}, "table"),
    ],
)
def test_what_would_not_move_with_a_part_is_refused(tmp_path: Path, keys: dict[str, Any], where: str) -> None:
    assert refused(tmp_path, **POSTGRES, **keys).where == f"key consumer.orders.{where}"


def test_a_machine_with_another_number_of_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "orders.3-of-8").mkdir()
    config = ConsumerConfig(**POSTGRES, parts=4)
    with pytest.raises(UsageError, match="8 parts"):
        run_consumer(
            "orders",
            config,
            relay_url="http://127.0.0.1:1",
            folder=tmp_path / "orders",
            status_path=None,
            stop=threading.Event(),
        )


@pytest.mark.parametrize("keys", [{"parts": 0}, {"parts": 1025}, {"lease_seconds": 2.9}, {"lease_seconds": 61}])
def test_numbers_that_make_no_group_are_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        ConsumerConfig(**{**POSTGRES, "parts": 4, **keys})
