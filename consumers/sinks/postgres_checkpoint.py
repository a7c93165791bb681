"""The row in the target that holds a consumer's checkpoint, and is the lock of its replica.

Each transaction of the sink begins with the row, locked and compared with what this process knows of it. A row that
somebody else has replaced ends the process, but for a rebuilt copy that took the replica's place: `_walbus.swaps`
counts those, and the consumer goes on with the copy, behind the checkpoint that came with it.

Where members of a group have the part one after the other, the text in the row carries the token of the one that has
it (`walbus.consumers.sinks.taking_over`), and ends the others' transactions like any other text that they do not know.
Nobody stores a text over one with a higher token. So where the token is not above one's own, and the text not the one
that one knows, the server has lost that (a failover, `synchronous_commit = off`), and the part is taken over once more.
"""

from __future__ import annotations

from walbus.consumers.checkpoint import Checkpoint, Part
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.postgres_session import PostgresSession
from walbus.consumers.sinks.taking_over import Stored, parse_stored, require_not_above, text_under
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
        return self._parsed(self._stored).checkpoint

    def take_over(self, part: Part) -> None:
        """Has the row be that of a part's new holder, and commits that.

        Raises:
            psycopg.Error
            PartLost: a later holder has it.
            UsageError: it is of another part.
            SinkUnavailable: the row is gone.
            SinkRefused: it is no checkpoint.
        """
        self._session.run("BEGIN")
        try:
            found = self._session.run(_LOCK, [self._consumer])
            if not found:
                raise self._lost()
            text = text_under(part, _text(found[0][0]), self._where)
        except BaseException as error:
            self._session.forget_transaction()
            if isinstance(error, InvalidText):
                raise self._no_checkpoint(error) from None
            raise
        self.commit(text)

    def begin(self) -> None:
        """Begins a transaction, with the row locked.

        Raises:
            psycopg.Error
            SinkSwapped: a rebuilt copy has taken the replica's place.
            SinkUnavailable: the row is gone, or is what a commit left that was not answered, or the server has lost the
                commits of a part's holder, who then takes it over again.
            PartLost: a later holder of the part has it.
            SinkRefused: another process has replaced it.
        """
        self._session.run("BEGIN")
        found = self._session.wait_for_turn(_LOCK, [self._consumer])
        if found and found[0][0] == self._stored:
            return
        swaps = self._session.run("SELECT number FROM _walbus.swaps WHERE consumer = $1", [self._consumer])
        self._session.forget_transaction()
        if not found or found[0][0] is None:
            raise self._lost()
        if found[0][0] == self._unanswered:
            raise SinkUnavailable("a commit that was not answered has come through", where=self._session.where)
        if swaps and swaps[0][0] != self._swaps:
            raise SinkSwapped("a rebuilt copy has taken the replica's place", where=self._session.where)
        if own := self._parsed(self._stored).token:
            require_not_above(self._parsed(_text(found[0][0])), own, self._where)
            what = "PostgreSQL has lost commits that it had acknowledged, and the part is taken over again"
            mend = "nothing; to lose none, have synchronous_commit on, and fail over to synchronous standbys"
            raise SinkUnavailable(what, where=self._where, mend=mend)
        raise SinkRefused(
            "another process has written this replica",
            where=self._where,
            mend="let one process write it, or give each its own name and its own schemas (into)",
        )

    def of(self, consumer: str) -> Checkpoint | None:
        """The checkpoint of another row, which is locked until the transaction ends.

        Raises:
            psycopg.Error
            SinkRefused: that is no checkpoint.
        """
        found = self._session.run(_LOCK, [consumer])
        return self._parsed(_text(found[0][0])).checkpoint if found else None

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

    def _parsed(self, text: str | None) -> Stored:
        try:
            return parse_stored(text)
        except InvalidText as error:
            raise self._no_checkpoint(error) from None

    @property
    def _where(self) -> str:
        return f"consumer {self._consumer}, {self._session.where}"

    def _lost(self) -> SinkUnavailable:
        return SinkUnavailable("PostgreSQL has lost the consumer's checkpoint", where=self._session.where)

    def _no_checkpoint(self, error: InvalidText) -> SinkRefused:
        return SinkRefused(error.what, where=self._session.where, mend=error.mend)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


__all__ = ["CheckpointRow"]
