"""Gathers what every room is doing; a room that is down is part of the report, not an error.

Each part says `state`: `up`, or `down` with an `error`. Rooms without a server (capture, consumers) tell through
their status files, which they rewrite every second: a file that is older than a few seconds is that of a room that
is not running, and what it says was true then (`age_seconds`). What rooms say stands under `status` (files), `info`
(the relay's `/v1/info`) and `served` (the bootstrap's `/v1/tables`), as they said it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from psycopg.rows import dict_row

from walbus.config import Settings, SourceConfig
from walbus.credentials import connection_problem, credentials_of, new_client
from walbus.errors import ConfigError, RelayUnavailable, RequestRefused
from walbus.status import read_status

_TIMEOUT: Final = 2.0
_STALE_AFTER: Final = 5.0

_SLOT = """
    SELECT slot_name, plugin, active, wal_status, confirmed_flush_lsn::text AS confirmed_lsn,
           restart_lsn::text AS restart_lsn, pg_catalog.pg_current_wal_lsn()::text AS current_lsn,
           pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn)::int8 AS retained_bytes,
           pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), confirmed_flush_lsn)::int8 AS lag_bytes,
           safe_wal_size::int8 AS safe_bytes
    FROM pg_catalog.pg_replication_slots WHERE slot_name = %s
"""

Part = dict[str, Any]


def gather(settings: Settings) -> Part:
    """The whole report, as `walbus status --json` prints it."""
    relay = _from_server(settings, settings.relay_url, "/v1/info", "info")
    known = _from_server(settings, settings.relay_url, "/v1/consumers", "known") if relay["state"] == "up" else {}
    configured = {
        name: {"sink": consumer.sink, **from_file(settings.status_dir / f"consumer-{name}.json")}
        for name, consumer in settings.consumer.items()
    }
    return {
        "source": _source(settings.source),
        "capture": from_file(settings.status_dir / "capture.json"),
        "relay": relay,
        "bootstrap": _bootstrap(settings),
        "consumers": consumers_of(configured, known.get("known", {}).get("consumers", [])),
        "supervisor": supervisor_of(settings.status_dir / "supervisor.json"),
    }


def consumers_of(configured: dict[str, Part], known: Sequence[Part]) -> dict[str, Part]:
    """The configured consumers, each with what the relay knows of it under `known`; then those that it alone knows.

    Of the latter, those of the client library among them, there is no status file: one that has a stream is up.
    """
    by_name = {one["name"]: one for one in known}
    consumers = {
        name: part | ({"known": by_name[name]} if name in by_name else {}) for name, part in configured.items()
    }
    for name, one in by_name.items():
        if name not in consumers:
            consumers[name] = {
                "sink": one["sink"] or "library",
                "state": "up" if one["streams"] else "down",
                "age_seconds": round(max(0.0, time.time() - one["last_seen"]), 1),
                "known": one,
            }
    return consumers


def _source(source: SourceConfig) -> Part:
    """The slot, as the source sees it; off where a relay copies another one's log and knows no source."""
    if not source.known:
        return {"state": "off"}
    try:
        with psycopg.connect(
            source.dsn.get_secret_value(),
            autocommit=True,
            connect_timeout=int(_TIMEOUT),
            options="-c statement_timeout=2000",
            application_name="walbus status",
            row_factory=dict_row,
        ) as connection:
            slot = connection.execute(_SLOT, [source.slot]).fetchone()
    except psycopg.Error as error:
        return _down(error)
    return {"state": "up", "slot": slot or {"slot_name": source.slot, "missing": True}}


def _bootstrap(settings: Settings) -> Part:
    url = settings.bootstrap_url
    if url is None:
        return {"state": "off"}
    told = from_file(settings.status_dir / "bootstrap.json")
    return {**_from_server(settings, url, "/v1/tables", "served"), "status": told.get("status", {})}


def _from_server(settings: Settings, url: str, path: str, key: str) -> Part:
    """What a room's server says of itself."""
    try:
        with new_client(url, credentials_of(settings.client), httpx.Timeout(_TIMEOUT)) as client:
            response = client.get(path)
        document = response.json()
        if response.is_error:
            return {
                "state": "down",
                "error": str(RequestRefused(document["error"], status=response.status_code, mend=document["mend"])),
                "url": url,
            }
    except httpx.TransportError as error:
        what, mend = connection_problem(error)
        return {"state": "down", "error": str(RelayUnavailable(what, mend=mend)), "url": url}
    except (httpx.HTTPError, ValueError, KeyError, TypeError, ConfigError) as error:
        return {**_down(error), "url": url}
    return {"state": "up", "url": url, key: document}


def from_file(path: Path, *, now: float | None = None) -> Part:
    """What a room without a server says of itself."""
    told = read_status(path)
    if told is None:
        return {"state": "down", "error": "never ran here"}
    age = max(0.0, (time.time() if now is None else now) - path.stat().st_mtime)
    state = "up" if age < _STALE_AFTER and told.get("state") != "stopped" else "down"
    return {"state": state, "age_seconds": round(age, 1), "status": told}


def supervisor_of(path: Path) -> Part:
    """The supervisor's file is written when something happens, so its process tells whether it is there."""
    told = read_status(path)
    if told is None or not _alive(told.get("pid")):
        return {"state": "down", "error": "walbus run is not running here"}
    return {"state": "up", "status": told}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _down(error: Exception) -> Part:
    text = " ".join(str(error).split())
    return {"state": "down", "error": text or type(error).__name__}
