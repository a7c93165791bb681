"""The commands by name. A process loads the module of the command that it is; only the help loads all of them."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

#: In the order of the help. A module has a `command`, or an `app` of several.
_MODULES = {
    "demo": "demo",
    "run": "run",
    "capture": "capture",
    "relay": "relay",
    "bootstrap": "bootstrap",
    "consume": "consume",
    "doctor": "doctor",
    "promote": "promote",
    "snapshot": "snapshot",
    "tail": "tail",
    "status": "status",
    "ready": "ready",
    "verify": "verify",
    "rebuild": "rebuild",
    "consumers": "consumers",
    "dead-letters": "dead_letters",
    "log": "log",
    "token": "token",
}


class Commands(TyperGroup):
    """The group of all commands, which are loaded when they are looked at."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401  (Typer's)
        super().__init__(**attributes)
        self.commands = _Loading()


class _Loading(MutableMapping[str, Any]):
    """Typer's commands by name."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  (a class that Typer does not name)
        if name not in self._loaded:
            self._loaded[name] = _load(name, _MODULES[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: object) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name} stays")

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


def _load(name: str, module: str) -> object:
    loaded = import_module(f"walbus.cli.{module}")
    outer = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    if hasattr(loaded, "app"):
        outer.add_typer(loaded.app, name=name)
    else:
        outer.command(name)(loaded.command)
    return get_group(outer).commands[name]
