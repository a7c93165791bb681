"""A real Apicurio Registry for tests: in memory, in a JVM of its own, started in some seconds.

Maven fetches it once into `.services/apicurio` (109 MB), from wherever it is configured to. It takes a JDK of 17 or
later.

with local_apicurio() as server:
    server.url                       its interface in the form of Confluent's
    server.stop(); server.start()    the same port; what was registered is gone
"""

from __future__ import annotations

import fcntl
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from support import plain_http
from support.maven_jars import JARS
from support.waiting import wait_for
from walbus.demo.jars import check_java
from walbus.demo.postgres import free_port
from walbus.errors import UsageError

_VERSION = "3.0.9"
_ARCHIVE = f"io.apicurio:apicurio-registry-app:{_VERSION}:tar.gz:all"
_JAVA = ("java", "-Xmx256m", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


def fetched() -> Path:
    """The folder of its jars, fetched now if that was not done before.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    kept = JARS / "apicurio"
    folder = kept / _VERSION
    if folder.exists():
        return folder
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=kept, prefix="fetching-") as temporary:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one does it
        if folder.exists():
            return folder
        command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={_ARCHIVE}", f"-DoutputDirectory={temporary}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=temporary)
        except FileNotFoundError:
            raise UsageError("there is no mvn", mend="apt-get install maven") from None
        if done.returncode:
            raise UsageError(f"Maven cannot fetch {_ARCHIVE}: {(done.stdout + done.stderr).strip()[:300]}")
        (archive,) = Path(temporary).glob("*.tar.gz")
        unfinished = Path(temporary) / "whole"
        with tarfile.open(archive) as packed:
            packed.extractall(unfinished, filter="data")
        unfinished.rename(folder)
    return folder


class ApicurioServer:
    """One node; `url` is its address."""

    def __init__(self, folder: Path) -> None:
        (self._jar,) = fetched().glob("*-runner.jar")
        self._said, self._port = folder / "log", free_port()
        self.url = f"http://127.0.0.1:{self._port}/apis/ccompat/v7"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        address = (f"-Dquarkus.http.port={self._port}", "-Dquarkus.http.host=127.0.0.1")
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(
                [*_JAVA, *address, "-jar", str(self._jar)], stdout=said, stderr=said, start_new_session=True
            )
        wait_for(self._answers, 60, what="Apicurio answers")

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"Apicurio did not start: {self._said.read_text()[-2000:]}")
        with suppress(httpx.TransportError):
            return plain_http.get(f"{self.url}/subjects", timeout=5).status_code == 200
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def local_apicurio() -> Iterator[ApicurioServer]:
    """A registry without subjects.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    check_java(17)
    with tempfile.TemporaryDirectory(prefix="walbus-apicurio-") as folder:
        server = ApicurioServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()
