r"""Whether a value in a sink is the value of the source, whatever form the sink gave it.

The source's side is PostgreSQL's canonical text; the sink's side is what its client returns: None, bool, int, float,
str, bytes, datetime, list. Each type has a small number of forms that mean the same value, and nothing else passes:

    boolean          True, 1, "t" or "true" for t
    integers         the number, or its text
    floats           the number bit for bit (NaN equals NaN), or its text
    bytea            the bytes, or `\x…`
    timestamps       the text, or ISO 8601 with `T`, `Z` and trailing zeros, or a datetime
    json, jsonb      the text, or an equal document
    arrays           the text, or a list (of texts, numbers and None), or such a list as JSON
    everything else  the text

None of the code that writes sinks is used here, so that both would have to be wrong in the same way for a mistake to
pass.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime

_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^,{}]+)')
_FRACTION = re.compile(r"(\.\d*?)0+(?=\D|$)")


def same_value(type_name: str, text: str | None, value: object) -> bool:
    """Whether a sink's value means the source's.

    Args:
        type_name: as `format_type` gives it, without modifier.
        text: the source's canonical text; None is NULL.
        value: the sink's.
    """
    if text is None or value is None:
        return text is None and value is None
    if type_name.endswith("[]"):
        return _same_array(type_name[:-2], text, value)
    if isinstance(value, str) and value == text:
        return True
    matcher = _MATCHERS.get(type_name)
    return matcher is not None and matcher(text, value)


def _same_boolean(text: str, value: object) -> bool:
    truth = text == "t"
    return value in (("true", True) if truth else ("false", False))


def _same_integer(text: str, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == int(text)


def _same_float(text: str, value: object) -> bool:
    if not isinstance(value, (int, float, str)):
        return False
    try:
        mine, theirs = float(text), float(value)
    except ValueError:
        return False
    if math.isnan(mine) or math.isnan(theirs):
        return math.isnan(mine) and math.isnan(theirs)
    return mine == theirs and math.copysign(1, mine) == math.copysign(1, theirs)


def _same_bytes(text: str, value: object) -> bool:
    return isinstance(value, (bytes, memoryview)) and text == "\\x" + bytes(value).hex()


def _same_moment(text: str, value: object) -> bool:
    if isinstance(value, datetime):
        value = value.astimezone(UTC).isoformat() if value.tzinfo else value.isoformat()
    return isinstance(value, str) and _plain_moment(value) == _plain_moment(text)


def _plain_moment(text: str) -> str:
    """One form for all: a blank, `+00` for UTC, no trailing zeros in the fraction."""
    plain = re.sub(r"(Z|\+00:00)$", "+00", text.replace("T", " "))
    return _FRACTION.sub(lambda match: match[1].rstrip("."), plain)


def _same_date(text: str, value: object) -> bool:
    return isinstance(value, date) and value.isoformat() == text


def _same_json(text: str, value: object) -> bool:
    try:
        document = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return False
    mine, theirs = (json.dumps(each, sort_keys=True) for each in (json.loads(text), document))
    return mine == theirs  # as text, since 1 == 1.0 == True in Python


def _same_array(element_type: str, text: str, value: object) -> bool:
    if value == text:
        return True
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return False
    if not isinstance(value, list):
        return False
    elements = _array_elements(text)
    return len(elements) == len(value) and all(
        same_value(element_type, mine, theirs) for mine, theirs in zip(elements, value, strict=True)
    )


def _array_elements(text: str) -> list[str | None]:
    """The elements of a one-dimensional array's text; None is NULL."""
    found: list[str | None] = []
    for match in _ELEMENT.finditer(text):
        if match[1] is not None:
            found.append(re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL))
        else:
            found.append(None if match[2] == "NULL" else match[2])
    return found


_MATCHERS: dict[str, Callable[[str, object], bool]] = {
    "boolean": _same_boolean,
    **dict.fromkeys(("smallint", "integer", "bigint", "oid"), _same_integer),
    **dict.fromkeys(("real", "double precision"), _same_float),
    "bytea": _same_bytes,
    **dict.fromkeys(("timestamp without time zone", "timestamp with time zone"), _same_moment),
    "date": _same_date,
    **dict.fromkeys(("json", "jsonb"), _same_json),
}
