"""Log lines: their forms, and the secrets that are not in them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from walbus.config import LogConfig
from walbus.diagnostics import Redactor, configure_logging, passwords_in

CANARY = "hunter22-canary"


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def logged(form: Literal["human", "logfmt", "json"]) -> str:
    """Everything that a room could do wrong with a secret."""
    stream = io.StringIO()
    configure_logging(LogConfig(format=form), room="capture", secrets=[CANARY], stream=stream)
    log = structlog.get_logger("walbus.capture.test")
    log.info("connected", dsn=CANARY, lsn="0/1", options={"token": CANARY})
    log.warning("refused", error=ValueError(f"server said {CANARY}"))
    logging.getLogger("library").warning("trying %s", f"redis://:{CANARY}@cache")
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        log.exception("bug")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["human", "logfmt", "json"])
def test_no_secret_reaches_a_log_line(form: Literal["human", "logfmt", "json"]) -> None:
    text = logged(form)
    assert CANARY not in text
    assert text.count("connected") == 1
    assert "trying" in text
    assert "RuntimeError" in text


def test_json_lines_are_one_object_each_and_name_the_room() -> None:
    lines = [json.loads(line) for line in logged("json").splitlines()]
    assert [line["room"] for line in lines] == ["capture"] * 4
    assert lines[0]["event"] == "connected"
    assert lines[0]["lsn"] == "0/1"


def test_logfmt_keeps_a_traceback_on_one_line() -> None:
    assert len(logged("logfmt").splitlines()) == 4


def test_debug_events_need_the_debug_level() -> None:
    stream = io.StringIO()
    configure_logging(LogConfig(format="logfmt"), room="capture", stream=stream)
    structlog.get_logger("walbus.capture.test").debug("detail")
    assert stream.getvalue() == ""


def test_the_format_follows_the_stream_when_it_is_not_chosen() -> None:
    stream = io.StringIO()
    configure_logging(LogConfig(), room="relay", stream=stream)
    structlog.get_logger("walbus.relay.test").info("listening")
    assert "room=relay event=listening" in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://app:hunter22@db/shop",
        "host=db password=hunter22 user=app",
        "host=db password = 'hunter22'",
        "redis://:hunter22@cache:6379/0",
    ],
)
def test_passwords_are_found_and_starred(text: str) -> None:
    assert passwords_in(text) == ["hunter22"]
    assert "hunter22" not in Redactor().text(text)
    assert Redactor().text(text).startswith(text[:5])


def test_a_password_that_is_encoded_in_a_url_is_known_decoded_too() -> None:
    assert passwords_in("postgresql://app:p%40ss@db/shop") == ["p%40ss", "p@ss"]


def test_what_is_no_secret_stays() -> None:
    text = "position 1:16/B374D848:4 of public.orders (at host db:5432)"
    assert Redactor(["abc"]).text(text) == text
