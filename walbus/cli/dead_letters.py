"""`walbus dead-letters`: lists, retries and drops the changes that a consumer parked."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from walbus.cli.options import ConfigFile, load
from walbus.errors import UsageError

if TYPE_CHECKING:
    from walbus.consumers import DeadLetter, DeadLetters

app = typer.Typer(
    help="Changes that a consumer refused, and parked: see them, have them tried again, give them up.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the consumer.")]
Folder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where consumers' folders are, as in connect(folder=); default: as configured."),
]
Letters = Annotated[list[int] | None, typer.Argument(metavar="[LETTER]...", help="Their numbers.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.command("list")
def list_(  # noqa: PLR0913, PLR0917 - the command's options
    context: typer.Context,
    name: Name,
    values: Annotated[bool, typer.Option("--values", help="Show keys, rows and messages too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document a line.")] = False,
    folder: Folder = None,
    config: ConfigFile = None,
) -> None:
    """List the letters, oldest first. Without --values nothing of a row is printed."""
    render = _json_line if as_json else _text_line
    with closing(_opened(context, name, folder, config)) as store:
        behind = 0
        while letters := store.letters(behind):
            for letter in letters:
                typer.echo(render(letter, values=values))
            behind = letters[-1].id


def _add(act: str, about: str, done: str) -> None:
    """A command that does something with letters that are named, or with all."""

    def command(  # noqa: PLR0913, PLR0917 - the command's options
        context: typer.Context,
        name: Name,
        letters: Letters = None,
        everything: All = False,
        folder: Folder = None,
        config: ConfigFile = None,
    ) -> None:
        chosen = _chosen(letters, everything=everything)
        with closing(_opened(context, name, folder, config)) as store:
            count = getattr(store, act)(chosen)
        typer.echo(f"{count} {done}")

    app.command(act, help=about)(command)


_AGAIN = "Have letters tried again by the consumer, when it runs; those before them of the same keys come first."
_add("retry", _AGAIN, "to be tried again")
_add("drop", "Give letters up for good.", "dropped")


def _chosen(letters: list[int] | None, *, everything: bool) -> list[int] | None:
    if everything == bool(letters):
        raise UsageError("which letters", mend="give their numbers, or --all")
    return letters or None


def _opened(context: typer.Context, name: str, folder: Path | None, config: Path | None) -> DeadLetters:
    from walbus.consumer_reports import checked_name  # noqa: PLC0415 - a command loads what it needs
    from walbus.consumers.dead_letters import DeadLetters  # noqa: PLC0415
    from walbus.consumers.letter_file import FILE_NAME  # noqa: PLC0415

    checked_name(name)
    own = load(context, config).consumer_dir(name) if folder is None else folder / name
    if not own.is_dir():
        mend = "name one that has run on this machine, or its folder with --folder"
        raise UsageError(f"there is no consumer {name!r} here", where=str(own), mend=mend)
    return DeadLetters(own / FILE_NAME)


def _text_line(letter: DeadLetter, *, values: bool) -> str:
    parked = datetime.fromtimestamp(letter.parked_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    change = letter.change
    parts = [
        f"{letter.id:>6}", parked, change.op.name.lower(), change.table or "-", str(change.position),
        f"seq {change.seq}", letter.error, f"{letter.attempts} attempts",
        *(["to be tried again"] if letter.asked else []),
    ]  # fmt: skip
    if values:
        shown = {"key": change.key, "after": change.after, "message": letter.message}
        parts += [json.dumps(shown, default=str, ensure_ascii=False)]
    return "  ".join(parts)


def _json_line(letter: DeadLetter, *, values: bool) -> str:
    change = letter.change
    document: dict[str, Any] = {
        "letter": letter.id, "parked_at": letter.parked_at, "op": change.op.name.lower(), "table": change.table,
        "position": str(change.position), "seq": change.seq, "log_id": letter.log_id, "error": letter.error,
        "attempts": letter.attempts, "asked": letter.asked,
    }  # fmt: skip
    if values:
        document |= {"key": change.key, "after": change.after, "before": change.before, "message": letter.message}
    return json.dumps(document, default=str, ensure_ascii=False)
