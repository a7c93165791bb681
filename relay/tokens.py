"""Named tokens: who may read what. Text in, verdicts out; no file and no clock of its own.

A token is `wbt_` and 43 signs that stand for 32 random bytes. The file of tokens holds the SHA-256 of each and never
the token, so whoever reads the file cannot use it; a fast hash is enough, since nobody can guess 256 random bits:

    [orders-cache]
    sha256 = "5e88…"
    tables = ["public.orders", "stock.*"]
    consumers = ["orders-*"]
    roles = ["read"]
    expires = 2027-01-31T00:00:00Z

`read` sees the tables that it names, and is any consumer, or those alone that `consumers` names; `metrics` sees the
figures (which name every table and consumer), `admin` may do everything. What is shown is compared with every token of
the file by `hmac.compare_digest`, also after one was found, and also if none is there, so that the time it takes says
nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from walbus.config import checked_patterns
from walbus.errors import ConfigError

PREFIX = "wbt_"
RANDOM_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")

Role = Literal["read", "metrics", "admin"]

_LONGEST = 256  # signs of what a client may show; the hash of more is not taken
_NOBODYS = hashlib.sha256(b"").digest()
_CONSUMERS = re.compile(r"[A-Za-z0-9_.*-]{1,64}\Z")
_PATTERN = re.compile(r"(\*|[^.*?\[\]!]+)\.(\*|[^.*?\[\]!]+)\Z")  # what a client may ask for


def _moment(value: object) -> object:
    """TOML's dates and times; one without a zone is UTC, and a date ends where it begins."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value


def checked_consumers(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns of consumers' names.

    Raises:
        ValueError: one is none.
    """
    for pattern in patterns:
        if not _CONSUMERS.match(pattern):
            raise ValueError(f"{pattern[:64]!r} should be a consumer's name, or the beginning of one as in orders-*")
    return patterns


class _Entry(BaseModel):
    """One section of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    tables: Annotated[tuple[str, ...], AfterValidator(checked_patterns)] = ()
    consumers: Annotated[tuple[str, ...], AfterValidator(checked_consumers)] | None = None
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("read",)
    expires: Annotated[datetime | None, BeforeValidator(_moment)] = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the file has it.

    Attributes:
        name: for audit lines; no secret.
        digest: SHA-256 of the token.
        tables: patterns that `read` sees: `schema.table`, `schema.*` or `*.*`.
        roles: what it may do.
        expires: Unix seconds; None: never.
        consumers: patterns of the names under which it may report; None: any.
    """

    name: str
    digest: bytes
    tables: tuple[str, ...]
    roles: frozenset[Role]
    expires: float | None
    consumers: tuple[str, ...] | None = None

    def expired(self, now: float) -> bool:
        """Whether it counts no more."""
        return self.expires is not None and now >= self.expires


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request may see.

    Attributes:
        name: of the token; empty where no token is asked for.
        tables: patterns.
        roles: what it may do.
        consumers: patterns of the names under which it may report; None: any.
    """

    name: str
    tables: tuple[str, ...]
    roles: frozenset[Role]
    consumers: tuple[str, ...] | None = None

    @property
    def everything(self) -> bool:
        """Whether no table is hidden, nor what the rooms say of each other."""
        return "admin" in self.roles or ("read" in self.roles and "*.*" in self.tables)

    def may(self, role: Role) -> bool:
        """Whether it has a role; an admin has all."""
        return role in self.roles or "admin" in self.roles

    def reports_as(self, consumer: str) -> bool:
        """Whether it may be a consumer of this name."""
        if self.consumers is None or "admin" in self.roles:
            return True
        return any(_consumers_of(pattern).fullmatch(consumer) for pattern in self.consumers)

    def sees(self, table: str) -> bool:
        """Whether all that a pattern (or a table's name) stands for, now and later, lies inside the scope.

        Of a pattern that is not understood, or that has two dots (a schema's name may have one), only the scope of
        everything is sure.
        """
        understood = _PATTERN.match(table)
        return self.everything or (understood is not None and self.sees_table(understood[1], understood[2]))

    def sees_table(self, namespace: str, name: str) -> bool:
        """Whether a table lies inside the scope; its schema's name may have a dot, and both any sign."""
        return self.everything or (
            "read" in self.roles and any(_covers(scope, namespace, name) for scope in self.tables)
        )

    def beyond(self, tables: Iterable[str]) -> list[str]:
        """Those of some patterns that are not wholly inside the scope."""
        return [table for table in tables if not self.sees(table)]


#: Where access is not switched on: all may do all.
EVERYBODY = Grant("", ("*.*",), frozenset(("read", "metrics", "admin")))


def grant_of(token: Token) -> Grant:
    """What a token gives."""
    return Grant(token.name, token.tables, token.roles, token.consumers)


@lru_cache(maxsize=1024)
def _consumers_of(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")))


def _covers(scope: str, namespace: str, name: str) -> bool:
    space, _, table = scope.partition(".")
    return space in ("*", namespace) and table in ("*", name)


def digest_of(token: str) -> bytes:
    """What the file keeps of a token."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def find_token(tokens: Sequence[Token], shown: str) -> Token | None:
    """The token whose digest matches what a client shows; every token is compared, whatever matches."""
    digest = digest_of(shown) if len(shown) <= _LONGEST else _NOBODYS
    found = None
    for token in tokens or (_NONE,):
        if hmac.compare_digest(token.digest, digest):
            found = token
    return None if found is _NONE else found


_NONE = Token("", b"\0" * 32, (), frozenset(), None)


def parse_tokens(text: str, where: str) -> tuple[Token, ...]:
    """Reads a file of tokens.

    Args:
        text: TOML as above; empty: no token, so that nothing is allowed.
        where: the file, for errors.

    Raises:
        ConfigError: it is not TOML, or a token is not as above; names the token and the key. The text is not quoted.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for a number, or a nesting, that Python does not take
        raise ConfigError(f"the file of tokens is not TOML: {_place(error)}", where=where, mend=_MEND) from None
    tokens = tuple(_token(name, section, where) for name, section in document.items())
    twice = {token.digest for token in tokens}
    if len(twice) != len(tokens):
        raise ConfigError("two tokens of the file are the same", where=where, mend="make one with `walbus token new`")
    return tokens


_MEND = "write sections as `walbus token new` prints them"


def _place(error: Exception) -> str:
    """Where it is wrong: the parser's sentence may quote what stands there."""
    found = re.search(r"\(at .*\)$", str(error))
    return found[0] if found else "it does not parse"


def _token(name: str, section: object, where: str) -> Token:
    where = f"{where}, section [{name[:64]}]"
    if not NAME.match(name):
        raise ConfigError("a token's name has other signs", where=where, mend="use letters, digits, _ . and -")
    if not isinstance(section, dict):
        raise ConfigError("a key stands outside of a section", where=where, mend=_MEND)
    try:
        entry = _Entry(**section)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        what = detail["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{key}: {what[0].lower()}{what[1:]}", where=where, mend=_MEND) from None
    if "read" in entry.roles and not entry.tables:
        mend = 'write tables = ["public.orders"], or ["*.*"] for all'
        raise ConfigError("a token that reads names no tables", where=where, mend=mend)
    expires = entry.expires.timestamp() if entry.expires else None
    digest, roles = bytes.fromhex(entry.sha256), frozenset(entry.roles)
    return Token(name, digest, entry.tables, roles, expires, entry.consumers)


def section_of(token: Token) -> str:
    """A token as a section of the file, with a newline at its end."""
    lines = [f"[{_key(token.name)}]", f'sha256 = "{token.digest.hex()}"']
    if token.tables:
        lines.append(f"tables = [{', '.join(map(_string, token.tables))}]")
    if token.consumers is not None:
        lines.append(f"consumers = [{', '.join(map(_string, token.consumers))}]")
    lines.append(f"roles = [{', '.join(_string(role) for role in sorted(token.roles))}]")
    if token.expires is not None:
        lines.append(f"expires = {datetime.fromtimestamp(token.expires, UTC):%Y-%m-%dT%H:%M:%SZ}")
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if "." not in name else _string(name)


def _string(text: str) -> str:
    """A TOML string; what JSON escapes, TOML escapes likewise."""
    escaped = "".join(
        f"\\u{ord(sign):04X}" if ord(sign) < 32 or ord(sign) == 127 else sign
        for sign in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'
