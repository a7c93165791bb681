"""Requests to seed tables again, as files in a folder of this machine.

    ID.json            {"tables": ["public.orders"]}                         written by `walbus snapshot`
    ID.answer.json     {"generations": {"public.orders": 3}}                 written by the bootstrap
                       {"error": "no table public.order is published", "mend": "..."}

A file, and not a route of the server: a seeding puts load on the source, and whoever holds a token to read must not
be able to do that. The bootstrap notes in its store what was asked for, then answers, then removes the request; a
crash in between makes it note the same again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from walbus.errors import StoreError, UsageError

_ANSWER = ".answer"


@dataclass(frozen=True, slots=True)
class SeedRequest:
    """A request that waits.

    Attributes:
        id: names its files.
        tables: by name.
    """

    id: str
    tables: tuple[str, ...]


class RequestFolder:
    """The folder, for either side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, tables: Sequence[str]) -> str:
        """Leaves a request; its id.

        Raises:
            StoreError: the folder cannot be written.
        """
        name = uuid.uuid4().hex
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(f"{name}.json", {"tables": list(tables)})
        except OSError as error:
            raise StoreError(
                f"a request cannot be left: {error.strerror}",
                where=str(self._folder),
                mend="run this as the user, and on the machine, of `walbus bootstrap`",
            ) from None
        return name

    def waiting(self) -> Iterator[SeedRequest]:
        """The requests that have no answer yet; a file that is none gets an answer that says so."""
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.json")):
            if path.stem.endswith(_ANSWER):
                continue
            try:
                tables = json.loads(path.read_text())["tables"]
                if not tables or not all(isinstance(table, str) for table in tables):
                    raise TypeError
            except OSError:
                continue
            except (ValueError, KeyError, TypeError):
                self.refuse(path.stem, "the request does not parse", None)
                continue
            yield SeedRequest(path.stem, tuple(tables))

    def grant(self, request: str, generations: dict[str, int]) -> None:
        """Answers with the number of the generation that will be, or have been, seeded for each table."""
        self._answer(request, {"generations": generations})

    def refuse(self, request: str, error: str, mend: str | None) -> None:
        """Answers that nothing will be seeded."""
        self._answer(request, {"error": error, "mend": mend})

    def answer(self, request: str) -> dict[str, int] | None:
        """The generations, None before there is an answer, which is gone with this call.

        Raises:
            UsageError: the request was refused.
        """
        path = self._folder / f"{request}{_ANSWER}.json"
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        path.unlink(missing_ok=True)
        if "error" in document:
            raise UsageError(document["error"], mend=document.get("mend"))
        generations: dict[str, int] = document["generations"]
        return generations

    def withdraw(self, request: str) -> None:
        """Removes a request that nobody has answered."""
        (self._folder / f"{request}.json").unlink(missing_ok=True)

    def _answer(self, request: str, document: dict[str, object]) -> None:
        self._write(f"{request}{_ANSWER}.json", document)
        self.withdraw(request)

    def _write(self, name: str, document: dict[str, object]) -> None:
        temporary = self._folder / f".{name}"
        temporary.write_text(json.dumps(document))
        temporary.replace(self._folder / name)
