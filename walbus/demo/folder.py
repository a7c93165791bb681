"""Where a demo lies: one folder with everything in it, gone at the end unless it is to be kept.

    FOLDER/walbus.toml   the configuration; closed to others, for it holds a password
    FOLDER/walbus.log    what the rooms say
    FOLDER/data          the rooms' data: log, store, status files, the consumers' sinks
    FOLDER/postgres      the source
    FOLDER/redis         Redis, if it takes part
    FOLDER/kafka         the broker, if the log lies on Kafka

As root, PostgreSQL runs as a user without privileges. Where that user cannot reach FOLDER, the source lies in a
temporary folder beside it (`postgres` tells), which goes and stays together with the rest.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from walbus.demo.programs import reachable, unprivileged_account
from walbus.errors import UsageError

#: Others may pass through (PostgreSQL's user must), but not look around.
_PASS_THROUGH = 0o711


class DemoFolder:
    """The places of one demo.

    Args:
        root: an empty folder.
        postgres: folder of the source.
    """

    def __init__(self, root: Path, postgres: Path) -> None:
        self.root = root
        self.postgres = postgres
        self.data = root / "data"
        self.config = root / "walbus.toml"
        self.log = root / "walbus.log"
        self.redis = root / "redis"
        self.kafka = root / "kafka"
        self.cache = self.data / "consumers" / "cache" / "cache.sqlite"
        self.search = self.data / "consumers" / "search" / "index"

    def write_config(self, sections: Mapping[str, Mapping[str, object]]) -> None:
        """Writes walbus.toml, readable by us alone; a section's keys are strings, numbers or lists of strings."""
        lines = [f"data_dir = {_toml(str(self.data))}"]
        for name, keys in sections.items():
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]
        self.config.touch(mode=0o600)
        self.config.write_text("\n".join(lines) + "\n")


@contextmanager
def demo_folder(wanted: Path | None, *, keep: bool) -> Iterator[DemoFolder]:
    """The demo's folder, for as long as the context lasts (or for good, with `keep`).

    Raises:
        UsageError: the wanted folder is not empty.
    """
    existed = wanted is not None and wanted.exists()
    root = _made(wanted)
    postgres, elsewhere = _place_for_postgres(root)
    try:
        yield DemoFolder(root, postgres)
    finally:
        if not keep:
            for folder in (root, elsewhere):
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)
            if existed:
                root.mkdir(mode=_PASS_THROUGH, exist_ok=True)


def _made(wanted: Path | None) -> Path:
    if wanted is None:
        root = Path(tempfile.mkdtemp(prefix="walbus-demo-"))
        root.chmod(_PASS_THROUGH)
        return root
    root = wanted.absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"{root} is not an empty folder", mend="name another with --data-dir, or remove it")
    root.mkdir(mode=_PASS_THROUGH, parents=True, exist_ok=True)
    return root


def _place_for_postgres(root: Path) -> tuple[Path, Path | None]:
    """The source's folder, and the temporary folder around it if it cannot be inside the demo's."""
    account = unprivileged_account()
    if account is None or reachable(root, account, mode="-x"):
        return root / "postgres", None
    elsewhere = Path(tempfile.mkdtemp(prefix="walbus-demo-postgres-", dir="/tmp"))
    elsewhere.chmod(_PASS_THROUGH)
    return elsewhere / "postgres", elsewhere


def _toml(value: object) -> str:
    """A TOML value: JSON's strings, numbers and lists are TOML's too."""
    return json.dumps(value, ensure_ascii=False)
