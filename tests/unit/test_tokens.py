"""Tokens without a server: the file's form, scopes, and that comparing takes the same way whatever is shown."""

from __future__ import annotations

import hmac
import io
from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.descriptors import no_descriptors
from support.guarded_relay import listened, new_token, token_section
from walbus.config import LogConfig
from walbus.diagnostics import Redactor, configure_logging
from walbus.errors import ConfigError
from walbus.relay.token_file import TokenFile
from walbus.relay.tokens import EVERYBODY, Grant, Token, digest_of, find_token, parse_tokens, section_of

READ = frozenset(("read",))


def grant(*tables: str) -> Grant:
    return Grant("t", tables, READ)


@pytest.mark.parametrize(
    ("scope", "asked", "seen"),
    [
        ("public.orders", "public.orders", True),
        ("public.orders", "public.order", False),
        ("public.orders", "public.orders2", False),
        ("public.orders", "public.*", False),
        ("public.orders", "*.orders", False),
        ("public.orders", "*.*", False),
        ("public.orders", "PUBLIC.orders", False),
        ("public.orders", "orders", False),
        ("public.orders", "", False),
        ("public.*", "public.orders", True),
        ("public.*", "public.*", True),
        ("public.*", "publicx.orders", False),
        ("public.*", "*.*", False),
        ("public.*", "public.ord*", False),
        ("public.*", "public.evil.orders", False),
        ("*.*", "*.*", True),
        ("*.*", "anything.at.all", True),
    ],
)
def test_a_pattern_is_seen_only_if_all_that_it_stands_for_lies_inside_the_scope(scope, asked, seen):
    assert grant(scope).sees(asked) is seen


def test_a_table_with_a_sign_that_a_pattern_could_have_is_not_asked_for_by_it():
    for table in ("public.order?", "public.a[b]"):
        assert not grant(table).sees(table)
        assert grant(table).sees_table(*table.split("."))


def test_a_schema_whose_name_has_a_dot_is_not_taken_for_another():
    assert not grant("public.*").sees_table("public.evil", "t")
    assert grant("public.*").sees_table("public", "evil.t")


def test_what_is_beyond_a_scope_is_named():
    assert grant("public.orders", "stock.*").beyond(["public.orders", "stock.x", "public.items"]) == ["public.items"]


def test_metrics_see_no_table_and_admins_all():
    assert not Grant("m", ("*.*",), frozenset(("metrics",))).sees("public.orders")
    admin = Grant("a", (), frozenset(("admin",)))
    assert admin.sees("*.*") and admin.may("metrics") and admin.everything
    assert EVERYBODY.everything


def test_every_token_is_compared_whatever_is_shown(monkeypatch):
    shown = [new_token() for _ in range(5)]
    tokens = tuple(Token(f"t{i}", digest_of(secret), (), READ, None) for i, secret in enumerate(shown))
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(len(b)) or real(a, b))
    for secret, expected in [(shown[0], "t0"), (shown[4], "t4"), (new_token(), None), ("", None), ("x" * 10_000, None)]:
        compared.clear()
        found = find_token(tokens, secret)
        assert (found.name if found else None) == expected
        assert compared == [32] * 5
    compared.clear()
    assert find_token((), shown[0]) is None
    assert compared == [32]


def test_a_section_reads_back_as_the_token_that_it_was_made_of():
    end = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC).timestamp()
    made = [
        Token("a-b.c", digest_of("x"), ('public."odd\\\n', "s.*"), READ, end),
        Token("d", digest_of("y"), (), frozenset(("metrics", "admin")), None),
    ]
    assert list(parse_tokens("\n".join(map(section_of, made)), "f")) == made


def test_dates_and_times_without_a_zone_are_utc():
    head = f'sha256 = "{"0" * 64}"\ntables = ["*.*"]\nexpires = '
    for written in ("2031-01-02", "2031-01-02T00:00:00", "2031-01-02T00:00:00Z", "2031-01-02T02:00:00+02:00"):
        (token,) = parse_tokens(f"[a]\n{head}{written}\n", "f")
        assert token.expires == datetime(2031, 1, 2, tzinfo=UTC).timestamp()
        assert token.expired(token.expires)
        assert not token.expired(token.expires - 1)


DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[a\n", "not TOML"),
        (f"[a]\nx = {'1' * 5000}\n", "not TOML"),
        ("[a]\nx = " + "[" * 10_000, "not TOML"),
        ("x = 1\n", "outside of a section"),
        ('[a]\ntables = ["public.a"]\n', "sha256"),
        (f'[a]\nsha256 = "{DIGEST.upper()}"\ntables = ["public.a"]\n', "sha256"),
        (f'[a]\nsha256 = "{DIGEST}"\n', "names no tables"),
        (f'[a]\nsha256 = "{DIGEST}"\ntables = ["orders"]\n', "schema.table"),
        (f'[a]\nsha256 = "{DIGEST}"\ntables = ["*.a"]\n', "name its schema"),
        (f'[a]\nsha256 = "{DIGEST}"\ntables = ["public.a"]\nrole = "read"\n', "role"),
        (f'[a]\nsha256 = "{DIGEST}"\ntables = ["public.a"]\nroles = ["root"]\n', "roles"),
        (f'[a]\nsha256 = "{DIGEST}"\ntables = ["public.a"]\nexpires = "soon"\n', "expires"),
        (f'["a b"]\nsha256 = "{DIGEST}"\ntables = ["public.a"]\n', "name"),
        (f'[a]\nsha256 = "{DIGEST}"\ntables = ["p.a"]\n[b]\nsha256 = "{DIGEST}"\ntables = ["p.a"]\n', "the same"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_never_quoted(text, named):
    secret = new_token()
    with pytest.raises(ConfigError, match=named) as failure:
        parse_tokens(text, "the-file")
    assert "the-file" in str(failure.value)
    with pytest.raises(ConfigError) as failure:
        parse_tokens(f'[a]\nsha256 = "{secret}"\n{secret} = 1\n{secret}', "the-file")
    assert secret not in str(failure.value)


def test_an_empty_file_lets_nobody_in():
    assert parse_tokens("", "f") == ()
    assert find_token((), new_token()) is None


class Held:
    """A file of tokens that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.toml"
        self.secret = new_token()
        self.path.write_text(token_section("first", self.secret, ["public.a"]))
        self.file = TokenFile(self.path, "relay.tokens_file")


def test_a_file_is_read_again_when_it_changes_by_content_or_by_inode(tmp_path):
    held = Held(tmp_path)
    assert not held.file.refresh()
    second = new_token()
    with held.path.open("a") as stream:
        stream.write(token_section("second", second, ["public.b"]))
    assert held.file.refresh()
    assert held.file.find(second).name == "second"
    beside = tmp_path / "beside"
    beside.write_text(token_section("third", second, ["public.b"]))
    beside.replace(held.path)
    assert held.file.refresh()
    assert held.file.find(second).name == "third"
    assert held.file.find(held.secret) is None


def test_a_broken_or_missing_file_keeps_the_tokens_and_says_so_once_a_change(tmp_path):
    held = Held(tmp_path)
    with listened() as events:
        held.path.write_text("[broken")
        for _ in range(3):
            assert not held.file.refresh()
        assert [event["event"] for event in events] == ["tokens_kept"]
        held.path.unlink()
        for _ in range(3):
            assert not held.file.refresh()
        assert [event["event"] for event in events] == ["tokens_kept"] * 2
        assert held.file.find(held.secret).name == "first"
        held.path.write_text(token_section("first", held.secret, ["public.a"]))
        held.file.refresh()
        assert events[-1]["event"] == "tokens_read"


def test_a_token_that_was_taken_out_while_no_descriptor_was_left_is_gone_once_there_is_one(tmp_path):
    held = Held(tmp_path)
    beside = tmp_path / "beside"
    beside.write_text(token_section("second", new_token(), ["public.a"]))
    beside.replace(held.path)
    with listened() as events:
        with no_descriptors():
            for _ in range(3):
                assert not held.file.refresh()
        assert [event["event"] for event in events] == ["tokens_kept"]
        assert held.file.find(held.secret).name == "first"
        assert held.file.refresh()
    assert held.file.find(held.secret) is None


@pytest.mark.parametrize("content", [None, b"[broken", b"\xff\xfe", b"#" * (5 << 20)])
def test_at_the_start_a_broken_file_is_an_error(tmp_path, content):
    path = tmp_path / "tokens.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"relay\.tokens_file"):
        TokenFile(path, "relay.tokens_file")


def test_whatever_looks_like_a_token_is_starred_in_every_line():
    secret = new_token()
    assert secret not in Redactor().text(f"bad header: b'Authorization: Bearer {secret}'")
    with listened():  # which puts the logging of other tests back
        said = io.StringIO()
        configure_logging(LogConfig(format="json"), room="test", stream=said)
        import structlog

        structlog.get_logger("walbus.test").warning("odd", header=f"Bearer {secret}", authorization=secret)
        assert "odd" in said.getvalue()
        assert secret not in said.getvalue()


def consumers_of(*patterns: str) -> Grant:
    return Grant("t", ("*.*",), READ, patterns)


@pytest.mark.parametrize(
    ("patterns", "name", "may"),
    [
        (("orders-cache",), "orders-cache", True),
        (("orders-cache",), "orders-cache2", False),
        (("orders-*",), "orders-", True),
        (("orders-*",), "orders-cache", True),
        (("orders-*",), "borders-cache", False),
        (("*",), "anything", True),
        (("*-cache", "search"), "orders-cache", True),
        (("*-cache", "search"), "search", True),
        (("*-cache", "search"), "search-2", False),
        (("a.b",), "a.b", True),
        (("a.b",), "axb", False),
        ((), "anything", False),
    ],
)
def test_a_token_is_the_consumers_that_its_patterns_name_and_no_other(patterns, name, may):
    assert consumers_of(*patterns).reports_as(name) is may


def test_without_consumers_a_token_is_any_of_them_and_an_admin_is_whatever_it_names():
    assert grant("public.orders").reports_as("anything")
    assert EVERYBODY.reports_as("anything")
    assert Grant("t", (), frozenset(("admin",)), ("orders-*",)).reports_as("anything")


def test_the_consumers_of_a_token_stand_in_the_file_and_are_read_from_it():
    token = Token("t", digest_of("x"), ("*.*",), READ, None, ("orders-*", "search"))
    assert 'consumers = ["orders-*", "search"]\n' in section_of(token)
    assert parse_tokens(section_of(token), "f") == (token,)
    nobody = Token("t", digest_of("x"), ("*.*",), READ, None, ())
    assert parse_tokens(section_of(nobody), "f") == (nobody,)


@pytest.mark.parametrize("pattern", ["", "orders cache", "orders/*", "x" * 65, "ä"])
def test_a_pattern_that_no_consumer_could_have_is_refused_with_its_section(pattern):
    text = f'[t]\nsha256 = "{"0" * 64}"\ntables = ["*.*"]\nconsumers = ["{pattern}"]\n'
    with pytest.raises(ConfigError, match=r"consumers: .*should be a consumer's name.*section \[t\]"):
        parse_tokens(text, "f")
