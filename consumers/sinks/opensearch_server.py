"""One OpenSearch or Elasticsearch as the sink reaches it: requests over HTTP, and what the answers mean.

Only what both have had in common since OpenSearch 1 and Elasticsearch 7.10 is used, which no client library of either
speaks with the other. Of an error only its type and the name of a field are told: the rest may quote values.

A server that is busy, without room or without a shard is away for now (`SinkUnavailable`). Single documents that it
pushed back are sent again a few times before that.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from walbus.consumers.backoff import Backoff
from walbus.consumers.refused_rows import RowRefused, row_of
from walbus.consumers.sinks.opensearch_bulks import (
    NO_SENSE,
    BulkError,
    BulkItem,
    Shards,
    Write,
    bulk_items,
    bulks_of,
    shards_of,
)
from walbus.consumers.sinks.opensearch_table_index import Action, FoundIndex
from walbus.credentials import connection_problem
from walbus.errors import SinkRefused, SinkUnavailable

T = TypeVar("T")

NOT_FOUND, CONFLICT, TOO_LARGE = httpx.codes.NOT_FOUND, httpx.codes.CONFLICT, httpx.codes.REQUEST_ENTITY_TOO_LARGE
#: Statuses with which a server fails to put a document of another form into JSON.
CANNOT_BE_SHOWN = (httpx.codes.BAD_REQUEST, httpx.codes.INTERNAL_SERVER_ERROR)
_CONNECT_SECONDS = 5.0
_LONGEST_PATH = 2_900  # servers take 4,096 bytes for method, path and parameters, and what is in between may take fewer
_BULK_ATTEMPTS = 8  # some five seconds of back-off
_OLDEST = {"opensearch": (1, 0), "elasticsearch": (7, 10)}
_OF_ANOTHER = (400, 404, 405)  # as another kind of server answers who asks what it is

_NO_INDEX = "index_not_found_exception"
#: Types of errors that pass: whatever the status, what an operator or the cluster itself mends.
_PASSING = frozenset({
    "circuit_breaking_exception",
    "cluster_block_exception",  # read-only, as at a disk's flood stage
    "es_rejected_execution_exception",
    "index_closed_exception",
    _NO_INDEX,
    "process_cluster_event_timeout_exception",
    "rejected_execution_exception",
    "unavailable_shards_exception",
})  # fmt: skip
_UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # believes nobody; without TLS it is asked for nothing
_FIELD = re.compile(r"field \[([^\]]*)\]")


class IndexGone(SinkUnavailable):
    """An index, or an alias that it is written by, is not there."""


class _Count(msgspec.Struct):
    count: int


class _Acknowledged(msgspec.Struct):
    acknowledged: bool


Done: TypeAlias = list[tuple[Write, int]]  # with the status of each


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and its body."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Access:
    """How a server is reached.

    Attributes:
        url: without user and password.
        login: user and password.
        api_key: instead of them.
        ca_file: PEM; whom to believe instead of the system's authorities.
        seconds: a request may take.
        connections: requests at the same time.
    """

    url: str
    login: tuple[str, str] | None
    api_key: str | None
    ca_file: Path | None
    seconds: float
    connections: int

    def __repr__(self) -> str:
        """Without secrets."""
        return f"Access({self.url!r})"

    def client(self) -> httpx.Client:
        """A connection pool.

        Raises:
            OSError: the file of authorities cannot be read.
        """
        return httpx.Client(
            base_url=self.url,
            auth=self.login,
            headers={"Authorization": f"ApiKey {self.api_key}"} if self.api_key else {},
            verify=ssl.create_default_context(cafile=self.ca_file) if self.url.startswith("https") else _UNUSED,
            timeout=httpx.Timeout(self.seconds, connect=min(self.seconds, _CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=self.connections + 1, keepalive_expiry=60),
            trust_env=False,
        )


class OpenSearchServer:
    """One server. Every method may raise SinkUnavailable or SinkRefused."""

    def __init__(self, access: Access) -> None:
        """Opens no connection yet."""
        self.where = access.url
        self._http = access.client()
        self._connections = access.connections
        self._threads = ThreadPoolExecutor(access.connections, thread_name_prefix="walbus-bulk")
        self._under_way: list[Future[Done]] = []

    def close(self) -> None:
        """Waits for what is under way, and closes the connections."""
        self._threads.shutdown(cancel_futures=True)
        self._http.close()

    def check(self) -> None:
        """Sees whether it is one that the sink can write to.

        Raises:
            SinkRefused: it is something else, or too old.
        """
        answer = self.ask("GET", "/", accepted=_OF_ANOTHER)
        try:
            version = msgspec.json.decode(answer.body)["version"]
            kind = version.get("distribution", "elasticsearch")
            number = tuple(int(part) for part in version["number"].split(".")[:2])
        except (*NO_SENSE, KeyError, TypeError, AttributeError):
            mend = "name the address of OpenSearch or Elasticsearch itself"
            raise SinkRefused("this is no OpenSearch or Elasticsearch", where=self.where, mend=mend) from None
        if number < _OLDEST.get(kind, (0, 0)):
            what = f"{kind} {version['number']} is too old"
            raise SinkRefused(what, where=self.where, mend="OpenSearch 1, Elasticsearch 7.10 or a later one is needed")

    # Requests

    def ask(
        self, method: str, path: str, body: object = None, *, accepted: Sequence[int] = (), what: str = ""
    ) -> Answer:
        """One request; `accepted` are statuses that are no errors here, `what` stands in errors instead of the path.

        Raises:
            SinkUnavailable, SinkRefused
        """
        content = None if body is None else _json_of(body)
        answer = self._request(method, path, content, "application/json")
        if not httpx.codes.is_success(answer.status) and answer.status not in accepted:
            raise self._failed(answer.status, _error_of(answer.body), what or path.partition("?")[0])
        return answer

    def told(self, answer: Answer, form: type[T]) -> T:
        """What an answer says, half of a sign included, as somebody may have put it into a filter or a mapping.

        Raises:
            SinkUnavailable: it has another form.
        """

        def reader(body: bytes) -> T:
            try:
                return msgspec.json.decode(body, type=form)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                return msgspec.convert(json.loads(body), form)

        return self.read(reader, answer)

    def _request(self, method: str, path: str, content: bytes | None, form: str) -> Answer:
        try:
            response = self._http.request(method, path, content=content, headers={"Content-Type": form})
            return Answer(response.status_code, response.content)
        except (httpx.HTTPError, OSError) as error:
            if isinstance(error.__cause__, OSError) and "certificate" in str(error).lower():
                what, mend = connection_problem(error)[0], "name its authority's certificate as ca_file"
                raise SinkRefused(what, where=self.where, mend=mend) from None
            raise SinkUnavailable(
                f"the search server does not answer ({type(error).__name__})", where=self.where
            ) from None

    def _failed(self, status: int, error: BulkError, what: str) -> SinkUnavailable | SinkRefused:
        told = error.type or str(status)
        if status < httpx.codes.BAD_REQUEST:  # as from something in between, which sends elsewhere
            what_came = f"an answer of the search server makes no sense (status {status})"
            return SinkUnavailable(what_came, where=f"{self.where}, {what}")
        if _passes(status, error.type):
            away = IndexGone if error.type == _NO_INDEX else SinkUnavailable
            return away(f"the search server cannot do this now ({told})", where=f"{self.where}, {what}")
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            mend = "mend user and password, or api_key, and see that they may make, read and write these indices"
            return SinkRefused(
                f"the search server lets nobody in so ({told})", where=f"{self.where}, {what}", mend=mend
            )
        return SinkRefused(f"the search server refuses ({told})", where=f"{self.where}, {what}")

    def move(self, actions: Sequence[Action]) -> None:
        """Changes aliases, and deletes indices, in one act.

        Raises:
            IndexGone: one of the indices is not there; nothing was done.
            SinkUnavailable: among others, that it was done, and some nodes have not heard of it yet.
            SinkRefused
        """
        answer = self.ask("POST", "/_aliases", {"actions": actions})
        if not self.told(answer, _Acknowledged).acknowledged:
            raise SinkUnavailable("some nodes of the search server have not heard of moved aliases", where=self.where)

    def hide(self, index: str, *, hidden: bool) -> None:
        """Whether wildcards meet an index by its own name."""
        self.ask("PUT", f"/{path_of(index)}/_settings", {"index.hidden": hidden})

    def clear(self, aliases: Sequence[str]) -> None:
        """Removes empty indices that are called as these aliases are to be, as late deletes make them."""
        for alias in aliases:
            answer = self.ask("GET", f"/{path_of(alias)}", accepted=[NOT_FOUND])
            if answer.status != NOT_FOUND and alias in self.told(answer, dict[str, FoundIndex]):
                self.remove_if_empty(alias)

    def remove_if_empty(self, index: str) -> bool:
        """Removes an index, unless it has documents; tells whether it had none."""
        self.refresh([index])
        if self.told(self.ask("GET", f"/{path_of(index)}/_count"), _Count).count:
            return False
        self.ask("DELETE", f"/{path_of(index)}", accepted=[NOT_FOUND])
        return True

    # Writing

    def send(self, writes: Sequence[Write]) -> Done:
        """Sends writes in bulks, several at a time, and returns before they are all done: see `drain`.

        Args:
            writes: in any order: versions tell which one stays.

        Returns:
            Writes that are done meanwhile, and their statuses.
        """
        done: Done = []
        for bulk in bulks_of(writes):
            while len(self._under_way) > self._connections:
                done += self._under_way.pop(0).result()
            self._under_way.append(self._threads.submit(self._send, bulk))
        return done

    def drain(self) -> Done:
        """Waits until all that was sent is done.

        Returns:
            Writes that are done, and their statuses.
        """
        done: Done = []
        failures: list[SinkUnavailable | SinkRefused] = []
        while self._under_way:
            try:
                done += self._under_way.pop(0).result()
            except (SinkUnavailable, SinkRefused) as error:
                failures.append(error)
        if failures:
            raise min(failures, key=lambda error: isinstance(error, SinkUnavailable))
        return done

    def abandon(self) -> Done:
        """As `drain`, but that failures are nobody's concern any more. Never raises."""
        done: Done = []
        while self._under_way:
            with suppress(Exception):
                done += self._under_way.pop(0).result()
        return done

    def _send(self, bulk: Sequence[Write]) -> Done:
        done: Done = []
        backoff, left = Backoff(longest=1.0), list(bulk)
        while True:
            pushed_back: list[tuple[Write, BulkItem]] = []
            for write, item in zip(left, self._bulk(left), strict=True):
                if write.source is None and item.index not in ("", write.place.index):
                    raise IndexGone("an index is gone", where=f"{self.where}, {write.place.index}")
                if item.status < httpx.codes.BAD_REQUEST or item.status == CONFLICT or _gone_already(write, item):
                    done.append((write, item.status))
                elif _passes(item.status, item.error.type if item.error else None) and item.status != NOT_FOUND:
                    pushed_back.append((write, item))
                else:
                    raise self._refused(write, item)
            if not pushed_back:
                return done
            if backoff.attempts >= _BULK_ATTEMPTS:
                write, item = pushed_back[0]
                raise self._failed(item.status, item.error or BulkError(), write.place.index)
            left = [write for write, _ in pushed_back]
            time.sleep(backoff.next_delay())

    def _bulk(self, bulk: Sequence[Write]) -> list[BulkItem]:
        path = "/_bulk?filter_path=items.*.status,items.*.error.type,items.*.error.reason,items.delete._index"
        content = b"".join([write.lines() for write in bulk])
        answer = self._request("POST", path, content, "application/x-ndjson")
        if answer.status == TOO_LARGE:
            if len(bulk) == 1:
                raise self._refused(bulk[0], BulkItem(TOO_LARGE))
            half = len(bulk) // 2
            return self._bulk(bulk[:half]) + self._bulk(bulk[half:])
        if not httpx.codes.is_success(answer.status):
            error = _error_of(answer.body)
            if _passes(answer.status, error.type):
                return [BulkItem(answer.status, error)] * len(bulk)
            raise self._failed(answer.status, error, "/_bulk")
        return self.counted(self.read(bulk_items, answer), len(bulk), "writes")

    def _refused(self, write: Write, item: BulkItem) -> SinkUnavailable | SinkRefused:
        error = item.error or BulkError()
        failed = self._failed(item.status, error, write.place.index)
        if isinstance(failed, SinkUnavailable) or write.change is None:
            return failed
        change, field = write.change, _FIELD.search(error.reason or "")
        what = f"the search server refuses a document{' of this size' if item.status == TOO_LARGE else ''}"
        told = f"{error.type or item.status}{f', field {field[1]}' if field else ''}"
        return RowRefused(
            f"{what} ({told})",
            where=f"{change.table or change.raw.table} at {change.position}, index {write.place.index}",
            mend="map the field so that it takes such values (fields), or leave the table out of the consumer's tables",
            row=row_of(change),
        )

    # Answers

    def refresh(self, indices: Sequence[str]) -> None:
        """Makes what was written searchable."""
        for part in _parts_of(indices):
            answer = self.ask("POST", f"/{path_of(*part)}/_refresh", what=f"a refresh of {len(part)} indices")
            self.require_whole(self.read(shards_of, answer))

    def read(self, reader: Callable[[bytes], T], answer: Answer) -> T:
        """What an answer says, by one of the readers of `opensearch_bulks`.

        Raises:
            SinkUnavailable: it has another form.
        """
        try:
            return reader(answer.body)
        except NO_SENSE:  # as from something in between that answers in its own way
            raise SinkUnavailable("an answer of the search server makes no sense", where=self.where) from None

    def counted(self, answers: list[T], asked: int, what: str) -> list[T]:
        """The answers, if they are as many as were asked for.

        Raises:
            SinkUnavailable
        """
        if len(answers) != asked:
            what_came = f"an answer of the search server makes no sense ({len(answers)} of {asked} {what})"
            raise SinkUnavailable(what_came, where=self.where)
        return answers

    def require_whole(self, shards: Shards) -> None:
        """What some shards did not tell would be missing from a copy, or left behind by a sweep.

        Raises:
            SinkUnavailable
        """
        if shards.failed:
            raise SinkUnavailable("the search server has shards that do not answer", where=self.where)


def path_of(*indices: str) -> str:
    """Indices as a part of a path."""
    return ",".join(quote(index, safe="") for index in indices)


def _parts_of(indices: Sequence[str]) -> Iterator[list[str]]:
    """The indices, in as many parts as their paths take."""
    part: list[str] = []
    for index in indices:
        if part and len(path_of(*part, index)) > _LONGEST_PATH:
            yield part
            part = []
        part.append(index)
    if part:
        yield part


def _json_of(body: object) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half of a sign, from an alias that somebody made
        return json.dumps(body).encode()


def _error_of(body: bytes) -> BulkError:
    try:
        error = msgspec.json.decode(body)["error"]
        cause = error.get("type") if isinstance(error, dict) else ""
        return BulkError(str(cause or ""))
    except (*NO_SENSE, KeyError, TypeError):
        return BulkError()


def _passes(status: int, kind: str | None) -> bool:
    return status == httpx.codes.TOO_MANY_REQUESTS or httpx.codes.is_server_error(status) or kind in _PASSING


def _gone_already(write: Write, item: BulkItem) -> bool:
    return write.source is None and item.status == NOT_FOUND and item.error is None


__all__ = ["CANNOT_BE_SHOWN", "CONFLICT", "NOT_FOUND", "Access", "Answer", "IndexGone", "OpenSearchServer", "path_of"]
