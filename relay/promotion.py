"""Taking over: a copy becomes the log, for capture to write on."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from walbus.errors import ConfigError
from walbus.relay.engine import open_writer
from walbus.relay.fs import Files
from walbus.relay.lineage import Lineage, read_lineage, write_lineage
from walbus.relay.manifest import load_manifest


def check_not_a_copy(folder: Path) -> Lineage:
    """The lineage of a log that capture may write.

    Raises:
        ConfigError: it is a copy.
    """
    lineage = read_lineage(folder)
    if lineage.copy_of is not None:
        raise ConfigError(
            f"the log is a copy of {lineage.copy_of}: another capture writes it",
            where=str(folder),
            mend="if that one is gone for good, run `walbus promote`",
        )
    return lineage


def promote(folder: Path) -> Lineage:
    """Makes a copy the log: from now on capture writes it, in a new term; what the folder says of itself then.

    Args:
        folder: of the copy. What a relay that was killed left behind its last whole transaction is cut.

    Raises:
        ConfigError: it is no copy.
        LogBusy: the relay that copies still runs.
        LogError: the log is damaged.
    """
    manifest, lineage = load_manifest(folder), read_lineage(folder)
    if manifest is None or lineage.copy_of is None:
        what = "there is no log" if manifest is None else "the log is no copy: capture writes it"
        raise ConfigError(what, where=str(folder), mend="name the folder of a relay that follows another one")
    with closing(
        open_writer(folder, manifest.source, segment_bytes=1 << 40, retention_hours=1e9, retention_bytes=None)
    ) as writer:
        promoted = Lineage(lineage.term + 1, writer.bounds().end, None)
        write_lineage(Files(), folder, promoted)
    return promoted
