"""The webhook sink: changes as signed HTTP requests, each at least once, in order, one at a time.

A request has some hundred changes as one JSON object, `{"consumer":…,"changes":[…]}`, each in the form of
`walbus.consumers.sinks.lines` without `begin` and `commit`: a change says its transaction (`xid`, `commit_time`), its
`position` and its `seq`. A receiver that keeps rows compares seqs, and heeds `sweep`.

    outbox    a request lies on this machine's disk, with the checkpoint behind it, before it is sent
    sent      the receiver answered 2xx: the outbox holds the checkpoint alone

So after a crash the very same request, with the same `webhook-id`, is sent again before anything else, and a receiver
that remembers the last id has each change once. What is rolled back was sent or not: changes that were, in parts of a
transaction that is larger than a request, do not come again.

A request that the receiver refuses for what is in it is taken out of the outbox, and sent in halves, down to the one
change that is at fault.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import msgspec
from pydantic import Field, HttpUrl, SecretStr, field_validator

from walbus.consumers.checkpoint import Checkpoint, Following, Marks, dump_checkpoint, last_done_of, load_checkpoint
from walbus.consumers.checkpoint_store import FileCheckpointStore, replace_durably
from walbus.consumers.refused_rows import RefusedRow, RowRefused, row_of
from walbus.consumers.sinks.base import Batching, SinkOptions, SinkPlace, no_folder
from walbus.consumers.sinks.lines import WindowLines, sweep_line
from walbus.consumers.sinks.webhook_request import OWN_HEADERS, RequestRefused, WebhookClient, is_header, secret_bytes
from walbus.consumers.steps import Sweep
from walbus.errors import InvalidText, SinkRefused, UsageError
from walbus.events import Window
from walbus.jsonlines import encode_line
from walbus.position import ORIGIN, Position, parse_position
from walbus.records import Kind, Op

_REQUEST_BYTES = 1 << 20
_FRAMES = ("begin", "commit")
_ROW_OPS = frozenset({Op.INSERT, Op.UPDATE, Op.DELETE, Op.TRUNCATE})


class WebhookOptions(SinkOptions):
    """Keys of `[consumer.NAME]` with `sink = "webhook"`."""

    url: HttpUrl  #: where requests go
    secret: SecretStr  #: that they are signed with: `whsec_` and base64
    old_secret: SecretStr | None = None  #: signs as well, while receivers are given a new one
    headers: dict[str, SecretStr] = Field(default_factory=dict)  #: sent with each request
    changes: int = Field(500, ge=1, le=10_000)  #: of one request, at most
    request_seconds: float = Field(30.0, gt=0, le=600)  #: that a request may take, up to its answer
    allow_private: bool = False  #: whether addresses that are not public are called

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not is_header(name, value.get_secret_value()):
                raise ValueError(
                    f"{name!r} is no header: names and values are printable ASCII, without blanks around them"
                )
            if name.lower() in OWN_HEADERS:
                raise ValueError(f"{name!r} is one that each request has already")
        return headers

    @field_validator("secret", "old_secret")
    @classmethod
    def _is_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            secret_bytes(secret.get_secret_value())
        return secret


class _Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says before the body of its request.

    Attributes:
        checkpoint: behind everything that was sent, the request included; None: there was none yet.
        sent: the last change of a transaction of which a part was sent; it is not sent again.
        log_generation: of the log that `sent` is of.
        request: its id; None: there is nothing to be sent.
        before: what the three first were before the request, for it may be refused; None: there is no request.
    """

    checkpoint: str | None
    sent: str
    log_generation: int
    request: str | None
    before: tuple[str | None, str, int] | None = None


class _Line(NamedTuple):
    """What is to be sent of one change.

    Attributes:
        text: its JSON.
        last: `_Outbox.sent` once it is sent.
        row: of the change; None: it is of no row.
        place: table and position.
    """

    text: bytes
    last: Position
    row: RefusedRow | None
    place: str


_NOTHING = _Outbox(checkpoint=None, sent=str(ORIGIN), log_generation=0, request=None)


class WebhookSink:
    """Requests to one receiver; see `walbus.consumers.sinks.base.Sink`."""

    def __init__(self, options: WebhookOptions, place: SinkPlace) -> None:
        secrets = [one for one in (options.secret, options.old_secret) if one is not None]
        self._client = WebhookClient(
            str(options.url),
            tuple(secret_bytes(one.get_secret_value()) for one in secrets),
            {name: value.get_secret_value() for name, value in options.headers.items()},
            options.request_seconds,
            allow_private=options.allow_private,
        )
        self._consumer, self._most = place.consumer, options.changes
        self._path = place.folder / "webhook.outbox"
        self._lock = FileCheckpointStore(self._path)
        self._lines_of = WindowLines()
        self._outbox, self._body = _NOTHING, b""
        self._gathered: list[_Line] = []
        self._size = 0
        self._last = ORIGIN  # of a transaction, the last change that is gathered or sent
        self._log_generation = 0

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SinkType.open`."""
        sink = cls(WebhookOptions.read(options, place), place)
        try:
            sink._lock.take()
            sink._load()
        except UsageError as error:
            mend = "stop the other consumer of this name first: two would send each change twice"
            raise SinkRefused("another process has this outbox", where=error.where, mend=mend) from None
        except OSError as error:
            raise no_folder(error, place.folder) from None
        except BaseException:
            sink.close()
            raise
        return sink

    @property
    def batching(self) -> Batching:
        """A request takes a round trip: windows wait a moment for others."""
        return Batching(linger=0.02, max_changes=self._most)

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`; a request that was under way is sent first, and so may raise."""
        self._load()
        try:
            self._settle()
        except RequestRefused:
            if not self._take_back():
                raise
            self._forget()  # what it had comes again
        text = self._outbox.checkpoint
        try:
            return None if text is None else load_checkpoint(text)
        except InvalidText as error:
            raise SinkRefused(error.what, where=str(self._path), mend=error.mend) from None

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        if marks.log_generation != self._log_generation:
            self._log_generation, self._last = marks.log_generation, ORIGIN
        for window in windows:
            of_log = window.kind is Kind.TRANSACTION
            changes = iter(window.changes)
            for line in self._lines_of.of(window):
                if line["op"] in _FRAMES:
                    continue
                change = next(changes)
                if of_log:
                    position = parse_position(str(line["position"]))
                    if position <= self._last:
                        continue  # it was sent
                    self._last = position
                place = f"{change.table} at {change.position}"
                self._gather(encode_line(line), row_of(change) if change.raw.op in _ROW_OPS else None, place)

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        self._gather(encode_line(sweep_line(sweep)), None, f"the sweep of {sweep.table}")

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        text = dump_checkpoint(checkpoint)
        self._settle()
        if not isinstance(checkpoint, Following):
            last = last_done_of(
                checkpoint
            )  # behind a snapshot the log comes again from here, and means more than before
        else:
            last = max(self._last, last_done_of(checkpoint))
        if self._gathered:
            self._send(text, last)
        else:
            self._last = last
            self._keep(self._behind(text))

    def rollback(self) -> None:
        """See `Sink.rollback`; what was sent stays so."""
        self._forget()

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`: a line names the columns that it lacks."""
        return ()

    def close(self) -> None:
        """See `Sink.close`."""
        self._forget()
        self._client.close()
        self._lock.release()

    # Requests

    def _gather(self, text: bytes, row: RefusedRow | None, place: str) -> None:
        self._gathered.append(_Line(text, self._last, row, place))
        self._size += len(text)
        if len(self._gathered) >= self._most or self._size >= _REQUEST_BYTES:
            self._send(self._outbox.checkpoint, self._last)

    def _send(self, checkpoint: str | None, last: Position) -> None:
        """Sends what has gathered; a checkpoint is stored with it, and up to where nothing comes again."""
        self._settle()
        lines, self._gathered, self._size = self._gathered, [], 0
        self._send_lines(lines, checkpoint, last)

    def _send_lines(self, lines: Sequence[_Line], checkpoint: str | None, last: Position) -> None:
        texts = b",".join(line.text for line in lines)
        body = b'{"consumer":%s,"changes":[%s]}' % (msgspec.json.encode(self._consumer), texts)
        self._last = last
        self._keep(self._behind(checkpoint, f"msg_{secrets.token_hex(16)}"), body)
        try:
            self._settle()
        except RequestRefused as error:
            self._take_back()
            if len(lines) == 1:
                raise _refusal(lines[0], error) from None
            half = len(lines) // 2
            self._send_lines(lines[:half], self._outbox.checkpoint, lines[half - 1].last)
            self._send_lines(lines[half:], checkpoint, last)

    def _settle(self) -> None:
        """Sends the request that is under way, if there is one."""
        if self._outbox.request is not None:
            self._client.post(self._outbox.request, self._body)
            self._keep(msgspec.structs.replace(self._outbox, request=None, before=None))

    def _take_back(self) -> bool:
        """Takes the request out of the outbox; False if nobody knows what was there before it."""
        if self._outbox.before is None:
            return False
        checkpoint, sent, log_generation = self._outbox.before
        self._keep(_Outbox(checkpoint=checkpoint, sent=sent, log_generation=log_generation, request=None))
        return True

    def _forget(self) -> None:
        """Drops what has gathered."""
        self._gathered, self._size = [], 0
        self._last, self._log_generation = parse_position(self._outbox.sent), self._outbox.log_generation

    # The outbox

    def _behind(self, checkpoint: str | None, request: str | None = None) -> _Outbox:
        """What holds once all that was accepted is sent."""
        now, sent = self._outbox, str(self._last)
        before = None if request is None else (now.checkpoint, now.sent, now.log_generation)
        generation = self._log_generation
        return _Outbox(checkpoint=checkpoint, sent=sent, log_generation=generation, request=request, before=before)

    def _keep(self, outbox: _Outbox, body: bytes = b"") -> None:
        """Replaces the file, durably."""
        try:
            replace_durably(self._path, msgspec.json.encode(outbox) + b"\n" + body)
        except OSError as error:
            raise no_folder(error, self._path.parent) from None
        self._outbox, self._body = outbox, body

    def _load(self) -> None:
        """Reads the file, and forgets what has gathered."""
        try:
            head, _, self._body = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            head, self._body = msgspec.json.encode(_NOTHING), b""
        except OSError as error:
            raise no_folder(error, self._path.parent) from None
        try:
            self._outbox = msgspec.json.decode(head, type=_Outbox)
            self._forget()
        except (msgspec.DecodeError, InvalidText) as error:
            mend = "move the file away: the consumer begins anew, and what it holds is not sent"
            raise SinkRefused(f"this is no outbox of a webhook: {error}", where=str(self._path), mend=mend) from None


def _refusal(line: _Line, error: RequestRefused) -> SinkRefused:
    """What is told of the one change that a request had."""
    where = f"{line.place}, by {error.where}"
    if line.row is None:
        return SinkRefused(error.what, where=where, mend=error.mend)
    return RowRefused(error.what, where=where, mend=error.mend, row=line.row)
