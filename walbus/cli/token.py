"""`walbus token new`: makes a token; who may read what from the relay and the bootstrap server."""

from __future__ import annotations

import os
import re
import secrets
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from walbus.config import checked_patterns
from walbus.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from walbus.relay.tokens import Token

app = typer.Typer(help="Tokens for the relay and the bootstrap server.", no_args_is_help=True, rich_markup_mode=None)

_PERIOD = re.compile(r"(\d{1,4})d\Z")


@app.callback()
def _tokens() -> None:
    """Keeps `new` a command of its own, although there is no other."""


@app.command("new")
def new(  # noqa: PLR0913, PLR0917 - the command's options
    name: Annotated[str, typer.Argument(metavar="NAME", help="Stands in audit lines; is no secret.")],
    tables: Annotated[
        list[str] | None, typer.Option(metavar="T", help="schema.table, schema.* or *.*; may be repeated.")
    ] = None,
    roles: Annotated[
        list[str] | None, typer.Option("--role", metavar="R", help="read (default), metrics, admin; may be repeated.")
    ] = None,
    consumers: Annotated[
        list[str] | None,
        typer.Option(metavar="C", help="Names of consumers that it may report as, as in orders-*; default: any."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="A date, a time, or days from now as in 90d; default: never.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append it to this tokens_file; else its section is printed.")
    ] = None,
) -> None:
    """Make a token. It is printed once, alone on stdout, and kept nowhere."""
    from walbus.relay.tokens import PREFIX, RANDOM_BYTES, section_of  # noqa: PLC0415 - a command loads what it needs

    secret = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    section = section_of(_token(name, secret, tables or [], roles or ["read"], consumers, expires))
    if file is None:
        typer.echo(f"{section}\nAppend these lines to the tokens_file. The token, which is shown only now:", err=True)
    else:
        append(file, name, section)
        typer.echo(f"appended [{name}] to {file}. The token, which is shown only now:", err=True)
    sys.stderr.flush()
    typer.echo(secret)


def _token(  # noqa: PLR0913, PLR0917 - those of `new`
    name: str, secret: str, tables: list[str], roles: list[str], consumers: list[str] | None, expires: str | None
) -> Token:
    """The token as the file has it.

    Raises:
        UsageError: an argument is wrong.
    """
    from walbus.relay.tokens import NAME, Role, Token, digest_of  # noqa: PLC0415

    if not NAME.match(name):
        raise UsageError(f"{name!r} is no name of a token", where="NAME", mend="use letters, digits, _ . and -")
    unknown = [role for role in roles if role not in get_args(Role)]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no role", where="--role", mend=f"use {', '.join(get_args(Role))}")
    listed = _listed(tables)
    if listed:
        try:
            checked_patterns(listed)
        except ValueError as error:
            raise UsageError(str(error), where="--tables", mend="write it as in public.orders") from None
    elif "read" in roles:
        raise UsageError("a token that reads names its tables", where="--tables", mend="*.* stands for all")
    given = frozenset(r for r in get_args(Role) if r in roles)
    return Token(name, digest_of(secret), listed, given, _end(expires), _consumers(consumers))


def _consumers(given: list[str] | None) -> tuple[str, ...] | None:
    """The patterns of `--consumers`."""
    from walbus.relay.tokens import checked_consumers  # noqa: PLC0415

    if given is None:
        return None
    try:
        return checked_consumers(_listed(given))
    except ValueError as error:
        raise UsageError(str(error), where="--consumers", mend="write it as in orders-cache or orders-*") from None


def _listed(given: list[str]) -> tuple[str, ...]:
    return tuple(part.strip() for text in given for part in text.split(",") if part.strip())


def _end(text: str | None) -> float | None:
    """Unix seconds of what `--expires` says."""
    if text is None:
        return None
    now = datetime.now(UTC)
    days = _PERIOD.match(text)
    try:
        moment = now + timedelta(days=int(days[1])) if days else datetime.fromisoformat(text)
    except ValueError:
        mend = "write it as in 2027-01-31, 2027-01-31T12:00:00Z or 90d"
        raise UsageError(f"{text!r} is no time", where="--expires", mend=mend) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= now:
        raise UsageError(f"{text} is over", where="--expires", mend="name a time to come")
    return moment.timestamp()


def append(file: Path, name: str, section: str) -> None:
    """Appends a section to a file of tokens, which is made if it is missing; the whole file is replaced at once.

    Two at a time do not lose one another's: the second finds the first one's new file, and says so.

    Raises:
        ConfigError: the file is broken, cannot be written, or has a token of that name.
    """
    from walbus.relay.tokens import parse_tokens  # noqa: PLC0415

    try:
        text = file.read_text() if file.exists() else ""
        if name in {token.name for token in parse_tokens(text, str(file))}:
            mend = "take its section out, or choose another name"
            raise ConfigError(f"there is a token {name} already", where=str(file), mend=mend)
        written = f"{text.rstrip()}\n\n{section}" if text.strip() else section
        parse_tokens(written, str(file))
        _replace(file, written)
    except OSError as error:
        raise ConfigError(f"cannot write the tokens: {error.strerror}", where=str(file)) from None


def _replace(file: Path, text: str) -> None:
    before = file.stat() if file.exists() else None
    beside = file.with_name(f"{file.name}.new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w") as stream:
        if before is not None:  # root appends, and Walbus's user still reads it
            os.fchmod(stream.fileno(), before.st_mode & 0o777)
            os.fchown(stream.fileno(), before.st_uid, before.st_gid)
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)
