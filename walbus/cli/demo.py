"""`walbus demo`: everything on an embedded PostgreSQL, ended by a comparison."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Workload(enum.StrEnum):
    """What changes the demo's database."""

    SHOP = "shop"
    PGBENCH = "pgbench"


class Engine(enum.StrEnum):
    """Where the demo's log lies."""

    FILE = "file"
    KAFKA = "kafka"


def command(  # noqa: PLR0913, PLR0917 - each option is an argument
    seconds: Annotated[float, typer.Option(min=1, help="How long the workload runs.")] = 30.0,
    rate: Annotated[float, typer.Option(min=0.1, help="Transactions a second aimed at.")] = 200.0,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything lies; a temporary folder if not given.", show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder there at the end.")] = False,
    workload: Annotated[Workload, typer.Option(help="Whose transactions run.")] = Workload.SHOP,
    engine: Annotated[Engine, typer.Option(help="Where the log lies; kafka takes a JDK and Maven.")] = Engine.FILE,
    kills: Annotated[int, typer.Option(min=0, help="Processes killed at random (SIGKILL) during the load.")] = 3,
    seed: Annotated[
        int | None, typer.Option(help="Of the load and the kills; a random one if not given.", show_default=False)
    ] = None,
) -> int:
    """Show everything on an embedded PostgreSQL; exit 1 if any derived view differs from the source."""
    from walbus.demo import run_demo  # noqa: PLC0415 - a command loads its own room alone

    return run_demo(
        seconds=seconds,
        rate=rate,
        data_dir=data_dir,
        keep=keep,
        workload=workload.value,
        engine=engine.value,
        kills=kills,
        seed=seed,
    )
