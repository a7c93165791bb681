"""What is wrong with a configuration, told key by key.

pydantic says what it did not like and where in the model; an operator wants the name in the file or the name of the
variable, the value, and what to write instead. Values of secrets are never told.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from walbus.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_PREFIX = "WALBUS_"
_STEP = "__"
_SECRET_KEYS = frozenset(
    {"dsn", "password", "token", "relay_token", "secret", "old_secret", "api_key", "headers", "url", "options"}
)

#: What to write instead, by the beginning of pydantic's kind of error.
_MENDS = {
    "bool": "write true or false",
    "int": "write a whole number",
    "float": "write a number",
    "greater_than": "write a larger number",
    "less_than": "write a smaller number",
    "literal": "write one of those",
    "string_pattern": "use only a-z, 0-9 and underscores",
    "string": "write it in quotes",
    "tuple": 'write a list, as in ["public.orders"]',
    "path": "write a path in quotes",
    "model": "make it a section in brackets",
    "dict": "make it a section in brackets",
}


class InvalidConfig(ConfigError):
    """One or more keys are unknown, missing or wrong. Speaks for the first; `problems` has each.

    Attributes:
        problems: one error a key, none of them an InvalidConfig.
    """

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        first = problems[0]
        super().__init__(first.what, where=first.where, mend=first.mend)
        self.problems = tuple(problems)


def problems_of(
    error: ValidationError, model: type[BaseModel], path: Path | None, environ: Mapping[str, str]
) -> list[ConfigError]:
    """One error for each key that pydantic refused."""
    details = error.errors(include_url=False)
    return [_problem(detail, model, path, environ) for detail in details]


def option_problems(error: ValidationError, model: type[BaseModel], section: str) -> list[ConfigError]:
    """One error for each of a sink's own keys that pydantic refused, in a section such as `consumer.cache`."""
    return [_option_problem(detail, model, section) for detail in error.errors(include_url=False)]


def _option_problem(detail: ErrorDetails, model: type[BaseModel], section: str) -> ConfigError:
    keys = [str(part) for part in detail["loc"] if part != "[key]"]
    where = f"key {'.'.join((section, *keys))}"
    if detail["type"] == "extra_forbidden":
        mend = _did_you_mean(keys[-1], _siblings(model, keys), str)
        return ConfigError("the sink has no such key", where=where, mend=mend)
    if detail["type"] == "missing":
        return ConfigError("missing key", where=where, mend=_mend_missing([section, *keys]))
    return ConfigError(_what(detail, [section, *keys]), where=where, mend=_mend(detail["type"]))


def stray_variables(environ: Mapping[str, str], model: type[BaseModel]) -> list[ConfigError]:
    """One error for each `WALBUS_X__Y` whose X is no section; unknown keys of known sections are pydantic's to find."""
    sections = list(model.model_fields)
    return [
        ConfigError(
            "unknown section in the name of a variable",
            where=f"environment variable {variable}",
            mend=_did_you_mean(section, sections, lambda name: f"{_PREFIX}{name.upper()}{_STEP}…"),
        )
        for variable, section in _sections_named(environ)
        if section not in sections
    ]


def _sections_named(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for variable in environ:
        if variable.startswith(_PREFIX) and _STEP in variable:
            yield variable, variable.removeprefix(_PREFIX).split(_STEP)[0].lower()


def _problem(
    detail: ErrorDetails, model: type[BaseModel], path: Path | None, environ: Mapping[str, str]
) -> ConfigError:
    keys = [str(part) for part in detail["loc"] if part != "[key]"]
    where = _where(keys, path, environ)
    if detail["type"] == "extra_forbidden":
        return ConfigError("unknown key", where=where, mend=_did_you_mean(keys[-1], _siblings(model, keys), str))
    if detail["type"] == "missing":
        return ConfigError("missing key", where=where, mend=_mend_missing(keys))
    if detail["loc"][-1:] == ("[key]",):
        mend = "use a-z, 0-9, - and _ in a name, at most 63 of them"
        return ConfigError(f"{keys[-1]!r} cannot be the name of a consumer", where=where, mend=mend)
    return ConfigError(_what(detail, keys), where=where, mend=_mend(detail["type"]))


def _where(keys: list[str], path: Path | None, environ: Mapping[str, str]) -> str:
    if not keys:  # what sections have to do with each other; the message names the keys
        return "the environment" if path is None else str(path)
    variable = _PREFIX + _STEP.join(keys).upper()
    if path is None or variable in environ:
        return f"environment variable {variable}"
    return f"{path}, key {'.'.join(keys)}"


def _what(detail: ErrorDetails, keys: list[str]) -> str:
    message = "should be a path" if detail["type"] == "path_type" else detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = detail["input"]
    shown = isinstance(given, (str, int, float, bool)) and not (len(keys) == 1 or _SECRET_KEYS & set(keys))
    return f"{given!r} will not do: {message}" if shown else message


def _mend(kind: str) -> str | None:
    return next((mend for start, mend in _MENDS.items() if kind.startswith(start)), None)


def _mend_missing(keys: list[str]) -> str:
    if keys in (["source"], ["source", "dsn"]):
        return 'write dsn = "postgresql://…" under [source], or set WALBUS_SOURCE__DSN'
    return f"write it under [{'.'.join(keys[:-1])}]" if keys[1:] else f"write the section [{keys[0]}]"


def _siblings(model: type[BaseModel], keys: list[str]) -> list[str]:
    """The keys that exist beside an unknown one."""
    for key in keys[:-1]:
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _did_you_mean(name: str, known: Sequence[str], shown: Callable[[str], str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {shown(close[0])}?"
    return f"known here: {', '.join(known)}" if known else "take it out"
