"""The row in the target that holds a consumer's checkpoint, and is the lock of its replica.

Each transaction of the sink begins with the row, locked and compared with what this process knows of it. A row that
somebody else has replaced ends the process, but for a rebuilt copy that took the replica's place: `_walbus.swaps`
counts those, and the consumer goes on with the copy, behind the checkpoint that came with it.
"""

from __future__ import annotations

from walbus.consumers.checkpoint import Checkpoint, load_checkpoint
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.postgres_session import PostgresSession
from walbus.errors import InvalidText, SinkRefused, SinkUnavailable

_READ = """
SELECT c.checkpoint, (SELECT s.number FROM _walbus.swaps s WHERE s.consumer = c.consumer)
FROM _walbus.checkpoints c WHERE c.consumer = $1
"""
_LOCK = "SELECT checkpoint FROM _walbus.checkpoints WHERE consumer = $1 FOR UPDATE"


class CheckpointRow:
    """One consumer's row.

    Args:
        session: of the sink.
        consumer: whose; that of a copy has a name that no consumer can have.
    """

    def __init__(self, session: PostgresSession, consumer: str) -> None:
        self._session, self._consumer = session, consumer
        self._stored: str | None = None  # the checkpoint that the target has, as far as this process knows
        self._unanswered: str | None = None  # one whose commit was sent, and not answered
        self._swaps: object = None  # how many copies have taken the replica's place by then

    def read(self) -> Checkpoint | None:
        """What the target has.

        Raises:
            psycopg.Error
            SinkRefused: that is no checkpoint.
        """
        found = self._session.run(_READ, [self._consumer])
        self._stored, self._swaps = (None, None) if not found else (_text(found[0][0]), found[0][1])
        return self.known

    @property
    def known(self) -> Checkpoint | None:
        """What was last read or committed.

        Raises:
            SinkRefused: it is no checkpoint.
        """
        return self._loaded(self._stored)

    def begin(self) -> None:
        """Begins a transaction, with the row locked.

        Raises:
            psycopg.Error
            SinkSwapped: a rebuilt copy has taken the replica's place.
            SinkUnavailable: the row is gone, or is what a commit left that was not answered.
            SinkRefused: another process has replaced it.
        """
        self._session.run("BEGIN")
        found = self._session.run(_LOCK, [self._consumer])
        if found and found[0][0] == self._stored:
            return
        swaps = self._session.run("SELECT number FROM _walbus.swaps WHERE consumer = $1", [self._consumer])
        self._session.forget_transaction()
        if not found:
            raise SinkUnavailable("PostgreSQL has lost the consumer's checkpoint", where=self._session.where)
        if found[0][0] == self._unanswered:
            raise SinkUnavailable("a commit that was not answered has come through", where=self._session.where)
        if swaps and swaps[0][0] != self._swaps:
            raise SinkSwapped("a rebuilt copy has taken the replica's place", where=self._session.where)
        raise SinkRefused(
            "another process has written this replica",
            where=f"consumer {self._consumer}, {self._session.where}",
            mend="let one process write it, or give each its own name and its own schemas (into)",
        )

    def of(self, consumer: str) -> Checkpoint | None:
        """The checkpoint of another row, which is locked until the transaction ends.

        Raises:
            psycopg.Error
            SinkRefused: that is no checkpoint.
        """
        found = self._session.run(_LOCK, [consumer])
        return self._loaded(_text(found[0][0])) if found else None

    def commit(self, text: str) -> None:
        """Replaces the checkpoint, and commits.

        Raises:
            psycopg.Error
        """
        row = [self._consumer, text]
        self._session.run("UPDATE _walbus.checkpoints SET checkpoint = $2 WHERE consumer = $1", row)
        self._unanswered = text
        self._session.run("COMMIT")
        self._stored, self._unanswered = text, None

    def _loaded(self, text: str | None) -> Checkpoint | None:
        if text is None:
            return None
        try:
            return load_checkpoint(text)
        except InvalidText as error:
            raise SinkRefused(error.what, where=self._session.where, mend=error.mend) from None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


__all__ = ["CheckpointRow"]
