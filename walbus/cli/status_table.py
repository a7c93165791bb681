"""Draws the report of `walbus status` as a table: a row for each room, with its place, its lag and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from walbus.amounts import human_bytes
from walbus.errors import InvalidText
from walbus.lsn import parse_lsn
from walbus.position import parse_position

_STYLES = {"up": "green", "down": "bold red", "off": "dim"}


class _Cells(NamedTuple):
    """A room's row behind its name and state."""

    position: str = ""
    lag: str = ""
    details: str = ""


def table_of(report: Mapping[str, Any]) -> Table:
    """The table."""
    end = _lsn_of(report["relay"].get("info", {}).get("end"))
    table = Table(title="walbus", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("room", "state", "position", "lag", "details"):
        table.add_column(heading, overflow="fold")
    _row(table, "source", report["source"], _source(report["source"]))
    _row(table, "capture", report["capture"], _capture(report["capture"]))
    _row(table, "relay", report["relay"], _relay(report["relay"]))
    _row(table, "bootstrap", report["bootstrap"], _bootstrap(report["bootstrap"], end))
    for name, consumer in report["consumers"].items():
        _row(table, f"consumer {name}", consumer, _consumer(consumer, end))
    _row(table, "supervisor", report["supervisor"], _supervisor(report["supervisor"]))
    return table


def _row(table: Table, name: str, part: Mapping[str, Any], cells: _Cells) -> None:
    """A room's row; of one that is down, the reason and when it last said something."""
    state = part["state"]
    details = _why_down(part) if state == "down" else cells.details
    table.add_row(name, Text(state, style=_STYLES[state]), cells.position, cells.lag, Text(details))


def _why_down(part: Mapping[str, Any]) -> str:
    age = part.get("age_seconds")
    told = f"last heard of {age:.0f} s ago" if age is not None else ""
    return _joined(part.get("error"), told)


def _source(part: Mapping[str, Any]) -> _Cells:
    if "slot" not in part:
        return _Cells()
    slot = part["slot"]
    if slot.get("missing"):
        return _Cells(details=f"there is no slot {slot['slot_name']}")
    details = f"slot {slot.get('slot_name')} {'active' if slot.get('active') else 'not active'}"
    if slot.get("retained_bytes") is not None:
        details += f", holds {human_bytes(slot['retained_bytes'])} of WAL"
    if slot.get("safe_bytes") is not None:
        details += f", lost after {human_bytes(max(slot['safe_bytes'], 0))} more"
    if slot.get("wal_status") not in {None, "reserved"}:
        details += f", WAL {slot['wal_status']}"
    lag = slot.get("lag_bytes")
    return _Cells(slot.get("confirmed_lsn") or "", "" if lag is None else human_bytes(lag), details)


def _capture(part: Mapping[str, Any]) -> _Cells:
    said = part.get("status", {})
    lag, seconds = said.get("walbus_capture_lag_bytes"), said.get("walbus_capture_lag_seconds")
    behind = _joined("" if lag is None else human_bytes(lag), "" if seconds is None else f"{seconds:.1f} s")
    spooled = said.get("walbus_capture_spooled_bytes")
    details = _joined(
        said.get("state"),
        _count(said.get("walbus_capture_changes_total")),
        f"{human_bytes(spooled)} spooled" if spooled else "",
        f"{core} core" if (core := said.get("core", "native")) != "native" else "",
        said.get("catch_up"),
        f"waits for standby {', '.join(away)}" if (away := said.get("standbys_away")) else "",
        said.get("error"),
    )
    return _Cells(str(said.get("confirmed", "")), behind, details)


def _relay(part: Mapping[str, Any]) -> _Cells:
    info = part.get("info", {})
    size = info.get("bytes")
    details = "" if size is None else f"log of {human_bytes(size)}, trimmed to {info.get('trimmed')}"
    return _Cells(str(info.get("end", "")), "", details)


def _bootstrap(part: Mapping[str, Any], end: int | None) -> _Cells:
    served, said = part.get("served", {}), part.get("status", {})
    tables = served.get("tables", [])
    others = [f"{table['table']} {table['state']}" for table in tables if table.get("state") != "consistent"]
    done, total = (said.get(f"walbus_bootstrap_seeding_chunks_{which}") for which in ("done", "total"))
    seeding = f"chunks {done}/{total}" if total and done != total else ""
    summary = f"{len(tables) - len(others)} of {len(tables)} tables consistent" if tables else ""
    applied, size = served.get("applied"), said.get("walbus_bootstrap_store_bytes")
    details = _joined(
        "the disk is full: nothing is applied" if said.get("walbus_bootstrap_disk_full") else "",
        f"does not read the log: {said['error']}" if said.get("state") == "waits_for_log" else "",
        summary,
        *others[:5],
        seeding,
        f"store of {human_bytes(size)}" if size else "",
        "waits for compaction" if said.get("walbus_bootstrap_writes_slowed") else "",
    )
    return _Cells(str(applied or ""), _behind(end, _lsn_of(applied)), details)


def _consumer(part: Mapping[str, Any], end: int | None) -> _Cells:
    said = part.get("status")
    if said is None and "known" in part:
        return _known_consumer(part["sink"], part["known"])
    said = said or {}
    done, seconds = said.get("last_done"), said.get("walbus_consumer_lag_seconds")
    lag = _joined(_behind(end, _lsn_of(done)), f"{seconds:.1f} s" if isinstance(seconds, (int, float)) else "")
    changes = _count(said.get("walbus_consumer_changes_total"))
    return _Cells(str(done or ""), lag, _joined(part["sink"], said.get("phase"), changes, said.get("waiting_for")))


def _known_consumer(sink: str, known: Mapping[str, Any]) -> _Cells:
    """One that only the relay knows."""
    lag = known["lag"] or {}
    behind = _joined(human_bytes(lag["bytes"]), f"{lag['seconds']:.1f} s") if lag else ""
    gone = "its position has left the log" if lag.get("gone") else ""
    return _Cells(str(known["last_done"] or ""), behind, _joined(sink, known["phase"], known["waiting_for"], gone))


def _supervisor(part: Mapping[str, Any]) -> _Cells:
    told = (
        f"{name} {child['state']}" + (f" ({child['restarts']} restarts)" if child["restarts"] else "")
        for name, child in part.get("status", {}).get("children", {}).items()
    )
    return _Cells(details=", ".join(told))


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _count(changes: int | None) -> str:
    return "" if changes is None else f"{changes} changes"


def _behind(end: int | None, done: int | None) -> str:
    return "" if end is None or done is None else human_bytes(max(0, end - done))


def _lsn_of(text: object) -> int | None:
    """The LSN in a position or an LSN; None for anything else."""
    if not isinstance(text, str):
        return None
    for parse in (lambda given: parse_position(given).commit_lsn, parse_lsn):
        try:
            return int(parse(text))
        except InvalidText:
            continue
    return None
