"""What `walbus status` draws from a report, and what it says of rooms that are down."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from walbus.amounts import human_bytes
from walbus.cli.status_report import consumers_of, from_file, supervisor_of
from walbus.cli.status_table import table_of
from walbus.status import write_status


def drawn(**parts: dict[str, Any]) -> dict[str, str]:
    """Lines of the table by room."""
    down = {"state": "down", "error": "Connection refused"}
    rooms = ("source", "capture", "relay", "bootstrap", "supervisor")
    report = dict.fromkeys(rooms, down) | {"consumers": {}} | parts
    console = Console(width=200, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115 - closed with the test
    with console.file:
        console.print(table_of(report))
        text = console.export_text()
    return {line.split()[0]: " ".join(line.split()) for line in text.splitlines()[2:] if line.strip()}


def test_a_room_that_is_down_says_why() -> None:
    lines = drawn()
    assert lines["relay"] == "relay down Connection refused"


def test_a_room_without_server_says_when_it_was_last_heard_of() -> None:
    lines = drawn(capture={"state": "down", "age_seconds": 93.2, "status": {"confirmed": "0/1"}})
    assert lines["capture"] == "capture down 0/1 last heard of 93 s ago"


def test_capture_names_its_core_where_it_is_the_slow_one() -> None:
    up: dict[str, Any] = {"state": "up", "status": {"state": "streaming", "core": "pure (extension not built)"}}
    assert drawn(capture=up)["capture"] == "capture up streaming, pure (extension not built) core"
    up["status"] = {"state": "streaming", "core": "native"}
    assert drawn(capture=up)["capture"] == "capture up streaming"


def test_the_slot_tells_what_it_holds_back() -> None:
    slot = {"slot_name": "walbus", "active": False, "confirmed_lsn": "0/10", "lag_bytes": 2048}
    lines = drawn(source={"state": "up", "slot": slot | {"retained_bytes": 3 << 20, "wal_status": "extended"}})
    assert lines["source"] == "source up 0/10 2.0 KiB slot walbus not active, holds 3.0 MiB of WAL, WAL extended"


def test_a_missing_slot_is_told() -> None:
    lines = drawn(source={"state": "up", "slot": {"slot_name": "walbus", "missing": True}})
    assert "there is no slot walbus" in lines["source"]


def test_lag_is_counted_from_the_end_of_the_log() -> None:
    lines = drawn(
        relay={"state": "up", "info": {"end": "1:0/5000:0", "bytes": 10, "trimmed": "0:0/0:0"}},
        bootstrap={"state": "up", "served": {"applied": "1:0/4000:2", "tables": [
            {"table": "public.a", "state": "consistent"}, {"table": "public.b", "state": "seeding"}
        ]}, "status": {"walbus_bootstrap_seeding_chunks_done": 3, "walbus_bootstrap_seeding_chunks_total": 9}},
        consumers={"cache": {"state": "up", "sink": "redis", "status": {
            "last_done": "1:0/4C00:1", "phase": "online", "waiting_for": "Redis is away",
            "walbus_consumer_lag_seconds": 0.25, "walbus_consumer_changes_total": 7,
        }}},
    )  # fmt: skip
    expected = "bootstrap up 1:0/4000:2 4.0 KiB 1 of 2 tables consistent, public.b seeding, chunks 3/9"
    assert lines["bootstrap"] == expected
    assert lines["consumer"] == "consumer cache up 1:0/4C00:1 1.0 KiB, 0.2 s redis, online, 7 changes, Redis is away"


KNOWN: dict[str, Any] = {
    "name": "mailer", "sink": None, "phase": "online", "waiting_for": None, "last_done": "1:0/4C00:1", "streams": 1,
    "last_seen": 0.0, "lag": {"changes": 3, "bytes": 2048, "seconds": 1.5, "leaves_in_hours": 5.0, "gone": False},
}  # fmt: skip


def test_a_consumer_that_only_the_relay_knows_is_listed_with_its_lag() -> None:
    consumers = consumers_of({}, [KNOWN])
    assert drawn(consumers=consumers)["consumer"] == ("consumer mailer up 1:0/4C00:1 2.0 KiB, 1.5 s library, online")
    away = consumers_of({}, [KNOWN | {"streams": 0, "lag": None}])
    assert "consumer mailer down 1:0/4C00:1 last heard of" in drawn(consumers=away)["consumer"]


def test_what_the_relay_knows_of_a_configured_consumer_stands_beside_what_it_says_itself() -> None:
    configured: dict[str, Any] = {"mailer": {"sink": "redis", "state": "up", "status": {"phase": "online"}}, "b": {}}
    merged = consumers_of(configured, [KNOWN])
    assert merged["mailer"]["known"]["lag"]["bytes"] == 2048
    assert (merged["mailer"]["state"], merged["mailer"]["sink"]) == ("up", "redis")
    assert list(merged) == ["mailer", "b"]
    assert "known" not in merged["b"]


def test_a_bootstrap_that_is_switched_off_is_not_down() -> None:
    assert drawn(bootstrap={"state": "off"})["bootstrap"] == "bootstrap off"


def test_a_status_file_that_is_old_is_of_a_room_that_is_down(tmp_path: Path) -> None:
    path = tmp_path / "capture.json"
    write_status(path, {"confirmed": "0/1"})
    written = path.stat().st_mtime
    assert from_file(path, now=written + 1)["state"] == "up"
    old = from_file(path, now=written + 60)
    assert (old["state"], old["age_seconds"], old["status"]) == ("down", 60.0, {"confirmed": "0/1"})


def test_a_room_that_never_ran_is_down(tmp_path: Path) -> None:
    assert from_file(tmp_path / "capture.json")["error"] == "never ran here"


def test_a_supervisor_is_up_while_its_process_lives(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.json"
    path.write_text(json.dumps({"pid": os.getpid(), "children": {}}))
    assert supervisor_of(path)["state"] == "up"
    path.write_text(json.dumps({"pid": 2**22 + 1, "children": {}}))
    assert supervisor_of(path)["state"] == "down"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 50, "3072.0 TiB")]
)
def test_sizes_are_for_people(size: int, text: str) -> None:
    assert human_bytes(size) == text
