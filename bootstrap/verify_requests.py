"""Requests to compare the store with the source, as files in a folder of this machine.

    ID.request.json   {"tables": ["public.orders"], "repair": false}    written by `walbus verify`
    ID.status.json    {"state": "running", "tables": [...]}             written by the bootstrap, about twice a second

Files, and not a route of the server: a comparison reads the source, and mending writes the log; a token to read the
bootstrap must be good for neither. One request is dealt with at a time. Whoever asked removes both files; a request
that is gone before its end is given up. One that a bootstrap was dealing with when it was killed is begun again.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import structlog

from walbus.bootstrap.handing import Handing
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.verifying import Verification
from walbus.capture.refusals import refusal
from walbus.capture.sessions import open_session
from walbus.config import SourceConfig
from walbus.errors import StoreError, WalbusError
from walbus.log import LogReader
from walbus.status import read_status, write_status

log = structlog.get_logger(__name__)

_REQUEST, _STATUS = ".request.json", ".status.json"
_LOOK_SECONDS, _STATUS_SECONDS = 0.5, 0.4


class VerifyFolder:
    """The folder, for whoever asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, tables: Sequence[str], *, repair: bool) -> str:
        """Leaves a request; its id.

        Raises:
            StoreError: the folder cannot be written.
        """
        name = uuid.uuid4().hex
        try:
            write_status(self._folder / f"{name}{_REQUEST}", {"tables": list(tables), "repair": repair})
        except OSError as error:
            raise StoreError(
                f"a request cannot be left: {error.strerror}",
                where=str(self._folder),
                mend="run this as the user, and on the machine, of `walbus bootstrap`",
            ) from None
        return name

    def status(self, request: str) -> dict[str, Any] | None:
        """How far it is; None before the bootstrap has taken it up."""
        return read_status(self._folder / f"{request}{_STATUS}")

    def withdraw(self, request: str) -> None:
        """Removes a request and what was said of it."""
        for suffix in (_REQUEST, _STATUS):
            (self._folder / f"{request}{suffix}").unlink(missing_ok=True)


class Verifier:
    """Deals with requests until it is stopped.

    Args:
        folder: of the requests.
        ledger: the store.
        source: the database.
        reader: opens the log.
        handing: where net differences go.
        stop: ends it.
    """

    def __init__(  # noqa: PLR0913  (what a comparison needs)
        self,
        folder: Path,
        ledger: Ledger,
        source: SourceConfig,
        reader: Callable[[], LogReader],
        handing: Handing,
        *,
        stop: threading.Event,
    ) -> None:
        self._folder = folder
        self._ledger = ledger
        self._source = source
        self._open_reader = reader
        self._handing = handing
        self._stop = stop

    def run(self) -> None:
        """Waits for requests, and deals with one after the other."""
        self._begin_again()
        while not self._stop.wait(_LOOK_SECONDS):
            for path in sorted(self._folder.glob(f"*{_REQUEST}")):
                if not self._status_path(path).exists():
                    self._deal_with(path)
                    if not path.exists():  # withdrawn: nobody else would remove what was said of it since
                        self._status_path(path).unlink(missing_ok=True)

    def _begin_again(self) -> None:
        """Takes back what a process that is no more said last: whoever asked would wait for its next word for ever."""
        for path in self._folder.glob(f"*{_STATUS}"):
            if (read_status(path) or {}).get("state") == "running":
                path.unlink(missing_ok=True)

    @staticmethod
    def _status_path(path: Path) -> Path:
        return path.with_name(path.name.removesuffix(_REQUEST) + _STATUS)

    def _deal_with(self, path: Path) -> None:
        try:
            asked = json.loads(path.read_text())
            tables, repair = [str(name) for name in asked["tables"]], bool(asked["repair"])
        except (OSError, ValueError, KeyError, TypeError):
            self._tell(path, {"state": "failed", "error": "the request does not parse", "tables": []})
            return
        try:
            reader = self._open_reader()
        except WalbusError as error:  # there is no log yet, or it is being replaced: no reason for a bootstrap to end
            self._tell(path, {"state": "failed", "error": str(error), "tables": []})
            return
        with closing(reader):
            verification = Verification(
                self._ledger,
                self._source.publication,
                reader,
                self._connect,
                self._handing,
                repair=repair,
            )
            outcome: dict[str, Any] = {}
            thread = threading.Thread(target=lambda: outcome.update(self._outcome(verification, tables)), daemon=True)
            thread.start()
            while thread.is_alive():
                self._tell(path, {"state": "running", "tables": _documents(verification)})
                thread.join(_STATUS_SECONDS)
                if self._stop.is_set() or not path.exists():
                    verification.give_up()
            self._tell(path, {**outcome, "tables": _documents(verification)})

    def _outcome(self, verification: Verification, tables: Sequence[str]) -> dict[str, Any]:
        begun = time.monotonic()
        try:
            try:
                verification.run(tables)
            except psycopg.Error as error:
                raise refusal(error, "comparing with the source") from None
        except WalbusError as error:
            return {"state": "failed", "error": str(error)}
        except Exception as error:  # a bootstrap must not end by it, and whoever waits must hear of it
            log.exception("verification_failed")
            return {"state": "failed", "error": f"{type(error).__name__}: see the bootstrap's log"}
        return {"state": "done", "seconds": round(time.monotonic() - begun, 1)}

    def _connect(self) -> psycopg.Connection[Any]:
        return open_session(self._source.dsn)

    def _tell(self, path: Path, document: dict[str, Any]) -> None:
        with suppress(OSError):
            write_status(self._status_path(path), document)


def _documents(verification: Verification) -> list[dict[str, object]]:
    return [result.document() for result in verification.results]
