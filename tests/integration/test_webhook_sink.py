"""The webhook sink: what a receiver gets, who verifies signatures and remembers ids as one is told to."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from support.model_source import ITEMS, ModelSource, delete, insert, update
from support.running_consumer import consumer
from support.scripted_relay import ScriptedRelay
from support.sink_writing import MARKS, following, windows
from support.sinks_under_test import SinkUnderTest
from support.waiting import wait_for
from support.webhook_receiver import SECRET, Receiver
from walbus.consumers.checkpoint import CatchingUp, Marks, Point
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.letter_file import FILE_NAME
from walbus.consumers.refused_rows import RowRefused
from walbus.consumers.sinks import Sink, SinkPlace, open_sink
from walbus.consumers.steps import Sweep
from walbus.errors import ConfigError, SinkRefused, SinkUnavailable

OLD_KEY = os.urandom(24)
OLD_SECRET = f"whsec_{base64.b64encode(OLD_KEY).decode()}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    assert receiver.forged == 0
    receiver.close()


@pytest.fixture
def opened(receiver: Receiver, tmp_path: Path) -> Iterator[Callable[..., Sink]]:
    sinks: list[Sink] = []

    def again(**options: object) -> Sink:
        if sinks:
            sinks[-1].close()  # the process before it
        told = {"url": receiver.url, "secret": SECRET, "allow_private": True, **options}
        sinks.append(open_sink("webhook", told, SinkPlace("hook", tmp_path, ("public.*",))))
        return sinks[-1]

    yield again
    for sink in sinks:
        sink.close()


def test_a_receiver_gets_signed_changes_in_order(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource
) -> None:
    sink = opened(old_secret=OLD_SECRET, headers={"x-tenant": "seven"})
    assert sink.checkpoint() is None
    source.commit([insert(ITEMS, 1, "a"), update(ITEMS, 1, name="b")])
    source.commit([delete(ITEMS, 1)])
    sink.write(windows(source), MARKS)
    assert receiver.requests == []
    sink.sweep(Sweep(ITEMS, 9, MARKS, following(source)))
    sink.commit(following(source))
    [(_, body)] = receiver.requests
    told = json.loads(body)
    assert told["consumer"] == "hook"
    assert [change["op"] for change in told["changes"]] == ["insert", "update", "delete", "sweep"]
    first = told["changes"][0]
    assert first["table"] == ITEMS
    assert first["after"]["name"] == "a"
    assert {"position", "seq", "xid", "commit_time"} <= set(first)
    assert receiver.headers[0]["x-tenant"] == "seven"
    assert len(receiver.headers[0]["webhook-signature"].split(" ")) == 2
    assert sink.checkpoint() == following(source)
    assert opened().checkpoint() == following(source)
    assert len(receiver.requests) == 1


def test_a_request_that_was_not_answered_is_sent_again_as_it_was_before_anything_else(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource
) -> None:
    """The process died between the receiver's taking of it and the answer."""
    receiver.answer = lambda number: None if number < 3 else (200, {})
    source.commit([insert(ITEMS, 1, "a")])
    sink = opened()
    sink.write(windows(source), MARKS)
    with pytest.raises(SinkUnavailable, match="no answer"):
        sink.commit(following(source))
    sink.rollback()
    with pytest.raises(SinkUnavailable, match="no answer"):
        sink.checkpoint()
    later = opened()
    assert later.checkpoint() == following(source), "it was sent, and so is everything before its checkpoint"
    assert len(receiver.requests) == 3
    assert len(set(receiver.requests)) == 1
    assert len(receiver.changes()) == 1


def test_a_transaction_larger_than_a_request_is_sent_in_parts_of_which_none_comes_again(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, n, "x") for n in range(10)], pieces=4)
    sink = opened(changes=3)
    sink.write(windows(source), MARKS)
    assert len(receiver.requests) == 3
    sink.rollback()  # the last change was gathered, and is not sent
    again = opened(changes=3)
    assert again.checkpoint() is None
    again.write(windows(source), MARKS)
    again.commit(following(source))
    assert [change["key"]["id"] for change in receiver.changes()] == list(range(10))
    assert max(len(json.loads(body)["changes"]) for _, body in receiver.requests) == 3


def test_what_comes_again_behind_a_snapshot_is_sent_again(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource
) -> None:
    """A snapshot from before a DELETE brings the row back to the receiver; the log behind it takes it away again."""
    sink = opened()
    source.commit([insert(ITEMS, 1)])
    low = Point(source.end, source.last_seq)
    source.commit([delete(ITEMS, 1)])
    sink.write(windows(source), MARKS)
    sink.commit(following(source))
    reading = CatchingUp(source.log_id, Marks(2, 1), low, source.end)
    sink.sweep(Sweep(ITEMS, low.seq, Marks(2, 1), reading))
    sink.commit(reading)
    assert sink.checkpoint() == reading
    sink.write(windows(source, low.last_done), Marks(2, 1))
    sink.commit(following(source))
    assert [change["op"] for change in receiver.changes()] == ["insert", "delete", "sweep", "delete"]


def test_two_processes_do_not_have_one_outbox(opened: Callable[..., Sink], tmp_path: Path) -> None:
    opened()
    options = {"url": "http://127.0.0.1:9/", "secret": SECRET}
    with pytest.raises(SinkRefused, match="another process has this outbox"):
        open_sink("webhook", options, SinkPlace("hook", tmp_path, ("public.*",)))


class Odd:
    """A receiver of bytes: what it answers to each connection, and how often it repeats the last of them."""

    def __init__(self, first: bytes, again: bytes = b"") -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._first, self._again, self._ended = first, again, threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer, suppress(OSError):
                peer.recv(65536)
                peer.sendall(self._first)
                while self._again and not self._ended.wait(0.1):
                    peer.sendall(self._again)

    def close(self) -> None:
        self._ended.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_a_receiver_that_never_ends_its_answer_is_left(
    opened: Callable[..., Sink], source: ModelSource, first: bytes, again: bytes
) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(Odd(first, again)) as odd:
        sink = opened(url=odd.url, request_seconds=1)
        sink.write(windows(source), MARKS)
        with pytest.raises(SinkUnavailable, match="no whole answer within 1 s"):
            sink.commit(following(source))


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort", b""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_what_was_taken_is_taken_whatever_becomes_of_the_answers_body(
    opened: Callable[..., Sink], source: ModelSource, first: bytes, again: bytes
) -> None:
    source.commit([insert(ITEMS, 1)])
    with closing(Odd(first, again)) as odd:
        sink = opened(url=odd.url, request_seconds=5)
        sink.write(windows(source), MARKS)
        sink.commit(following(source))
        assert sink.checkpoint() == following(source)


def test_another_log_is_sent_from_its_beginning(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1)])
    sink = opened()
    sink.write(windows(source), MARKS)
    sink.commit(following(source))
    sink.write(windows(source), Marks(2, 2))
    sink.commit(following(source))
    assert len(receiver.changes()) == 2


def test_a_receiver_that_is_busy_is_waited_for_as_long_as_it_asks(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource
) -> None:
    receiver.answer = lambda _: (429, {"retry-after": "600"})
    source.commit([insert(ITEMS, 1)])
    sink = opened()
    sink.write(windows(source), MARKS)
    with pytest.raises(SinkUnavailable, match="answered 429"):
        sink.commit(following(source))
    sink.rollback()
    with pytest.raises(SinkUnavailable, match=r"left alone for (600|5\d\d) s"):
        sink.checkpoint()
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (500, SinkUnavailable, "answered 500"),
        (503, SinkUnavailable, "answered 503"),
        (408, SinkUnavailable, "answered 408"),
        (400, SinkRefused, "answered 400"),
        (410, SinkRefused, "answered 410"),
        (307, SinkRefused, "answered 307"),
    ],
)
def test_answers_mean_now_later_or_never(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource, status: int, error: type[Exception], told: str
) -> None:
    receiver.answer = lambda _: (status, {"location": receiver.url + "/elsewhere"})
    source.commit([insert(ITEMS, 1)])
    sink = opened()
    sink.write(windows(source), MARKS)
    with pytest.raises(error, match=told):
        sink.commit(following(source))
    assert len(receiver.requests) == 1, "a redirect is not followed"


def refuse_poison(receiver: Receiver) -> None:
    """It takes no request with the name `poison`, and all others."""

    def answer(number: int) -> tuple[int, dict[str, str]]:
        return (422 if b"poison" in receiver.requests[number - 1][1] else 204, {})

    receiver.answer = answer


def taken(receiver: Receiver) -> list[int]:
    """The ids of the rows that were taken."""
    return [change["key"]["id"] for id, body in dict(receiver.requests).items() if b"poison" not in body
            for change in json.loads(body)["changes"]]  # fmt: skip


@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_a_row_for_which_a_receiver_refuses_its_request_is_set_aside_alone(
    receiver: Receiver, source: ModelSource, tmp_path: Path, policy: str
) -> None:
    refuse_poison(receiver)
    source.commit([insert(ITEMS, n, "poison" if n in (33, 70) else "fine") for n in range(100)])
    source.commit([update(ITEMS, 70, name="fine again", body="b"), insert(ITEMS, 100)])
    options = {"url": receiver.url, "secret": SECRET, "allow_private": True, "start": "earliest", "on_error": policy}
    under_test = SinkUnderTest("webhook", options, SinkPlace("test", tmp_path, ("public.*",)), lambda _: {})
    with ScriptedRelay(source) as relay, consumer(relay, under_test, on_error_attempts=2) as running:
        wait_for(lambda: 100 in taken(receiver), 60)
        figure = "changes_skipped" if policy == "skip" else "dead_letters"
        wait_for(lambda: running.status().get(figure) == (2 if policy == "skip" else 3))
        others = [n for n in range(100) if n not in (33, 70)] + ([70] if policy == "skip" else []) + [100]
        assert taken(receiver) == others, "each once, in order"
        if policy == "dead-letter":
            receiver.answer = lambda _: (204, {})
            with closing(DeadLetters(tmp_path / FILE_NAME)) as store:
                store.retry()
                wait_for(lambda: not store.letters())
            names = [change["after"]["name"] for change in receiver.changes() if change["key"]["id"] == 70]
            assert names[-2:] == ["poison", "fine again"]


def test_a_refused_request_is_gone_from_the_outbox_when_the_process_begins_anew(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource
) -> None:
    source.commit([insert(ITEMS, 1, "fine")])
    sink = opened()
    sink.write(windows(source), MARKS)
    sink.commit(following(source))
    done = sink.checkpoint()
    receiver.answer = lambda _: None
    source.commit([insert(ITEMS, 2, "poison"), insert(ITEMS, 3, "fine")])
    sink.write(windows(source, source.history[1][0]), MARKS)
    with pytest.raises(SinkUnavailable):
        sink.commit(following(source))
    refuse_poison(receiver)
    again = opened()
    assert again.checkpoint() == done
    again.write(windows(source, source.history[1][0]), MARKS)
    with pytest.raises(RowRefused, match=rf"answered 422.*{ITEMS} at 1:") as refused:
        again.commit(following(source))
    assert refused.value.row is not None and "poison" not in str(refused.value)


def test_a_receiver_that_names_a_date_is_left_alone_until_then(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource
) -> None:
    receiver.answer = lambda _: (503, {"retry-after": formatdate(time.time() + 600, usegmt=True)})
    source.commit([insert(ITEMS, 1)])
    sink = opened()
    sink.write(windows(source), MARKS)
    with pytest.raises(SinkUnavailable, match="answered 503"):
        sink.commit(following(source))
    sink.rollback()
    with pytest.raises(SinkUnavailable, match=r"left alone for (600|5\d\d) s"):
        sink.checkpoint()


def test_of_several_addresses_those_that_take_no_connection_are_passed_over(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(receiver.url.rpartition(":")[2].partition("/")[0])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.3", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    source.commit([insert(ITEMS, 1)])
    sink = opened(url=f"http://receiver.test:{port}/hook")
    sink.write(windows(source), MARKS)
    sink.commit(following(source))
    assert len(receiver.requests) == 1 and receiver.headers[0]["host"] == f"receiver.test:{port}"


def test_an_address_is_called_as_it_was_looked_at_whatever_its_name_means_by_then(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, resolve = list[str](), socket.getaddrinfo

    def once(host: str, *told: Any, **named: Any) -> Any:
        if host != "receiver.test":
            return resolve(host, *told, **named)
        asked.append(host)
        return resolve("127.0.0.1" if len(asked) == 1 else "127.0.0.3", *told, **named)

    monkeypatch.setattr(socket, "getaddrinfo", once)
    source.commit([insert(ITEMS, 1)])
    sink = opened(url=receiver.url.replace("127.0.0.1", "receiver.test"))
    sink.write(windows(source), MARKS)
    sink.commit(following(source))
    assert len(receiver.requests) == len(asked) == 1


def test_a_name_of_which_one_address_is_private_is_not_called_at_any(
    opened: Callable[..., Sink], source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 9)) for host in ("198.41.0.4", "10.1.2.3")]
    called = list[object]()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", lambda *told, **_: called.append(told))
    source.commit([insert(ITEMS, 1)])
    sink = opened(url="http://receiver.test:9/hook", allow_private=False)
    sink.write(windows(source), MARKS)
    with pytest.raises(SinkRefused, match=r"10\.1\.2\.3 is not a public one"):
        sink.commit(following(source))
    assert called == []


def test_a_proxy_of_the_environment_gets_nothing(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be what is called, and resolve the receiver's name itself."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    source.commit([insert(ITEMS, 1)])
    sink = opened()
    sink.write(windows(source), MARKS)
    sink.commit(following(source))
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "10.1.2.3", "169.254.169.254", "0.0.0.0", "[::1]", "[::ffff:192.168.0.1]",
        "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a00:1]", "[2002:a00:1::1]", "[::a00:1]", "[fec0::1]",
        "224.0.0.1", "[ff0e::1]",
    ],
)  # fmt: skip
def test_no_private_address_is_called_unless_it_is_allowed(
    opened: Callable[..., Sink], source: ModelSource, host: str
) -> None:
    source.commit([insert(ITEMS, 1)])
    sink = opened(url=f"http://user:word@{host}:9/hook?token=x", allow_private=False)
    sink.write(windows(source), MARKS)
    with pytest.raises(SinkRefused, match="not a public one") as raised:
        sink.commit(following(source))
    assert "word" not in str(raised.value)
    assert "token" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "told"), [("http://127.0.0.1:9/", "no answer"), ("http://nowhere.invalid/", "no (answer|address)")]
)
def test_a_receiver_that_is_not_there_is_waited_for(
    opened: Callable[..., Sink], receiver: Receiver, source: ModelSource, url: str, told: str
) -> None:
    source.commit([insert(ITEMS, 1)])
    sink = opened(url=url)
    sink.write(windows(source), MARKS)
    with pytest.raises(SinkUnavailable, match=told):
        sink.commit(following(source))
    moved = opened()
    moved.commit(following(source))
    assert len(receiver.changes()) == 1, "a commit drops no request that is under way"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"secret": "a word"}, "secret"),
        ({"secret": "whsec_c2hvcnQ="}, "secret"),
        ({"url": "ftp://somewhere/"}, "url"),
        ({"changes": 0}, "changes"),
        ({"headers": {"authorization": "Bearer c2hvcnQ\n"}}, "headers"),
        ({"headers": {"x y": "z"}}, "headers"),
        ({"headers": {"Webhook-Id": "z"}}, "headers"),
        ({"headers": {"content-length": "0"}}, "headers"),
        ({"headers": {"x": "\u00e9"}}, "headers"),
        ({"path": "x"}, "path"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(
    opened: Callable[..., Sink], options: dict[str, object], key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"consumer\.hook\.{key}") as raised:
        opened(**options)
    assert "c2hvcnQ" not in str(raised.value)


def test_a_file_that_is_no_outbox_is_told(opened: Callable[..., Sink], tmp_path: Path) -> None:
    (tmp_path / "webhook.outbox").write_bytes(b"\xffnone")
    with pytest.raises(SinkRefused, match="no outbox of a webhook"):
        opened()


CONSUME = """
import threading
from pathlib import Path
from walbus.config import ConsumerConfig
from walbus.consumers import run_consumer
config = ConsumerConfig(
    sink="webhook", tables=("public.*",), url={hook!r}, secret={secret!r}, allow_private=True, changes=3,
    start="earliest",
)
run_consumer("test", config, relay_url={url!r}, folder=Path({folder!r}), status_path=None, stop=threading.Event())
"""


def test_a_consumer_that_is_killed_again_and_again_sends_each_change_once_by_its_id(
    receiver: Receiver, source: ModelSource, tmp_path: Path
) -> None:
    expected = 0
    with ScriptedRelay(source) as relay:
        program = CONSUME.format(hook=receiver.url, secret=SECRET, url=relay.url, folder=str(tmp_path))
        for _ in range(6):
            killed_at = len(receiver.requests) + 3
            process = subprocess.Popen([sys.executable, "-c", program])

            def answer(number: int, at: int = killed_at, running: subprocess.Popen[bytes] = process) -> Any:
                if number >= at:
                    running.kill()
                    running.wait()
                return (500, {}) if number % 5 == 0 else (200, {})

            receiver.answer = answer
            for n in range(expected, expected + 12):
                source.commit([insert(ITEMS, n, "x")])
            expected += 12
            wait_for(lambda: process.poll() is not None, 60, what="it was killed")  # noqa: B023
        receiver.answer = lambda _: (200, {})
        process = subprocess.Popen([sys.executable, "-c", program])
        wait_for(lambda: len(receiver.changes()) >= expected, 60, what="everything was sent")
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
    keys = [change["key"]["id"] for change in receiver.changes() if change["op"] == "insert"]
    assert keys == list(range(expected))
    assert len(receiver.requests) > len(dict(receiver.requests)), "some came again"
