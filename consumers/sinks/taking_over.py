"""A part's checkpoint in a sink, as members of a group hand it on: under the token of whoever has the part.

    take over       what is stored is stored anew under one's own token, or, where a part has no checkpoint yet, a stamp
                    that holds the token alone
    write, commit   only while the very text is there that one knows of

So the text is the fence: from the moment that it carries a higher token, nobody who knows the one before writes. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from walbus.consumers.checkpoint import FORMAT, Checkpoint, Part, dump_checkpoint, load_checkpoint
from walbus.consumers.partitions import part_told, require_same_part
from walbus.consumers.sinks.base import Sink, SinkPlace
from walbus.errors import PartLost

_TAKEN = "taken"


class Stored(NamedTuple):
    """What a sink has of a consumer.

    Attributes:
        checkpoint: None: it has none yet.
        part: that it is of, with the token of its holder; None: it is of all keys, or there is nothing.
    """

    checkpoint: Checkpoint | None
    part: Part | None

    @property
    def token(self) -> int:
        """Of the member that has the part; 0: none has."""
        return 0 if self.part is None else self.part.token


@runtime_checkable
class FencedSink(Sink, Protocol):
    """A sink that a member of a group may write: it lets nothing in of a holder before."""

    def take_over(self, part: Part, lease_seconds: float) -> Checkpoint | None:
        """As `Sink.checkpoint`, and has the part be this holder's: whatever one before writes from now on is refused.

        Args:
            part: with the token under which it is held.
            lease_seconds: who stands still for so long in the middle of a write loses it.

        Raises:
            PartLost: a later holder has it. `write`, `sweep` and `commit` raise that as well, as soon as it has.
            UsageError: what is stored is of another part.
            SinkUnavailable, SinkRefused
        """


@runtime_checkable
class FencedSinkType(Protocol):
    """A `SinkType` whose sinks are a `FencedSink`."""

    def open(self, options: Mapping[str, Any], place: SinkPlace) -> FencedSink:
        """See `SinkType.open`."""

    take_over: Any


def parse_stored(text: str | None) -> Stored:
    """What a stored text says; None or an empty one says nothing.

    Raises:
        InvalidText: it is neither a checkpoint nor a stamp.
    """
    if not text:
        return Stored(None, None)
    stamp = _stamp(text)
    if stamp is not None:
        return Stored(None, stamp)
    checkpoint = load_checkpoint(text)
    return Stored(checkpoint, checkpoint.part)


def is_stamp(text: str) -> bool:
    """Whether a stored text says who has a part, and that there is no checkpoint yet."""
    return _stamp(text) is not None


def text_under(part: Part, text: str | None, where: str) -> str:
    """What is to be stored so that a part is its new holder's.

    Args:
        part: with the token of the new holder.
        text: that is stored.
        where: of the sink, for the error.

    Raises:
        PartLost: it is under a higher token.
        UsageError: it is of another part.
        InvalidText: as `parse_stored`.
    """
    stored = parse_stored(text)
    require_not_above(stored, part.token, where)
    if stored.checkpoint is None:
        return json.dumps(
            {"version": FORMAT, "phase": _TAKEN, "partition": part.partition, "token": part.token},
            separators=(",", ":"),
        )
    require_same_part(stored.checkpoint, part.partition, where, part.token)
    return dump_checkpoint(replace(stored.checkpoint, part=part))


def require_not_above(stored: Stored, token: int, where: str) -> None:
    """Sees to it that no later holder has the part.

    Raises:
        PartLost: one has.
    """
    if stored.part is not None and stored.token > token:
        what = f"another member of the group has {part_told(stored.part.partition)} by now"
        raise PartLost(what, where=where, mend="nothing: what was not committed comes again there")


def _stamp(text: str) -> Part | None:
    try:
        document = json.loads(text)
        if document["version"] != FORMAT or document["phase"] != _TAKEN:
            return None
        return Part(str(document["partition"]), int(document["token"]))
    except (ValueError, KeyError, TypeError):
        return None


__all__ = ["FencedSink", "FencedSinkType", "Stored", "is_stamp", "parse_stored", "require_not_above", "text_under"]
