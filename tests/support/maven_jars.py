"""Servers that come as jars: Maven fetches them once into `.services/FOLDER`, by the coordinates in `FOLDER/pom.xml`
beside this module and from wherever it is configured to, and the node's class there is compiled with them.

It takes a JDK of 11 or later.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from walbus.errors import UsageError

#: Where the jars are kept; `make clean` removes it.
KEPT = Path(__file__).parents[2] / ".services"


@dataclass(frozen=True)
class Kind:
    """Which server: the folder of its sources, its version, and the class of its node."""

    folder: str
    version: str
    node: str


def fetched(kind: Kind) -> Path:
    """The folder of the jars and of the compiled node, fetched now if that was not done before.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    kept, sources = KEPT / kind.folder, Path(__file__).with_name(kind.folder)
    folder = kept / kind.version
    if folder.exists():
        return folder
    for program, package in (("mvn", "maven"), ("javac", "default-jdk-headless")):
        if shutil.which(program) is None:
            raise UsageError(f"there is no {program}", mend=f"apt-get install {package}")
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=kept, prefix="fetching-") as temporary:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test runs one does it
        if folder.exists():
            return folder
        unfinished = Path(temporary) / "whole"
        jars = ["mvn", "-q", "-B", "-f", str(sources / "pom.xml"), "dependency:copy-dependencies"]
        _run([*jars, f"-DoutputDirectory={unfinished}"], f"Maven cannot fetch the jars of {kind.folder}")
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
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', done.stderr)
    if done.returncode or version is None:
        raise UsageError(f"java does not run: {(done.stderr.strip() or 'it says nothing').splitlines()[0]}", mend=mend)
    if int(version[1]) < least:
        raise UsageError(f"java is of version {version[1]}", mend=mend)


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise UsageError(f"{what}: {next((line for line in lines if 'ERROR' in line), lines[-1:])}")
