"""The registry of table layouts: one small, synced file a version.

A version is durable before the first row that needs it is appended. Equal layouts are one version. A version whose
SCHEMA record never became durable (the writer died between the two) counts as new once more, so that the record is
written again.

A copy takes the versions of its upstream as it finds them, which may be before their SCHEMA records. Where another copy
took over that had not found them, earlier versions of Walbus gave their numbers anew; so a copy gives a version up
whose SCHEMA record it does not have, since no row of its log can be of it. Nothing else ever changes a version.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from walbus.errors import DamagedRecord, Fenced, LogDiverged, UsageError
from walbus.relay.fs import Files, passing_name, replace_whole, sync_folder, write_new
from walbus.relay.layout_numbers import LayoutNumbers
from walbus.relay.lineage import BEGIN_ANEW, read_lineage
from walbus.schema import TableSchema

_log = structlog.get_logger(__name__)


def schemas_folder(folder: Path) -> Path:
    """Where a log keeps its layouts."""
    return folder / "schemas"


def schema_path(folder: Path, schema_id: int) -> Path:
    """The file of a version."""
    return schemas_folder(folder) / f"{schema_id:08d}.json"


def _load(path: Path) -> TableSchema:
    try:
        return TableSchema.from_dict(msgspec.json.decode(path.read_bytes()))
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise DamagedRecord("a schema file is damaged", where=str(path), mend="restore the file") from error


def _packed(version: TableSchema) -> bytes:
    return msgspec.json.encode(version.to_dict()) + b"\n"


def schema_ids(folder: Path) -> list[int]:
    """The numbers of all versions that have a file, ascending."""
    return sorted(int(path.stem) for path in schemas_folder(folder).glob("[0-9]*.json"))


class SchemaFiles:
    """A reader's registry: loads what it is asked for, and keeps what a record was found to name.

    Args:
        folder: of the log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[int, TableSchema] = {}
        self._listed: dict[int, tuple[tuple[int, int], TableSchema]] = {}  # by what identifies the file's content

    def register(self, schema: TableSchema) -> tuple[TableSchema, bool]:
        """Refused: only the log's writer registers layouts."""
        raise UsageError("a log reader cannot register a schema", where=schema.table)

    def get(self, schema_id: int) -> TableSchema:
        """The version with this number, which a record names; KeyError if there is none."""
        schema = self._known.get(schema_id)
        if schema is None:
            schema = self._known[schema_id] = self.now(schema_id)
        return schema

    def now(self, schema_id: int) -> TableSchema:
        """The version with this number, which no record may name yet; KeyError if there is none."""
        path = schema_path(self._folder, schema_id)
        try:
            found = path.stat()
            content = found.st_ino, found.st_mtime_ns
            listed = self._listed.get(schema_id)
            if listed is None or listed[0] != content:
                listed = self._listed[schema_id] = content, _load(path)
        except FileNotFoundError:
            raise KeyError(schema_id) from None
        return listed[1]

    def all(self) -> list[TableSchema]:
        """Every version, by number."""
        return [self.now(schema_id) for schema_id in schema_ids(self._folder)]

    def changed(self) -> int:
        """When a version came last, by the clock of the file system (Unix nanoseconds, in steps of milliseconds)."""
        return schemas_folder(self._folder).stat().st_mtime_ns


class SchemaWriter(LayoutNumbers, SchemaFiles):
    """The writer's registry.

    Args:
        folder: of the log.
        files: the file operations.
        announced: the largest id whose SCHEMA record is durable.
    """

    def __init__(self, folder: Path, files: Files, announced: int) -> None:
        SchemaFiles.__init__(self, folder)
        self._files = files
        LayoutNumbers.__init__(self, SchemaFiles.all(self), announced, read_lineage(folder).term)

    def adopt(self, schema: TableSchema, announced: int) -> None:
        """Takes a version of the log that this one is a copy of, under its number; durable when the call returns.

        Args:
            schema: the version.
            announced: the largest id of a SCHEMA record in this log; what lies above may be given up for it.

        Raises:
            LogDiverged: another layout has this number here.
            LogFull, Fenced: as `register`.
        """
        known = self._known.get(schema.id)
        if known is None:
            self._write(schema)
            self._keep(schema)
        elif not known.same_layout(schema):
            if schema.id > announced:
                self._give_up(known, schema)
                return
            raise LogDiverged(
                f"layout {schema.id} is that of {schema.table} there and of {known.table} here",
                where=str(schema_path(self._folder, schema.id)),
                mend=BEGIN_ANEW,
            )

    def _give_up(self, known: TableSchema, version: TableSchema) -> None:
        _log.info("log_layout_number_given_anew", schema_id=version.id, was=known.table, now=version.table)
        path = schema_path(self._folder, version.id)
        replace_whole(self._files, path, _packed(version))
        self._give_away(known, version)

    def _write(self, version: TableSchema) -> None:
        path = schema_path(self._folder, version.id)
        temporary = passing_name(path)
        write_new(self._files, temporary, _packed(version))
        try:
            self._files.link(temporary, path)
        except FileExistsError:
            raise Fenced("another writer registered a schema in this log", where=str(path)) from None
        finally:
            self._files.unlink(temporary)
        sync_folder(self._files, path.parent)
