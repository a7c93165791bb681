"""Whether what was written by one schema of a subject can be read by another: the levels of a schema registry. No I/O.

Avro's rules of resolution are those of Apache Avro's own package; only which pairs a level asks for is decided here:

    BACKWARD    readers of the new schema read what the last one wrote
    FORWARD     readers of the last schema read what the new one writes
    FULL        both
    …_TRANSITIVE the same with every earlier version instead of the last one

A name without a schema behind it, and a logical type that Avro does not know, are what they are to a reader: an error,
and the type underneath.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from walbus.compatibility import Level
from walbus.errors import ConfigError, InvalidText

if TYPE_CHECKING:
    from avro.schema import Schema

#: Objects, lists and names of a schema, and members of its longest list: a table of 1,600 columns has about 20,000, and
#: that list as its longest. The checker's time grows with the square of the fields that do not fit.
MAX_PARTS: Final = 50_000
MAX_LIST: Final = 2_000
_TOLD: Final = 20

_BACKWARD: Final = frozenset({"BACKWARD", "FULL"})
_FORWARD: Final = frozenset({"FORWARD", "FULL"})


def differences(level: Level, earlier: Sequence[str], text: str) -> list[str]:
    """What keeps a schema from being the next version of a subject; nothing if it may be.

    Args:
        level: that the subject is to keep.
        earlier: its versions as JSON, in their order.
        text: the schema as JSON.

    Raises:
        InvalidText: a text is no Avro schema.
        ConfigError: the package avro is not installed.
    """
    if level == "NONE" or not earlier:
        return []
    way, _, transitive = level.partition("_")
    new, found = _parsed(text), []
    for number, one in list(enumerate(earlier, 1))[0 if transitive else -1 :]:
        old = _parsed(one)
        if way in _BACKWARD:
            found += [f"with the new schema version {number} cannot be read: {why}" for why in _hindrances(new, old)]
        if way in _FORWARD:
            found += [f"with version {number} the new schema cannot be read: {why}" for why in _hindrances(old, new)]
    return found


def _hindrances(reader: Schema, writer: Schema) -> list[str]:
    from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType  # noqa: PLC0415

    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    result = checker.get_compatibility(reader, writer)
    if result.compatibility is SchemaCompatibilityType.compatible:
        return []
    kinds = ", ".join(sorted({kind.value.replace("_", " ") for kind in result.incompatibilities}))
    places, told = sorted(result.locations)[:_TOLD], sorted(result.messages)[:_TOLD]
    return [f"{kinds} at {', '.join(places)} ({'; '.join(told)})"]


def _parsed(text: str) -> Schema:
    try:
        from avro.errors import AvroException  # noqa: PLC0415 - an extra
        from avro.schema import parse  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "the package avro is not installed", where="compatibility of schemas", mend="pip install 'walbus[kafka]'"
        ) from None
    try:
        _check_size(json.loads(text))
        with warnings.catch_warnings(action="ignore"):  # of logical types that it does not know
            return parse(text)
    except (AvroException, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"that is no Avro schema: {type(error).__name__}"
        raise InvalidText(what, where="schema", mend="send a schema as Avro 1.12 defines it") from None


def _check_size(document: object) -> None:
    left, count = [document], 0
    while left:
        one = left.pop()
        count += 1
        if count > MAX_PARTS or (isinstance(one, list) and len(one) > MAX_LIST):
            raise ValueError("too large")
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
