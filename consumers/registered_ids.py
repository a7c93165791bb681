"""Ids of schemas from a registry in the form of Confluent's: what table topics name where one is configured.

Each schema is registered under its subject (`TOPIC-key`, `TOPIC-value`) before the first record that names it; the
registry answers with the id, also of what it has already. It, and not Walbus, decides by its rules of compatibility
whether a schema may come: one that it refuses stops the topic's writer before a record is written.

A registry that is away is the caller's to wait for, as a sink that is away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import httpx
import msgspec
import structlog

from walbus.config import SchemaRegistryConfig
from walbus.credentials import Credentials, connection_problem, new_client
from walbus.errors import SinkRefused, SinkUnavailable, WalbusError
from walbus.schema import TableSchema
from walbus.topics.catalog import Family, row_family, text_of
from walbus.topics.ends import END_KEY, END_VALUE
from walbus.topics.forms import Json
from walbus.topics.names import TopicNames, key_subject, value_subject

_log = structlog.get_logger(__name__)

_KEYS: Final = "keys [relay.schema_registry]"
_TIMEOUT: Final = httpx.Timeout(15.0, connect=5.0)
_MEDIA_TYPE: Final = "application/vnd.schemaregistry.v1+json"
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHOWN: Final = 500  # signs of what a registry says


_SubjectOf = Callable[[str], str]
_FormOf = Callable[[TableSchema], Json]


class _Answer(msgspec.Struct):
    id: int


class _Latest(msgspec.Struct):
    version: int


class _Config(msgspec.Struct):
    compatibilityLevel: str  # noqa: N815 - the registry's word


class _Refusal(msgspec.Struct):
    error_code: int = 0
    message: str = ""


_Kind = TypeVar("_Kind")


class RegisteredIds:
    """See `walbus.topics.SchemaIds`; one request a schema, and none for what was registered before.

    Args:
        names: of the topics.
        registry: where it is, and what it is shown.
        family: of the topics' schemas; those of rows without it.

    Raises:
        ConfigError: the credentials cannot be used.
    """

    def __init__(self, names: TopicNames, registry: SchemaRegistryConfig, family: Family | None = None) -> None:
        self._names, self._url, self._family = names, registry.url, family or row_family()
        credentials = Credentials(registry.token, registry.ca_file, registry.tls_cert, registry.tls_key)
        self._client = new_client(registry.url.rstrip("/"), credentials, _TIMEOUT)
        if registry.user is not None:
            password = "" if registry.password is None else registry.password.get_secret_value()
            self._client.auth = httpx.BasicAuth(registry.user, password)
        self._known: dict[tuple[str, str], int] = {}
        self._of_layout: dict[tuple[str, int], tuple[TableSchema, int]] = {}
        self._away = False

    def rows(self, layout: TableSchema) -> int:
        """The id of the schema of a layout's rows.

        Raises:
            SinkUnavailable: the registry does not answer; call again.
            SinkRefused: it does not take the schema; says which, where, and what to do.
        """
        return self._id(value_subject, self._family.value_form, layout)

    def keys(self, layout: TableSchema) -> int:
        """The id of the schema of a layout's keys; as `rows`."""
        return self._id(key_subject, self._family.key_form, layout)

    @property
    def ends(self) -> tuple[int, int]:
        """The ids of the schemas of a transaction's end; as `rows`."""
        topic, whose = self._names.transactions, "transactions' ends"
        return (
            self._registered(key_subject(topic), text_of(END_KEY), whose),
            self._registered(value_subject(topic), text_of(END_VALUE), whose),
        )

    def confirm(self, layout: TableSchema, rows: int, keys: int | None) -> None:
        """Sees that the ids which records of a layout name are still the registry's.

        Args:
            layout: of the records.
            rows: id of the schema of values.
            keys: of keys; None for a table without a key.

        Raises:
            SinkUnavailable: as `rows`.
            SinkRefused: as `rows`, or it is another registry than the one that gave them.
        """
        asked = [(value_subject, self.rows, rows)] + ([] if keys is None else [(key_subject, self.keys, keys)])
        for subject_of, ask, named in asked:
            found = ask(layout)
            if found != named:
                subject = subject_of(self._names.of_table(layout.namespace, layout.name))
                what = f"the schema of table {layout.table}, layout {layout.id} has the id {found} in the registry, "
                raise SinkRefused(
                    f"{what}and records in the topic name {named}: that registry gave it to none of them",
                    where=f"subject {subject} at {self._url}",
                    mend="name the registry that the topics were begun with, or restore it; with another one they are "
                    "written anew, by a consumer with another prefix",
                )

    def check(self) -> None:
        """Sees that the registry answers, and lets this user in.

        Raises:
            SinkUnavailable, SinkRefused: as `rows`.
        """
        response = self._asked("GET", "/subjects", None)
        if response.status_code != httpx.codes.OK:
            raise self._refused(response, "the list of subjects", self._url)

    def close(self) -> None:
        """Frees its connections."""
        self._client.close()

    def _id(self, subject_of: _SubjectOf, form_of: _FormOf, layout: TableSchema) -> int:
        subject = subject_of(self._names.of_table(layout.namespace, layout.name))
        known = self._of_layout.get((subject, layout.id))
        if known is None or known[0] != layout:  # another log gives the number to another layout
            number = self._registered(subject, text_of(form_of(layout)), f"table {layout.table}, layout {layout.id}")
            known = self._of_layout[subject, layout.id] = layout, number
        return known[1]

    def _registered(self, subject: str, text: str, whose: str) -> int:
        known = self._known.get((subject, text))
        if known is None:
            body = msgspec.json.encode({"schema": text})
            response = self._asked("POST", f"/subjects/{subject}/versions", body)
            if response.status_code != httpx.codes.OK:
                if response.status_code == httpx.codes.CONFLICT:
                    raise self._conflict(response, f"the schema of {whose}", subject)
                raise self._refused(response, f"the schema of {whose}", f"subject {subject} at {self._url}")
            try:
                known = self._known[subject, text] = msgspec.json.decode(response.content, type=_Answer).id
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise SinkRefused(
                    "what answers there is no schema registry",
                    where=f"{self._url}, {_KEYS}",
                    mend="name the registry with the path of its Confluent-compatible interface, if it has one",
                ) from None
        return known

    def _asked(self, method: str, path: str, body: bytes | None) -> httpx.Response:
        try:
            response = self._client.request(method, path, content=body, headers={"Content-Type": _MEDIA_TYPE})
        except httpx.TransportError as error:
            raise self._unavailable(connection_problem(error)[0]) from error
        if response.status_code in _PASSING:
            raise self._unavailable(f"it answers {response.status_code}")
        if self._away:
            self._away = False
            _log.info("schema_registry_is_back", url=self._url)
        return response

    def _unavailable(self, why: str) -> WalbusError:
        if not self._away:  # said once, however often it is asked again
            self._away = True
            _log.warning("schema_registry_is_away", url=self._url, why=why)
        mend = f"see that it runs, and that {_KEYS} name it; it is tried again"
        return SinkUnavailable(f"the schema registry cannot be asked: {why}", where=self._url, mend=mend)

    def _conflict(self, response: httpx.Response, what: str, subject: str) -> WalbusError:
        """The error for a schema that may not follow what the subject has."""
        latest = self._looked_up(f"/subjects/{subject}/versions/latest", _Latest)
        there = "what the subject has" if latest is None else f"version {latest.version} of its subject"
        config = self._looked_up(f"/config/{subject}?defaultToGlobal=true", _Config)
        level = "" if config is None else f" under compatibility {config.compatibilityLevel}"
        return SinkRefused(
            f"{what} does not go together with {there}{level}: {_said(response).message[:_SHOWN]}",
            where=f"subject {subject} at {self._url}",
            mend="see who reads the topic; then set the subject's compatibility in the registry to a level that allows "
            f'it (PUT /config/{subject} with {{"compatibility": "NONE"}}) and start again, or have the topics written '
            "under another prefix",
        )

    def _looked_up(self, path: str, kind: type[_Kind]) -> _Kind | None:
        """What the registry says there; None where it does not, since an error need not tell all that it could."""
        try:
            return msgspec.json.decode(self._asked("GET", path, None).content, type=kind)
        except (WalbusError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _refused(self, response: httpx.Response, what: str, where: str) -> WalbusError:
        said = _said(response)
        status, why = response.status_code, said.message[:_SHOWN]
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            told = f"the schema registry does not let this user in ({status})"
            return SinkRefused(told, where=where, mend=f"set user and password, or token, among {_KEYS}")
        told = f"the schema registry refuses {what} ({status}, {said.error_code}): {why}"
        return SinkRefused(told, where=where, mend="mend what it names")


def _said(response: httpx.Response) -> _Refusal:
    try:
        return msgspec.json.decode(response.content, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Refusal()
