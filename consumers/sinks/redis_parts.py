"""Which rows are of a part, where those of all parts of a group lie under the same keys. No connection.

Who reads rows need not know that there are parts. A hash says behind its version which part wrote it, and a text has
its version among the part's own keys; so each part sweeps, truncates and rearranges its own rows alone. What has no
version is of the part that its key is of.
"""

from __future__ import annotations

import re

from walbus.consumers.partitions import GroupPart
from walbus.records import key_hash
from walbus.schema import TableSchema
from walbus.values.key_codec import encode_key, text_part

_TOLD = re.compile(rb"-?\d+:\d+:([^\n]+)")


class RowsOfPart:
    """The rows of one part.

    Args:
        part: of a group.
    """

    def __init__(self, part: GroupPart) -> None:
        index, _, count = part.partition.partition("/")
        self.word = part.word
        self._index, self._count = int(index), int(count)
        self._others = re.compile(rf"\d+-of-{self._count}")

    def has(self, key: bytes) -> bool:
        """Whether a key, as the log has it, is of this part."""
        return key_hash(key) % self._count == self._index

    def has_row(self, texts: tuple[str, ...], layout: TableSchema) -> bool:
        """Whether the key of these texts is; texts that are no key of this layout are of one part, too."""
        parts = [text.encode(errors="surrogateescape") for text in texts]
        oids = [layout.columns[index].type_oid for index in layout.key_indexes]
        return self.has(encode_key(parts, oids) if len(parts) == len(oids) else b"".join(map(text_part, parts)))

    def is_of_another(self, version: bytes | None) -> bool:
        """Whether a hash with this version says that it is of another part of the group."""
        word = part_told(version or b"")
        return word != self.word and self._others.fullmatch(word) is not None

    def is_note(self, key: str, own: str) -> bool:
        """Whether a key is one that any part's sink has for itself; `own` is what those of this part begin with."""
        begins, _, ends = own.rpartition(self.word)
        if not key.startswith(begins):
            return False
        return re.match(rf"{self._others.pattern}{re.escape(ends)}", key[len(begins) :]) is not None


def part_told(version: bytes) -> str:
    """The part that a hash's version tells; empty: none."""
    found = _TOLD.match(version)
    return "" if found is None else found[1].decode(errors="replace")


__all__ = ["RowsOfPart", "part_told"]
