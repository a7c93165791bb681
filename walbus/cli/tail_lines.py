"""How `walbus tail` writes a change: the relay's JSON as it came, or one line for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Render = Callable[[bytes], bytes]

_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_FRAME = frozenset({"op", "position", "commit_time", "table", "xid", "seq", "schema_id"})
_COLOURS = {"insert": "\x1b[32m", "update": "\x1b[33m", "delete": "\x1b[31m", "truncate": "\x1b[35m"}


def json_line(line: bytes) -> bytes:
    """The line as it came."""
    return line


def pretty_line(*, colour: bool) -> Render:
    """A renderer of `time position op table key {columns}`, coloured for a terminal or plain."""

    def render(line: bytes) -> bytes:
        change = msgspec.json.decode(line)
        paint = _paint if colour else _plain
        parts = [
            paint(_DIM, f"{change.get('commit_time', '')} {change.get('position', '')}".strip()),
            paint(_COLOURS.get(change["op"], _BOLD), f"{change['op']:<8}"),
            paint(_BOLD, change.get("table", "")),
            _columns(change),
        ]
        return " ".join(part for part in parts if part).encode()

    return render


def _columns(change: Mapping[str, Any]) -> str:
    """The row in short: the key before it, its columns, and those that were not sent."""
    row = change.get("after") or change.get("key")
    reseed = (change.get("detail") or {}).get("reseed") if change["op"] == "schema" else None
    if reseed:
        return f"must be read again ({reseed['reason']}): {reseed['what']}"
    if row is None:
        return _pairs({name: value for name, value in change.items() if name not in _FRAME})
    before = f"{_pairs(change['old_key'])} -> " if change.get("old_key") else ""
    left_out = "".join(f" {name}=(unchanged)" for name in change.get("unchanged", ()))
    return before + _pairs(row) + left_out


def _pairs(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in row.items())


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def _paint(code: str, text: str) -> str:
    return f"{code}{text}{_RESET}" if text else ""


def _plain(code: str, text: str) -> str:
    return text
