"""`walbus snapshot --reconcile`: lets capture go on behind a slot that was lost."""

from __future__ import annotations

from contextlib import closing

import typer

from walbus.cli.options import require_source
from walbus.config import Settings
from walbus.errors import StoreError, UsageError


def consent(settings: Settings, *, force: bool) -> None:
    """Leaves the consent for the gap at hand.

    Args:
        settings: of the log and the source.
        force: whether to do so although the slot gives what follows.

    Raises:
        UsageError: there is no gap.
        SourceError: the source is away, or another one answers.
        LogError: there is no log, or it is being written.
    """
    from walbus.capture.reconciling import find_gap, write_consent  # noqa: PLC0415 - a command loads its own room alone
    from walbus.relay import open_reader  # noqa: PLC0415
    from walbus.relay.promotion import check_not_a_copy  # noqa: PLC0415

    check_not_a_copy(settings.relay_dir)
    require_source(settings, "walbus snapshot --reconcile")
    with closing(open_reader(settings.relay_dir)) as reader:
        bounds = reader.bounds()
    why = find_gap(settings.source, bounds)
    if why is None and not force:
        raise UsageError(
            f"slot {settings.source.slot} gives what follows the log's end: there is nothing to reconcile",
            where=f"log end {bounds.end}",
            mend="see `walbus status` for what capture says; --force gives up the slot all the same",
        )
    if not settings.bootstrap.enabled and not force:
        raise UsageError(
            "there is no bootstrap, and nobody else can say what is missing",
            where="key bootstrap.enabled",
            mend="set it to true; --force goes on with the gap as it is",
        )
    try:
        write_consent(settings.relay_dir, bounds, why or "an operator gave the slot up")
    except OSError as error:
        raise StoreError(
            f"the consent cannot be written: {error.strerror}",
            where=str(settings.relay_dir),
            mend="run this as the user, and on the machine, of `walbus capture`",
        ) from None
    typer.echo(why or "The slot is given up.")
    typer.echo(f"The log goes on behind {bounds.end} with another slot: start walbus run (or capture and bootstrap).")
    typer.echo(
        "Every table is seeded again, and what is missing comes into the log; walbus verify tells when it is right."
    )
