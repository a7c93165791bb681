"""Functions that tests name in a mapping."""

from __future__ import annotations

from typing import Any


def loud(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row with `size`, and no row that is called `secret`."""
    if row["title"] == "secret":
        return None
    found: dict[str, Any] = {"title": None if row["title"] is None else row["title"].upper()}
    if "body" in row:
        found["size"] = len(row["body"] or "")
    return found


no_function = 7


def no_seven(row: dict[str, Any]) -> dict[str, Any]:
    """Raises for a row that is called 7."""
    if row["name"] == "7":
        raise ValueError("no seven")
    return row
