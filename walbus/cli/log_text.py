"""How `walbus log` writes what it found: lines for people, and JSON lines of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from walbus.amounts import counted, human_bytes
from walbus.cli.tail_lines import pretty_line
from walbus.errors import DamagedRecord
from walbus.jsonlines import LineRenderer, iso_time
from walbus.lsn import format_lsn
from walbus.records import Flag, Kind, origin_of
from walbus.relay.log_dump import Dumped
from walbus.relay.schemas import SchemaFiles
from walbus.schema import TableSchema

_SHOWN = 20  # segments at each end of a long list


def info_text(document: Mapping[str, Any]) -> str:
    """The document of `log_info` for people."""
    source, writer = document["source"], document["writer"]
    head = [
        ("log", f"{document['log_id']}, format {document['format']}, in {document['folder']}"),
        ("source", f"system {source['system_identifier']}, database {source['database']}, slot {source['slot']}"),
        ("writer", f"{writer['state']}: epoch {writer['epoch']}, {writer['holder']}"),
        ("holds", f"{human_bytes(document['bytes'])} in {counted(len(document['segments']), 'segment')}"),
        ("begins after", document["trimmed"]),
        ("ends at", f"{document['end']}, seq {document['last_seq']}, committed {document['commit_time'] or 'never'}"),
        ("confirmed to", format_lsn(document["end_lsn"])),
        ("layouts", ", ".join(f"{one['id']} {one['table']}" for one in document["schemas"]) or "none"),
        ("kept for", ", ".join(f"{name} from {done}" for name, done in document["holds"].items()) or "nobody"),
    ]
    lines = [f"{name:<13} {value}" for name, value in head]
    return "\n".join([*lines, "", *_segment_lines(document["segments"])])


def _segment_lines(segments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    headings = ("segment", "state", "size", "after", "end", "last seq", "latest commit", "index", "writer")
    left_out = len(segments) - 2 * _SHOWN
    shown = segments if left_out <= 0 else [*segments[:_SHOWN], *segments[-_SHOWN:]]
    rows = [headings, *(_segment_cells(segment) for segment in shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, cells in enumerate(rows):
        if left_out > 0 and number == _SHOWN + 1:
            yield f"… {counted(left_out, 'segment')} more (--json tells all)"
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _segment_cells(segment: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(segment["number"]),
        segment.get("problem", segment["state"]),
        human_bytes(segment["bytes"]),
        segment["after"],
        segment["end"],
        str(segment["last_seq"]),
        segment["latest_commit"] or "",
        segment["index"],
        str(segment.get("writer_epoch", "")),
    )


def finding_text(finding: Mapping[str, Any]) -> str:
    """A finding in one line."""
    place = [f"segment {finding['segment']}"] if finding["segment"] is not None else []
    place += [f"offset {finding['offset']}"] if finding["offset"] is not None else []
    return f"{', '.join(place)}{': ' if place else ''}{finding['what']} ({finding['file']})"


def check_summary(counts: Mapping[str, int], findings: int) -> str:
    """The last line of a check."""
    read = f"{counted(counts['segments'], 'segment')}, {counted(counts['records'], 'record')}"
    trimmed = counts["trimmed_meanwhile"]
    passed = f"; {counted(trimmed, 'segment')} went by retention meanwhile" if trimmed else ""
    found = counted(findings, "finding") if findings else "nothing is wrong"
    return f"checked {read}, {human_bytes(counts['bytes'])}: {found}{passed}"


def record_fields(dumped: Dumped) -> dict[str, object]:
    """A record's header by name, and where the record lies."""
    header = dumped.located.header
    return {
        "segment": dumped.segment,
        "offset": dumped.located.offset,
        "length": header.length,
        "kind": _kind(header.kind),
        "flags": [flag.name for flag in Flag if header.flags & flag],
        "first": str(header.first),
        "last": str(header.last),
        "end_lsn": format_lsn(header.end_lsn) if header.end_lsn else None,
        "first_seq": header.first_seq,
        "last_seq": header.last_seq,
        "xid": header.xid,
        "commit_time": iso_time(header.commit_time),
        "changes": header.count,
        "origin": origin_of(dumped.located.record, header).decode(errors="replace"),
        "tables": f"{header.tables:016x}",
    }


def record_json(dumped: Dumped) -> bytes:
    """A record as one JSON object."""
    return msgspec.json.encode(record_fields(dumped))


def record_text(dumped: Dumped) -> bytes:
    """A record in one line."""
    fields, header = record_fields(dumped), dumped.located.header
    flags = "+".join(flag.name or "" for flag in Flag if header.flags & flag)
    parts = [
        f"{dumped.segment}:{dumped.located.offset}",
        f"{header.length} B",
        f"{fields['kind']}{' ' if flags else ''}{flags}",
        f"{fields['first']}..{header.last_ordinal}",
        f"seq {header.first_seq}..{header.last_seq}",
        f"xid {header.xid}",
        str(fields["commit_time"]),
        counted(header.count, "change"),
    ]
    return "  ".join(parts).encode()


def _kind(kind: int) -> str:
    return Kind(kind).name if kind in set(Kind) else str(kind)


def changes_json(schemas: SchemaFiles) -> Callable[[Dumped], bytes]:
    """A renderer of a record's changes as the relay's JSON lines, without the last newline."""

    def layout(schema_id: int) -> TableSchema:
        try:
            return schemas.get(schema_id)
        except KeyError:
            raise DamagedRecord(f"a change names layout {schema_id}, which the log does not have") from None

    renderer = LineRenderer(layout)
    return lambda dumped: renderer.render(dumped.located.header, dumped.located.record).rstrip(b"\n")


def changes_text(schemas: SchemaFiles) -> Callable[[Dumped], bytes]:
    """A renderer of a record's changes as `walbus tail` shows them."""
    as_json, pretty = changes_json(schemas), pretty_line(colour=False)
    return lambda dumped: b"\n".join(pretty(line) for line in as_json(dumped).split(b"\n") if line)
