"""Names of indices, of which none comes again: what somebody remembers of one that is gone reaches no other.

An index is called by its alias and a number, `public.orders~2`. The last number that was given stands beside the
checkpoints, as the version of a document, which a server lets rise only: hence no two processes get one number, and
none is given again when its index is gone. Indices that are there have theirs, whoever made them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from walbus.consumers.sinks.opensearch_server import CONFLICT, NOT_FOUND, OpenSearchServer, path_of


class _Numbered(msgspec.Struct, rename={"version": "_version"}):
    version: int = 0


class IndexNames:
    """Those of all indices whose checkpoints are in one index.

    Args:
        server: that has them.
        state_index: the index for checkpoints.
    """

    def __init__(self, server: OpenSearchServer, state_index: str) -> None:
        self._server, self._state_index = server, state_index

    def next(self, base: str, there: Iterable[str]) -> str:
        """A name that no index has, or had.

        Args:
            base: what stands before its number.
            there: names of indices that are there.

        Raises:
            SinkUnavailable, SinkRefused
        """
        path = f"/{path_of(self._state_index)}/_doc/{path_of(f'name:{base}')}"
        number = 1 + max((number_of(base, name) for name in there), default=0)
        while True:
            given = f"{path}?version={number}&version_type=external"
            if self._server.ask("PUT", given, {}, accepted=[CONFLICT]).status != CONFLICT:
                return f"{base}~{number}"
            bare = self._server.ask("GET", f"{path}?_source=false", accepted=[NOT_FOUND])
            known = self._server.told(bare, _Numbered)
            number = 1 + max(number, known.version)


def number_of(base: str, name: str) -> int:
    """The number in the name of an index; 0 of one that is called otherwise."""
    number = name.removeprefix(f"{base}~")
    return int(number) if number != name and number.isdecimal() and number.isascii() else 0


__all__ = ["IndexNames", "number_of"]
