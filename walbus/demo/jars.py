"""Servers that come as jars.

Maven fetches them once, by the coordinates in a `pom.xml` and from wherever it is configured to, and the class of the
node that lies beside it is compiled with them. It takes a JDK.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from walbus.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """Which server.

    Attributes:
        sources: folder of `pom.xml` and of the node's source; what is fetched lies under its name.
        version: of the server.
        node: class of the node.
    """

    sources: Path
    version: str
    node: str


def kept_jars() -> Path:
    """Where this user's jars are kept."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "walbus" / "jars"


def fetched(kind: Kind, jars: Path) -> Path:
    """The folder of the jars and of the compiled node, fetched now if that was not done before.

    Args:
        kind: of the server.
        jars: folder where they are kept.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    kept, sources = jars / kind.sources.name, kind.sources
    folder = kept / kind.version
    if folder.exists():
        return folder
    for program, package in (("mvn", "maven"), ("javac", "default-jdk-headless")):
        if shutil.which(program) is None:
            raise UsageError(f"there is no {program}", mend=f"apt-get install {package}")
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=kept, prefix="fetching-") as temporary:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one does it
        if folder.exists():
            return folder
        unfinished = Path(temporary) / "whole"
        copy = ["mvn", "-q", "-B", "-f", str(sources / "pom.xml"), "dependency:copy-dependencies"]
        _run([*copy, f"-DoutputDirectory={unfinished}"], f"Maven cannot fetch the jars of {sources.name}")
        _run(
            ["javac", "-cp", f"{unfinished}/*", "-d", str(unfinished), str(sources / f"{kind.node}.java")],
            "the node does not compile",
        )
        unfinished.rename(folder)
    return folder


def check_java(least: int) -> None:
    """Sees that there is a Java of this version or a later one, and that it runs.

    Raises:
        UsageError: there is none here; says why.
    """
    mend = f"apt-get install default-jdk-headless, of {least} or later"
    if shutil.which("java") is None:
        raise UsageError("there is no java", mend=mend)
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)  # noqa: S607
    version = re.search(r'version "(\d+)', done.stderr)
    if done.returncode or version is None:
        raise UsageError(f"java does not run: {(done.stderr.strip() or 'it says nothing').splitlines()[0]}", mend=mend)
    if int(version[1]) < least:
        raise UsageError(f"java is of version {version[1]}", mend=mend)


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (no shell)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise UsageError(f"{what}: {next((line for line in lines if 'ERROR' in line), lines[-1:])}")
