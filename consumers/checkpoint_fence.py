"""Checkpoints in a place that several processes may write: who finds another's newer one there has lost the name.

load     remembers the text that is stored
save     replaces that very text, in one act; if another one is stored by now,
it is what was to be stored           the answer to an earlier attempt was lost: done
it is what an earlier attempt was     so was that one's, and it was given up since (the consumer was rolled back): it is
to store, since the last success      replaced, as one's own
it is none, or an earlier place, or   the server lost its last writes: it is replaced all the same
was taken over from one with a lower
token, and is there again
anything else                         another process goes on under this name: CheckpointTaken

Of two members of a group that had a part after each other the later one has the higher token, and its checkpoint stands
wherever it is. It stores what it has loaded at once under its own token: from then on the text that the earlier one
knows is no longer there, and whatever that one is about to save is refused, were it a moment or a day late.

Which of the attempts without an answer came through is not known: each may have, and only the first that did. So all of
them are remembered, as digests.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from typing import ClassVar, Final, NamedTuple

from walbus.consumers.checkpoint import Checkpoint, dump_checkpoint, last_done_of, load_checkpoint, token_of
from walbus.errors import CheckpointTaken, InvalidText

#: Attempts without an answer that are remembered. While a place is away an idle consumer makes one a second.
_TRIED: Final = 20_000

_LEASED: Final = '"token"'  # in the text of a member of a group alone


class Replaced(NamedTuple):
    """Whether a text was stored, and if not, which one is stored instead."""

    done: bool
    there: str | None = None


class FencedCheckpointStore(ABC):
    """Base of the stores on servers, and in databases: see the module for what `save` does. One thread at a time.

    Attributes:
        stays_here: whether what is stored is on this machine alone.
    """

    stays_here: ClassVar[bool] = False

    def __init__(self, where: str) -> None:
        self._where = where
        self._last: str | None = None
        self._tried: deque[bytes] = deque(maxlen=_TRIED)  # since the last success

    def load(self) -> Checkpoint | None:
        """The checkpoint last saved.

        Raises:
            CheckpointUnavailable: the place does not answer.
            InvalidText: what is stored is none.
        """
        self._last = text = self._read()
        return None if text is None else self._parsed(text)

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces it; durable when it returns, as far as the place is.

        Raises:
            CheckpointUnavailable: the place does not answer; the same call may succeed later.
            CheckpointTaken: another process has stored a later one, or one under a higher token.
        """
        text = dump_checkpoint(checkpoint)
        before = self._last
        if before is not None and self._outranked(before, checkpoint):
            raise self._taken()
        self._tried.append(_digest(text))
        while not (answer := self._replace(before, text)).done and answer.there != text:
            before = answer.there
            if before is not None and _digest(before) not in self._tried and not self._earlier(before, checkpoint):
                raise self._taken()
        self._last = text
        self._tried.clear()

    def _earlier(self, text: str, saved: Checkpoint) -> bool:
        """Whether a text that is there is one of before, which a server that lost its last writes has again."""
        mine = None if self._last is None else self._parsed(self._last)
        theirs = self._parsed(text)
        if token_of(theirs) < token_of(saved) == token_of(mine):  # it was taken over from that one, and this was lost
            return True
        if mine is None or mine.log_id != theirs.log_id or self._outranked(text, saved):
            return False
        return last_done_of(theirs) < last_done_of(mine)

    def _outranked(self, text: str, saved: Checkpoint) -> bool:
        """Whether a text is of a member that got the part later than who saves."""
        return _LEASED in text and token_of(self._parsed(text)) > token_of(saved)

    def _taken(self) -> CheckpointTaken:
        mend = "end the other one, or give each a name of its own"
        return CheckpointTaken("another process stored a later checkpoint", where=self._where, mend=mend)

    def _parsed(self, text: str) -> Checkpoint:
        try:
            return load_checkpoint(text)
        except InvalidText as error:
            raise InvalidText(error.what, where=self._where, mend=error.mend) from None

    @abstractmethod
    def close(self) -> None:
        """Closes the connection; the next call opens another one."""

    @abstractmethod
    def _read(self) -> str | None:
        """The stored text."""

    @abstractmethod
    def _replace(self, before: str | None, text: str) -> Replaced:
        """Stores a text if `before` is what is stored (None: nothing is), in one act."""


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
