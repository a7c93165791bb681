"""What a demo shows while it runs: a live table on a terminal, a line a second elsewhere.

The figures are the rooms' own (status files and `/v1/info`); this module only turns them into cells. Counters begin
anew in a room that was killed, so totals are summed over falls (`Counted`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from walbus.demo.rooms import RoomsView
from walbus.lsn import format_lsn

_REFRESH = 4  # times a second
_WINDOW = 3.0  # seconds that a rate is taken over


class Counted:
    """A counter that may fall back to zero when its process dies: the total, and the rate of late."""

    def __init__(self) -> None:
        self.total = 0.0
        self._last = 0.0
        self._samples: list[tuple[float, float]] = []

    def update(self, value: float, now: float) -> None:
        """Takes the counter's value at a time in seconds."""
        self.total += value - self._last if value >= self._last else value
        self._last = value
        self._samples = [s for s in self._samples if now - s[0] <= _WINDOW] + [(now, self.total)]

    @property
    def rate(self) -> float:
        """Increase a second over the last seconds."""
        (first, low), (last, high) = (self._samples[0], self._samples[-1]) if self._samples else ((0, 0), (0, 0))
        return (high - low) / (last - first) if last > first else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table, all cells as text."""

    room: str
    position: str
    total: str
    rate: str
    lag: str
    note: str = ""


class Screen:
    """Draws what happens.

    Args:
        console: where to; its `is_terminal` decides between the table and lines.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._counts: dict[str, Counted] = {}
        self._relay: Mapping[str, Any] = {}
        self._live: Live | None = None
        self._last_line = 0.0
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The live table, as long as the context lasts."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=_REFRESH, transient=False) as self._live:
            yield
        self._live = None

    def update(self, title: str, view: RoomsView, *, source_lsn: int, transactions: int) -> None:
        """Shows the state of this moment; call it several times a second."""
        rows = self._rows(view, source_lsn, transactions)
        if self._live is not None:
            self._live.update(_table(title, rows))
        elif time.monotonic() - self._last_line >= 1:
            self._last_line = time.monotonic()
            self.say(_line(time.monotonic() - self._started, title, rows))

    def _rows(self, view: RoomsView, source_lsn: int, transactions: int) -> list[Row]:
        capture, bootstrap = view.capture, view.bootstrap
        source = self._count("source", transactions)
        captured = self._count("capture", _number(capture, "walbus_capture_changes_total"))
        rows = [
            Row("source", format_lsn(source_lsn), f"{transactions:,} tx", f"{source.rate:,.0f} tx/s", ""),
            Row(
                "capture",
                format_lsn(int(_number(capture, "walbus_capture_confirmed_lsn"))),
                f"{captured.total:,.0f}",
                f"{captured.rate:,.0f}/s",
                _bytes(_number(capture, "walbus_capture_lag_bytes")),
                _note(str(capture.get("state", "starting")), view, "capture"),
            ),
            self._relay_row(view),
            Row(
                "bootstrap",
                format_lsn(int(_number(bootstrap, "walbus_bootstrap_applied_lsn"))),
                f"{_rows(bootstrap):,} rows",
                "",
                _bytes(_number(bootstrap, "walbus_bootstrap_lag_bytes")),
                _note(_seeding(bootstrap), view, "bootstrap"),
            ),
        ]
        return rows + [self._consumer_row(view, name, status) for name, status in view.consumers.items()]

    def _relay_row(self, view: RoomsView) -> Row:
        self._relay = view.relay or self._relay  # what it said last, while it does not answer
        held = self._count("relay", float(self._relay.get("bytes", 0)))
        note = _note("" if view.relay else "not answering", view, "relay")
        end = str(self._relay.get("end", "-"))
        return Row("relay", end, _bytes(held.total), f"{_bytes(held.rate)}/s", "", note)

    def _consumer_row(self, view: RoomsView, name: str, status: Mapping[str, Any]) -> Row:
        count = self._count(name, _number(status, "walbus_consumer_changes_total"))
        return Row(
            name,
            format_lsn(int(_number(status, "walbus_consumer_last_done_lsn"))),
            f"{count.total:,.0f}",
            f"{count.rate:,.0f}/s",
            f"{_number(status, 'walbus_consumer_lag_seconds'):.2f} s",
            _note(str(status.get("phase", "starting")), view, f"consumer-{name}"),
        )

    def _count(self, name: str, value: float) -> Counted:
        counted = self._counts.setdefault(name, Counted())
        counted.update(value, time.monotonic())
        return counted


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", expand=False)
    for heading in ("room", "position", "changes", "rate", "lag", ""):
        table.add_column(heading, justify="left" if heading in {"room", "position", ""} else "right", no_wrap=True)
    for row in rows:
        table.add_row(row.room, row.position, row.total, row.rate, row.lag, row.note)
    return table


def _line(seconds: float, title: str, rows: list[Row]) -> str:
    cells = [f"{row.room} {row.position} {row.rate}".rstrip() + (f" lag {row.lag}" if row.lag else "") for row in rows]
    return f"{seconds:5.1f}s {title}: " + " | ".join(cells)


def _number(status: Mapping[str, Any], key: str) -> float:
    value = status.get(key, 0)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _note(state: str, view: RoomsView, process: str) -> str:
    """What is worth a word: a state that is not the usual one, and kills."""
    count = view.restarts.get(process, 0)
    usual = state in {"streaming", "online", ""}
    return ", ".join(([] if usual else [state]) + ([f"killed {count}x"] if count else []))


def _rows(status: Mapping[str, Any]) -> int:
    return sum(int(table.get("rows", 0)) for table in status.get("tables", ()))


def _seeding(status: Mapping[str, Any]) -> str:
    total = _number(status, "walbus_bootstrap_seeding_chunks_total")
    done = _number(status, "walbus_bootstrap_seeding_chunks_done")
    if not status:
        return "starting"
    return f"copying, {done:.0f} of {total:.0f} chunks" if done < total else ""


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
