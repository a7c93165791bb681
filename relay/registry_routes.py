"""The routes of the schema registry, in the form of Confluent's, so that its clients read topics by any relay.

    GET  /subjects                                    names of all subjects
    GET  /subjects/S/versions[/V[/schema]]            versions of one; V is a number, or latest
    POST /subjects/S                                  which version a schema is
    POST /subjects/S/versions                         as that, since nothing can be registered here
    GET  /schemas/ids/ID[/schema|/subjects|/versions] one schema
    POST /compatibility/subjects/S/versions[/V]       whether a schema could be the next version
    GET  /schemas/types, /config[/S], /mode[/S]       Avro; the level that is checked by; read only
    PUT, DELETE of what is there                      refused, since it is read-only

Schemas come from the database, by the log (`walbus.relay.registry`). A refusal has Confluent's `error_code` and
`message` beside what every refusal has.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from walbus.compatibility import LEVELS, Level
from walbus.errors import ConfigError, InvalidText
from walbus.relay.access import AccessError, granted
from walbus.relay.http import RequestError
from walbus.relay.reader import FileLogReader
from walbus.relay.registry import LogRegistry
from walbus.relay.request_body import bounded_body
from walbus.topics import Catalog, Registered
from walbus.topics.compatibility import differences

MEDIA_TYPE: Final = "application/vnd.schemaregistry.v1+json"
MAX_BODY: Final = 1 << 20
Respond = Callable[[web.Request, Catalog], Awaitable[object]]

_NUMBER = re.compile(r"[0-9]{1,10}\Z")


class RegistryError(RequestError):
    """A refusal in the registry's form.

    Args:
        code: Confluent's; its first three digits are the status.
    """

    def __init__(self, code: int, what: str, *, where: str, mend: str) -> None:
        told = {"error_code": code, "message": f"{what}; {mend}"}
        super().__init__(code // 100, what, where=where, mend=mend, more=told)


class RegistryRoutes:
    """The handlers.

    Args:
        prefix: what names of topics begin with.
        level: of compatibility.
        reader: gives the log, or raises what a client is told while there is none.
    """

    def __init__(self, prefix: str, level: Level, reader: Callable[[], FileLogReader]) -> None:
        self._registry, self._level, self._reader = LogRegistry(prefix), level, reader

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Registers them."""
        routes: dict[str, Respond] = {
            "/subjects": _subjects,
            "/subjects/{subject}/versions": _versions,
            "/subjects/{subject}/versions/{version}": _version,
            "/subjects/{subject}/versions/{version}/schema": _version_text,
            "/schemas/types": _types,
            "/schemas/ids/{id}": _schema,
            "/schemas/ids/{id}/schema": _schema_text,
            "/schemas/ids/{id}/subjects": _subjects_of_schema,
            "/schemas/ids/{id}/versions": _versions_of_schema,
            "/config": self._told_level,
            "/config/{subject}": self._level_of_subject,
            "/mode": _mode,
            "/mode/{subject}": _mode_of_subject,
        }
        for path, respond in routes.items():
            router.add_get(path, self._answering(respond), allow_head=False)
        router.add_post("/subjects/{subject}", self._answering(_look_up))
        router.add_post("/subjects/{subject}/versions", self._answering(_register))
        for path in ("", "/{version}"):
            router.add_post(f"/compatibility/subjects/{{subject}}/versions{path}", self._answering(self._compatibility))
        for path in ("/config", "/config/{subject}", "/mode", "/mode/{subject}"):
            router.add_put(path, self._answering(_read_only))
        for path in (
            "/config", "/config/{subject}", "/mode/{subject}", "/subjects/{subject}",
            "/subjects/{subject}/versions/{version}",
        ):  # fmt: skip
            router.add_delete(path, self._answering(_read_only))

    def _answering(self, respond: Respond) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            found = await respond(request, self._registry.catalog(self._reader()))
            body = found if isinstance(found, bytes) else msgspec.json.encode(found)
            return web.Response(body=body, content_type=MEDIA_TYPE)

        return handler

    async def _told_level(self, _: web.Request, __: Catalog) -> object:
        return {"compatibilityLevel": self._level}

    async def _level_of_subject(self, request: web.Request, catalog: Catalog) -> object:
        _subject(request, catalog)
        return await self._told_level(request, catalog)

    async def _compatibility(self, request: web.Request, catalog: Catalog) -> object:
        """Whether a schema could come behind a version, or behind all of them."""
        versions = [one.text for one in _subject(request, catalog)]
        if "version" in request.match_info:
            versions = [_asked_version(request, catalog).text]
        level = _asked_level(request, self._level)
        text = msgspec.json.encode(await _schema_sent(request)).decode()
        try:
            found = await asyncio.to_thread(differences, level, versions, text)
        except InvalidText as error:
            raise RegistryError(42201, f"Invalid schema: {error.what}", where="schema", mend=str(error.mend)) from None
        except ConfigError as error:
            raise RegistryError(50101, error.what, where="compatibility", mend=f"{error.mend} at the relay") from None
        told = {"messages": found} if request.query.get("verbose", "false").lower() == "true" else {}
        return {"is_compatible": not found, **told}


# --- subjects -------------------------------------------------------------------------------------------------------


async def _subjects(request: web.Request, catalog: Catalog) -> object:
    beginning = request.query.get("subjectPrefix", "")
    seen = sorted(name for name, versions in catalog.subjects.items() if _sees(request, versions[0]))
    return [name for name in seen if name.startswith(beginning)]


async def _versions(request: web.Request, catalog: Catalog) -> object:
    return [one.version for one in _subject(request, catalog)]


async def _version(request: web.Request, catalog: Catalog) -> object:
    return _document(_asked_version(request, catalog))


async def _version_text(request: web.Request, catalog: Catalog) -> object:
    return _asked_version(request, catalog).text.encode()


async def _look_up(request: web.Request, catalog: Catalog) -> object:
    versions = _subject(request, catalog)
    found = catalog.like(versions[0].subject, await _schema_sent(request))
    if found is None:
        mend = f"list its versions with /subjects/{versions[0].subject}/versions"
        raise RegistryError(40403, "Schema not found: the subject has no such version", where="schema", mend=mend)
    return _document(found)


async def _register(request: web.Request, catalog: Catalog) -> object:
    name = request.match_info["subject"]
    versions = catalog.subjects.get(name)
    form = await _schema_sent(request)
    if versions is not None:
        _require(request, versions[0])
        found = catalog.like(name, form)
        if found is not None:
            return {"id": found.id}
    raise RegistryError(
        42205,
        f"Subject {name[:140]!r} is in read-only mode",
        where="schema",
        mend="read what is there: schemas come from the tables of the database, as they change there",
    )


# --- schemas --------------------------------------------------------------------------------------------------------


async def _types(_: web.Request, __: Catalog) -> object:
    return ["AVRO"]


async def _schema(request: web.Request, catalog: Catalog) -> object:
    return {"schema": _asked_schema(request, catalog).text}


async def _schema_text(request: web.Request, catalog: Catalog) -> object:
    return _asked_schema(request, catalog).text.encode()


async def _subjects_of_schema(request: web.Request, catalog: Catalog) -> object:
    return [_asked_schema(request, catalog).subject]


async def _versions_of_schema(request: web.Request, catalog: Catalog) -> object:
    found = _asked_schema(request, catalog)
    return [{"subject": found.subject, "version": found.version}]


# --- what is so for all ---------------------------------------------------------------------------------------------


async def _read_only(request: web.Request, catalog: Catalog) -> object:
    if "subject" in request.match_info:
        _subject(request, catalog)
    raise RegistryError(
        42205,
        "the registry is in read-only mode",
        where="path",
        mend="set relay.schema_compatibility for the level; subjects and versions come from the tables of the database",
    )


async def _mode(_: web.Request, __: Catalog) -> object:
    return {"mode": "READONLY"}


async def _mode_of_subject(request: web.Request, catalog: Catalog) -> object:
    _subject(request, catalog)
    return await _mode(request, catalog)


# --- what is asked for ----------------------------------------------------------------------------------------------


def _asked_level(request: web.Request, otherwise: Level) -> Level:
    """The level that the request names in `level`, which Confluent's registry has not, or the configured one."""
    named = request.query.get("level", otherwise).upper()
    for level in LEVELS:
        if level == named:
            return level
    what, mend = f"Invalid compatibility level {named[:40]!r}", f"name one of {', '.join(LEVELS)}"
    raise RegistryError(42203, what, where="level", mend=mend)


def _document(one: Registered) -> dict[str, object]:
    return {"subject": one.subject, "version": one.version, "id": one.id, "schema": one.text}


def _sees(request: web.Request, one: Registered) -> bool:
    return one.table is None or granted(request).sees_table(*one.table)


def _require(request: web.Request, one: Registered) -> None:
    if not _sees(request, one):
        name = granted(request).name
        what = f"the token {name} does not reach the table of {one.subject}"
        mend = "list what it reaches with /subjects"
        error = AccessError(403, what, reason="beyond the scope", where="path", mend=mend, token=name)
        error.body |= {"error_code": 40301, "message": f"{what}; {mend}"}
        raise error


def _subject(request: web.Request, catalog: Catalog) -> list[Registered]:
    name = request.match_info["subject"]
    versions = catalog.subjects.get(name)
    if versions is None:
        what, mend = f"Subject {name[:300]!r} not found", "list them with /subjects"
        raise RegistryError(40401, what, where="subject", mend=mend)
    _require(request, versions[0])
    return versions


def _asked_version(request: web.Request, catalog: Catalog) -> Registered:
    versions, text = _subject(request, catalog), request.match_info["version"]
    if text in {"latest", "-1"}:
        return versions[-1]
    if not _NUMBER.match(text) or not 1 <= int(text) < 1 << 31:
        what = f"{text[:40]!r} is not a valid version"
        raise RegistryError(42202, what, where="version", mend="ask for a number from 1 on, or for latest")
    if int(text) > len(versions):
        mend = f"the last one is {len(versions)}"
        raise RegistryError(40402, f"Version {text} not found", where="version", mend=mend)
    return versions[int(text) - 1]


def _asked_schema(request: web.Request, catalog: Catalog) -> Registered:
    text = request.match_info["id"]
    found = catalog.by_id(int(text)) if _NUMBER.match(text) else None
    if found is None:
        mend = "ask the relay of the log that the topic is of"
        raise RegistryError(40403, f"Schema {text[:40]!r} not found", where="id", mend=mend)
    _require(request, found)
    return found


async def _schema_sent(request: web.Request) -> object:
    body = await bounded_body(request, "a schema", MAX_BODY)
    mend = 'send {"schema": "…", "schemaType": "AVRO"}, the Avro schema being a JSON text inside of it'
    try:
        document = msgspec.json.decode(body)
        if document.get("schemaType", "AVRO") != "AVRO":
            raise RegistryError(42201, "Invalid schema: only Avro is known here", where="schemaType", mend=mend)
        return msgspec.json.decode(document["schema"])
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        raise RegistryError(42201, "Invalid schema", where="schema", mend=mend) from None
