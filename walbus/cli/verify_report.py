"""What `walbus verify` says of a comparison, with the source or with a sink. Pure."""

from __future__ import annotations

import json
from typing import Any

Status = dict[str, Any]


def is_left(one: Status, named: set[str], *, repair: bool) -> bool:
    """Whether a table differs, or could not be compared although that was asked for."""
    if one["state"] == "skipped" and one["table"] in named:
        return True
    return bool(one["differing"] - (one["mended"] if repair else 0)) or bool(one["undecided"])


def text_of(status: Status, *, repair: bool) -> str:
    """The outcome for people: a line a table, and one for each key that is named."""
    lines = []
    for one in status["tables"]:
        if one["state"] == "skipped":
            lines.append(f"{one['table']}: not compared: {one['reason']}")
            continue
        line = f"{one['table']}: {one['rows']} rows, {one['differing']} differ"
        if repair and one["differing"]:
            line += f", {one['mended']} mended"
        if one["undecided"]:
            line += f", {one['undecided']} could not be judged (their transactions are not visible yet)"
        lines.append(line)
        lines += [f"  {key['kind']:9} {json.dumps(key['key'])}" for key in one["keys"]]
        if one["differing"] > len(one["keys"]):
            lines.append(f"  and {one['differing'] - len(one['keys'])} more")
    return "\n".join(lines) or "There is no table to compare."
