"""A real OpenSearch for tests and benchmarks: one node in a JVM of its own, started in seconds.

Maven fetches the jars once into `.services/opensearch` (70 MB), by the coordinates in `opensearch/pom.xml` and from
wherever it is configured to; the node is `opensearch/OpenSearchNode.java`. It takes a JDK of 11 or later.

with local_opensearch() as server:
    server.url                       http://127.0.0.1:PORT
    server.stop(); server.start()    the same folder and port; `server.start(empty=True)`: nothing is there any more
    server.pid                       to stop or kill it by
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from walbus.demo.postgres import free_port
from walbus.errors import UsageError

#: Where the jars are kept; `make clean` removes it.
KEPT = Path(__file__).parents[2] / ".services" / "opensearch"

_SOURCES = Path(__file__).with_name("opensearch")
_HEAP = "512m"
#: A node that lives for a minute is best compiled in haste, and collected by one thread.
_JAVA = ("java", f"-Xmx{_HEAP}", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_START_SECONDS = 60.0


def fetched() -> Path:
    """The folder of the jars and of the compiled node, fetched now if that was not done before.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    folder = KEPT / "2.19.1.0"
    if folder.exists():
        return folder
    for program, package in (("mvn", "maven"), ("javac", "default-jdk-headless")):
        if shutil.which(program) is None:
            raise UsageError(f"there is no {program}", mend=f"apt-get install {package}")
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=KEPT, prefix="fetching-") as temporary:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test runs one does it
        if folder.exists():
            return folder
        unfinished = Path(temporary) / "whole"
        jars = ["mvn", "-q", "-B", "-f", str(_SOURCES / "pom.xml"), "dependency:copy-dependencies"]
        _run([*jars, f"-DoutputDirectory={unfinished}"], "Maven cannot fetch OpenSearch's jars")
        _run(
            ["javac", "-cp", f"{unfinished}/*", "-d", str(unfinished), str(_SOURCES / "OpenSearchNode.java")],
            "the node does not compile",
        )
        unfinished.rename(folder)
    return folder


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise UsageError(f"{what}: {next((line for line in lines if 'ERROR' in line), lines[-1:])}")


class OpenSearchServer:
    """One node; `url` is its address, `pid` its process."""

    def __init__(self, folder: Path, classes: Path, java: tuple[str, ...], settings: Mapping[str, str]) -> None:
        self._folder, self._classes, self._java, self._settings = folder, classes, java, settings
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, empty: bool = False) -> None:
        if empty:
            shutil.rmtree(self._folder)
        (self._folder / "config").mkdir(parents=True, exist_ok=True)
        classpath = f"{self._classes}:{self._classes}/*"
        settings = [f"{name}={value}" for name, value in self._settings.items()]
        command = [*self._java, "-cp", classpath, "OpenSearchNode", str(self._folder), str(self._port), *settings]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("listens"):
            self.stop()
            raise RuntimeError(f"OpenSearch did not start: {(self._folder / 'log').read_text()[-2000:]}")
        httpx.get(f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=30s", timeout=_START_SECONDS)

    def stop(self) -> None:
        """Kills it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None


@contextmanager
def local_opensearch(
    java: tuple[str, ...] = _JAVA, settings: Mapping[str, str] | None = None
) -> Iterator[OpenSearchServer]:
    """A node in a temporary folder, with settings of its own.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    classes = fetched()
    with tempfile.TemporaryDirectory(prefix="walbus-opensearch-", ignore_cleanup_errors=True) as folder:
        server = OpenSearchServer(Path(folder) / "node", classes, java, settings or {})
        try:
            server.start()
            yield server
        finally:
            server.stop()


def emptied(url: str) -> str:
    """The address, once no index is there any more."""
    for index in httpx.get(f"{url}/_cat/indices?h=index&format=json&expand_wildcards=all", timeout=30).json():
        httpx.delete(f"{url}/{index['index']}", timeout=30)
    return url
