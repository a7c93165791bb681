"""Table layouts: one immutable, numbered version per layout that a table ever had.

A table is known by its relation OID, so a rename is a new version of the same table. A version is written into the
log before the first row that needs it, and every row names its version, so that a reader never guesses.
"""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import google_crc32c


class ReplicaIdentity(enum.Enum):
    """What PostgreSQL sends of the old row, by the table's REPLICA IDENTITY."""

    DEFAULT = "d"  #: the primary key, when it changed
    NOTHING = "n"
    FULL = "f"  #: the whole old row
    INDEX = "i"  #: the columns of one unique index, when they changed


@dataclass(frozen=True, slots=True)
class Column:
    """One column as pgoutput's Relation message gives it.

    Attributes:
        name: the column's name, unquoted.
        type_oid: `pg_type.oid`; those below 16384 are built in and the same everywhere.
        type_name: the type's name, with its schema when it is not `pg_catalog`.
        typmod: `atttypmod`; -1 is PostgreSQL's "no modifier" and is kept as it came.
        in_key: whether the column belongs to the key that Walbus knows rows by.
    """

    name: str
    type_oid: int
    type_name: str
    typmod: int
    in_key: bool


@dataclass(frozen=True)
class TableSchema:
    """One version of a table's layout.

    Attributes:
        id: number of the version, unique in one log, from 1.
        oid: the table's relation OID.
        namespace, name: as PostgreSQL has them, unquoted.
        identity: the replica identity.
        columns: in the order of the tuples.
    """

    id: int
    oid: int
    namespace: str
    name: str
    identity: ReplicaIdentity
    columns: tuple[Column, ...] = field(default=())

    @property
    def table(self) -> str:
        """`namespace.name`, unquoted: how users and filters name the table."""
        return f"{self.namespace}.{self.name}"

    @cached_property
    def key_indexes(self) -> tuple[int, ...]:
        """Indexes of the key's columns in `columns`, in column order; empty for a table without a key."""
        return tuple(i for i, column in enumerate(self.columns) if column.in_key)

    @cached_property
    def fingerprint(self) -> int:
        """CRC32C of the layout without its number."""
        document = self.to_dict()
        del document["id"]
        return int(google_crc32c.value(json.dumps(document, sort_keys=True).encode()))

    def same_layout(self, other: TableSchema) -> bool:
        """Whether both describe the same layout, whatever their numbers."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {**mine, "id": 0} == {**theirs, "id": 0}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that the log stores and `/v1/schemas/{id}` serves (beside the Avro form)."""
        return {
            "id": self.id,
            "oid": self.oid,
            "namespace": self.namespace,
            "name": self.name,
            "identity": self.identity.value,
            "columns": [asdict(column) for column in self.columns],
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> TableSchema:
        """The inverse of `to_dict`; keys that it does not know are ignored."""
        return cls(
            id=document["id"],
            oid=document["oid"],
            namespace=document["namespace"],
            name=document["name"],
            identity=ReplicaIdentity(document["identity"]),
            columns=tuple(Column(**column) for column in document["columns"]),
        )
