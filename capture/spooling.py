"""The intake of one process, its folder, and what it may be sent: what each connection needs of the spool.

PostgreSQL 14 to 18 fail to decode some transactions while they run ("could not map filenumber … to relation OID", where
savepoints that replaced a table's file were rolled back in others that did too), which they decode well once those have
ended. So an error that a streamed connection ends with is no reason to stop before an unstreamed one has met it too.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from walbus.capture.assembly import Assembler
from walbus.capture.intake import Intake
from walbus.capture.pgoutput_options import PgoutputOptions, options_for
from walbus.capture.prepared import PreparedStore
from walbus.capture.prepared_ends import PreparedEnds
from walbus.capture.sessions import Session
from walbus.capture.spool import Spool
from walbus.capture.spool_files import SpoolFiles
from walbus.config import SourceConfig
from walbus.errors import ConfigError, SourceError
from walbus.native import replay_rows


class Spooling:
    """Lives as long as its process.

    Args:
        source: the configuration.
        folder: of the spool; made when missing.
    """

    def __init__(self, source: SourceConfig, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._prepared: PreparedStore | None = None
        self._intake: Intake | None = None
        self._streaming = False  # what the last connection was asked for
        self._whole_next = False  # whether the next one is not to stream

    def check_folder(self) -> None:
        """Makes the folder, and proves that it can be written, before anything is made at the source.

        Raises:
            ConfigError: it cannot. A full disk is none of that: it is waited for.
        """
        try:
            SpoolFiles(self._folder)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                return
            raise ConfigError(
                f"the spool's folder cannot be used: {error.strerror}",
                where=str(self._folder),
                mend="let data_dir name a folder that this user may write to",
            ) from error

    def intake(self, session: Session, assembler: Assembler, log_id: str) -> tuple[Intake, PreparedEnds]:
        """The intake, ready for a new connection, and what looks after the ends that it is not told.

        Args:
            session: on the source.
            assembler: ready for that connection; the same one each time.
            log_id: of the log.

        Raises:
            DamagedRecord: what was prepared cannot be read.
        """
        if self._intake is None or self._prepared is None:
            files = SpoolFiles(self._folder)
            spool = Spool(files, durable=self._source.two_phase)
            self._prepared = PreparedStore(files, log_id)
            self._intake = Intake(assembler, spool, self._prepared, replay_rows=replay_rows)
        self._intake.reconnected()
        return self._intake, PreparedEnds(self._prepared, session, assembler.near_xid)

    def options(self, server_version: int, end_lsn: int) -> PgoutputOptions:
        """What the walsender is to be asked for, by a log that is durable up to `end_lsn`."""
        streaming = self._source.streaming and not self._whole_next
        if self._intake is not None:
            streaming = streaming and not self._intake.whole_next and end_lsn >= self._intake.whole_until
            self._intake.whole_next = False
        self._streaming, self._whole_next = streaming, False
        return options_for(server_version, streaming=streaming, two_phase=self._source.two_phase)

    def may_do_unstreamed(self, error: Exception) -> bool:
        """Whether an error that nothing mends may not come again; the next connection then does not stream."""
        self._whole_next = self._streaming and type(error) is SourceError  # and none of those that say what is wrong
        return self._whole_next

    def close(self) -> None:
        """What is open comes again; it need not wait on the disk."""
        if self._intake is not None:
            self._intake.reconnected()
