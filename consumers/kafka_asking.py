"""What a cluster does not answer, as a consumer's session waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from walbus.consumers.transport import NotReady
from walbus.errors import LogMissing, LogUnreachable, RelayUnavailable


@contextmanager
def asking(where: str) -> Iterator[None]:
    """Turns an answer that did not come, or a topic that is not there, into what may come right by itself.

    Args:
        where: it was asked.
    """
    try:
        yield
    except LogMissing as error:
        raise NotReady(error.what, where=where) from None
    except LogUnreachable as error:
        raise RelayUnavailable(error.what, where=where, mend=error.mend) from None
