"""`walbus consumers`: which there are and how far behind; pauses, resets and forgets them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from walbus.cli.failures import reporter_of
from walbus.cli.options import ConfigFile, load
from walbus.config import Settings
from walbus.errors import LogUnreachable, RequestRefused, UsageError, WalbusError
from walbus.kafka_address import KafkaAddress

if TYPE_CHECKING:
    from walbus.config import ConsumerConfig
    from walbus.consumers.pausing import Pause
    from walbus.consumers.transport import HttpPeer

app = typer.Typer(
    help="The consumers of the log: see how far each one is, pause one, set one back, forget one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_WIDTH_ELSEWHERE = 160  # columns where there is no terminal to measure
_NOT_FOUND = 404

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the consumer.")]
Known = dict[str, Any]


@app.command("list")
def list_(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config: ConfigFile = None,
) -> None:
    """List the consumers that the relay knows or the configuration has, with their lag."""
    settings = load(context, config)
    with _relay(settings) as relay:
        told = relay.json("GET", "/v1/consumers")
    known = {one["name"]: one for one in told["consumers"]}
    configured = _configured(settings)
    consumers = [
        {**one, "configured": name in configured, "paused": configured.get(name, {}).get("paused", False)}
        for name, one in known.items()
    ]
    consumers += [one for name, one in configured.items() if name not in known]
    told["consumers"] = sorted(consumers, key=lambda one: str(one["name"]))
    if as_json:
        typer.echo(reporter_of(context).redactor.text(json.dumps(told, indent=2)))
        return
    _print_table(told["consumers"])
    if told.get("problem"):
        typer.echo(f"They cannot be kept: {told['problem']}")


@app.command("show")
def show(
    context: typer.Context,
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config: ConfigFile = None,
) -> None:
    """Show all that the relay knows of one consumer."""
    settings = load(context, config)
    configured = settings.consumer.get(name)
    if configured is not None and configured.parts is not None:
        _show_group(context, settings, name, as_json=as_json)
        return
    with _relay(settings) as relay:
        document = relay.json("GET", _path(name))
    if as_json:
        typer.echo(reporter_of(context).redactor.text(json.dumps(document, indent=2)))
        return
    lag = document.pop("lag") or {}
    rows = document | {f"lag.{key}": value for key, value in lag.items()}
    for key in ("first_seen", "last_seen", "reported_at"):
        rows[key] = None if rows[key] is None else f"{_ago(rows[key])} ago"
    width = max(map(len, rows))
    for key, value in rows.items():
        text = ", ".join(value) if isinstance(value, list) else "-" if value is None else str(value)
        typer.echo(f"{key:{width}}  {text}".rstrip())


def _show_group(context: typer.Context, settings: Settings, name: str, *, as_json: bool) -> None:
    """The parts of a group: who has each, and where it is."""
    from walbus.consumers.partitions import part_name  # noqa: PLC0415 - a command loads what it needs

    with _relay(settings) as relay:
        group = relay.json("GET", f"/v1/groups/{name}")
        known = {one["name"]: one for one in relay.json("GET", "/v1/consumers")["consumers"]}
    parts = [
        {**part, "name": called, "consumer": known.get(called)}
        for part in group["parts"]
        if (called := part_name(name, f"{part['part']}/{len(group['parts'])}"))
    ]
    if as_json:
        text = json.dumps({"name": name, "members": group["members"], "parts": parts}, indent=2)
        typer.echo(reporter_of(context).redactor.text(text))
        return
    for member in group["members"]:
        typer.echo(f"{member['name']} has {', '.join(map(str, member['parts'])) or 'nothing'}")
    for part in parts:
        one = part["consumer"] or {}
        where = f"{one.get('phase') or 'unknown'} at {one.get('last_done') or '-'}"
        typer.echo(f"{part['name']}  {part['member'] or 'nobody'}  token {part['token']}  {where}")


@app.command("forget")
def forget(context: typer.Context, name: Name, config: ConfigFile = None) -> None:
    """Have the relay forget a name; a consumer that goes on is known anew. Its checkpoint and rows stay."""
    settings = load(context, config)
    with _relay(settings) as relay:
        relay.json("DELETE", _path(name))
    typer.echo(f"{name} is forgotten")


@app.command("reset")
def reset(
    context: typer.Context,
    name: Name,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="PLACE",
            help="A sink's consumer: snapshot, to read all rows again. One of the client library: earliest, latest, a "
            "position, a time, seq:N, or start, as if it had never run.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where consumers' folders are, as in connect(folder=); default: as configured."
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Set a consumer that does not run to another place."""
    from walbus.consumer_reports import checked_name  # noqa: PLC0415 - a command loads what it needs
    from walbus.consumers.resetting import read_again, set_to  # noqa: PLC0415
    from walbus.credentials import credentials_of  # noqa: PLC0415

    settings = load(context, config)
    checked_name(name)
    sink = settings.consumer.get(name) if folder is None else None
    if (sink is None) == (to == "snapshot"):
        raise _wrong_place(name, is_sink=sink is not None)
    require_stopped(settings, name)
    if sink is not None:
        behind = read_again(name, sink, settings.consumer_dir(name))
        typer.echo(f"{name} reads all rows again when it runs, and goes on behind {behind}")
        return
    own = settings.consumer_dir(name) if folder is None else folder / name
    place = set_to(name, to, own, [settings.relay_url], credentials_of(settings.client))
    typer.echo(f"{name} goes on behind {place}" if place is not None else f"{name} begins as at its first start")


@app.command("pause")
def pause(context: typer.Context, name: Name, config: ConfigFile = None) -> None:
    """Have a sink's consumer rest between two transactions, over restarts too, until it is resumed."""
    _pause_of(load(context, config), name).ask()
    typer.echo(f"{name} rests until `walbus consumers resume {name}`")


@app.command("resume")
def resume(context: typer.Context, name: Name, config: ConfigFile = None) -> None:
    """Have a paused consumer go on where it was."""
    typer.echo(f"{name} goes on" if _pause_of(load(context, config), name).end() else f"{name} was not paused")


def _pause_of(settings: Settings, name: str) -> Pause:
    """The pause of a configured consumer, by its section's name or that of its part."""
    from walbus.cli.consume import unknown_consumer  # noqa: PLC0415 - a command loads what it needs
    from walbus.consumers.clock import Clock  # noqa: PLC0415
    from walbus.consumers.partitions import part_name  # noqa: PLC0415
    from walbus.consumers.pausing import Pause  # noqa: PLC0415

    called = {part_name(section, one.partition): section for section, one in settings.consumer.items()}
    section = called.get(name, name)
    if section not in settings.consumer:
        raise unknown_consumer(name, list(settings.consumer))
    return Pause(settings.consumer_dir(part_name(section, settings.consumer[section].partition)), Clock())


def _wrong_place(name: str, *, is_sink: bool) -> UsageError:
    if is_sink:
        what = "a sink holds rows: at another place of the log it would lack some, or pass over what it has"
        return UsageError(what, where="--to", mend="write --to snapshot: all rows are read again, and ghosts deleted")
    mend = f"name one of the configuration; if {name} is of the client library, write earliest, latest or a position"
    return UsageError("only a configured sink reads its rows again", where="--to", mend=mend)


def require_stopped(settings: Settings, name: str) -> None:
    """Raises UsageError: the consumer runs, by its status file here or by a stream of its own at the relay."""
    from walbus.cli.status_report import from_file  # noqa: PLC0415
    from walbus.consumers.partitions import names_of  # noqa: PLC0415

    told = from_file(settings.status_dir / f"consumer-{name}.json")
    here = told["state"] == "up" and told["status"].get("waiting_for") != "stopped"
    configured = settings.consumer.get(name)
    called = name if configured is None else names_of(name, configured)[0]
    mend = "stop it first: `walbus consume` (or the `walbus run` that has it) with SIGTERM, or its program"
    if configured is not None and configured.parts is not None:
        called, running = name, here or _has_members(settings, name, configured)
        mend += ", and all other members of its group, on whatever machine; one that was killed is gone with its lease"
    else:
        running = here or _has_stream(settings, called)
    if running:
        raise UsageError(f"consumer {called} is running", where=f"consumer {called}", mend=mend)


def _has_members(settings: Settings, name: str, configured: ConsumerConfig) -> bool:
    """Whether members of a group hold a lease, by the word of who gives them; one that is away knows of none."""
    from walbus.config_consumers import log_address  # noqa: PLC0415

    address = log_address(settings, configured)
    if isinstance(address, KafkaAddress):
        from walbus.consumers.parts_topic import members_in  # noqa: PLC0415
        from walbus.relay.kafka.cluster import ClusterSettings  # noqa: PLC0415

        try:
            return bool(members_in(ClusterSettings(address.servers, address.topic, address.options), name))
        except LogUnreachable:
            return False
    group = _asked(settings, f"/v1/groups/{name}")
    return group is not None and bool(group["members"])


def _has_stream(settings: Settings, name: str) -> bool:
    """A relay that is away has none; whoever has the sink or the checkpoint is met there."""
    known = _asked(settings, _path(name))
    return known is not None and bool(known["streams"])


def _asked(settings: Settings, path: str) -> Known | None:
    """What the relay answers; None: it is away, or does not know that."""
    try:
        with _relay(settings) as relay:
            return relay.json("GET", path)
    except RequestRefused as error:
        if error.status != _NOT_FOUND:
            raise
    except WalbusError:
        pass
    return None


@contextmanager
def _relay(settings: Settings) -> Iterator[HttpPeer]:
    from walbus.consumers.transport import HttpPeer  # noqa: PLC0415 - the other commands need no client
    from walbus.credentials import credentials_of  # noqa: PLC0415

    with closing(HttpPeer(settings.relay_url, credentials_of(settings.client))) as peer:
        yield peer


def _path(name: str) -> str:
    from walbus.consumer_reports import checked_name  # noqa: PLC0415

    return f"/v1/consumers/{checked_name(name)}"


def _configured(settings: Settings) -> dict[str, Known]:
    """The configuration's consumers, as a relay that has not heard of them would tell them."""
    from walbus.consumers.partitions import names_of  # noqa: PLC0415

    names = {called: (name, one) for name, one in settings.consumer.items() for called in names_of(name, one)}
    return {
        name: {
            "name": name, "phase": None, "last_done": None, "seq": None, "lag": None, "last_seen": None, "streams": 0,
            "sink": one.sink, "tables": list(one.tables), "waiting_for": None, "configured": True,
            "paused": _pause_of(settings, section).is_asked,
        }
        for name, (section, one) in names.items()
    }  # fmt: skip


def _print_table(consumers: list[Known]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if not consumers:
        typer.echo("There is no consumer.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("consumer", "phase", "position", "changes", "bytes", "seconds", "last seen", "sink", "tables"):
        table.add_column(heading, overflow="fold", justify="right" if heading in _FIGURES else "left")
    for one in consumers:
        table.add_row(*map(Text, _cells(one)))
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_ELSEWHERE
    console.print(table)


_FIGURES = ("changes", "bytes", "seconds")


def _cells(one: Known) -> tuple[str, ...]:
    from walbus.amounts import human_bytes  # noqa: PLC0415

    lag = one["lag"]
    figures = ("", "", "") if lag is None else (str(lag["changes"]), human_bytes(lag["bytes"]), f"{lag['seconds']:.1f}")
    if lag is not None and lag["gone"]:
        figures = ("gone", *figures[1:])
    seen = "never" if one["last_seen"] is None else "reads" if one["streams"] else f"{_ago(one['last_seen'])} ago"
    phase = "paused" if one["paused"] else one["phase"] or "unknown"
    return (
        one["name"], phase, one["last_done"] or "", *figures, seen, one["sink"] or "library", ", ".join(one["tables"]),
    )  # fmt: skip


def _ago(moment: float) -> str:
    from walbus.amounts import human_seconds  # noqa: PLC0415

    return human_seconds(max(0.0, time.time() - moment))
