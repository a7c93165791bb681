"""`walbus promote`: the copy of a log takes over from the relay that it was copied from."""

from __future__ import annotations

from typing import Annotated

import httpx
import typer

from walbus.cli.options import ConfigFile, load
from walbus.errors import ConfigError


def command(
    context: typer.Context,
    config: ConfigFile = None,
    force: Annotated[bool, typer.Option("--force", help="Take over although the upstream answers.")] = False,
) -> None:
    """Make the log of a chained relay the one that capture writes, when its upstream is gone for good."""
    settings = load(context, config)
    from walbus.relay.lineage import read_lineage  # noqa: PLC0415 - a command loads its own room alone
    from walbus.relay.promotion import promote  # noqa: PLC0415

    upstream = read_lineage(settings.relay_dir).copy_of
    if upstream is not None and not force and _answers(upstream):
        raise ConfigError(
            f"{upstream} answers: two captures would write two logs under one name",
            where=str(settings.relay_dir),
            mend="stop the relay and the capture there for good, or add --force",
        )
    lineage = promote(settings.relay_dir)
    typer.echo(f"The log is in term {lineage.term}, which begins behind {lineage.began}.")
    if settings.relay.upstream:
        typer.echo("Take relay.upstream out of the configuration, then start walbus run (or capture and relay).")
    else:
        typer.echo("Start walbus run (or capture and relay).")


def _answers(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=5.0, trust_env=False, verify=False)  # noqa: S501 - whether, not what
    except (httpx.HTTPError, OSError):
        return False
    return True
