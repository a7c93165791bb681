"""A real OpenSearch or Elasticsearch for tests and benchmarks: one node in a JVM of its own, started in seconds.

Maven fetches the jars once into `.services/opensearch` (70 MB) or `.services/elasticsearch` (32 MB), by the coordinates
in `opensearch/pom.xml` and from wherever it is configured to; the node is `opensearch/OpenSearchNode.java`, or what
`elasticsearch` has of that. It takes a JDK of 11 or later.

with local_opensearch() as server:          local_opensearch(kind=ELASTICSEARCH)
    server.url                       http://127.0.0.1:PORT
    server.stop(); server.start()    the same folder and port; `server.start(empty=True)`: nothing is there any more
    server.pid                       to stop or kill it by
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import quote

from support import plain_http
from support.maven_jars import JARS
from support.server_folder import server_folder
from walbus.demo.jars import Kind, fetched
from walbus.demo.postgres import free_port

_HERE = Path(__file__).parent
OPENSEARCH = Kind(_HERE / "opensearch", "2.19.1.0", "OpenSearchNode")
ELASTICSEARCH = Kind(_HERE / "elasticsearch", "7.17.29", "ElasticsearchNode")

_HEAP = "512m"
#: A node that lives for a minute is best compiled in haste, and collected by one thread.
_JAVA = ("java", f"-Xmx{_HEAP}", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_START_SECONDS = 60.0


class OpenSearchServer:
    """One node; `url` is its address, `pid` its process."""

    def __init__(self, folder: Path, kind: Kind, java: tuple[str, ...], settings: Mapping[str, str]) -> None:
        self._folder, self._kind, self._java, self._settings = folder, kind, java, settings
        self._classes = fetched(kind, JARS)
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
        command = [*self._java, "-cp", classpath, self._kind.node, str(self._folder), str(self._port), *settings]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("listens"):
            self.stop()
            raise RuntimeError(f"{self._kind.sources.name} did not start: {(self._folder / 'log').read_text()[-2000:]}")
        plain_http.get(f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=30s", timeout=_START_SECONDS)

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
    java: tuple[str, ...] = _JAVA,
    settings: Mapping[str, str] | None = None,
    kind: Kind = OPENSEARCH,
    place: Callable[[str], AbstractContextManager[Path]] = server_folder,
) -> Iterator[OpenSearchServer]:
    """A node in a temporary folder, with settings of its own.

    Args:
        java: the program and its options.
        settings: of the node.
        kind: of the server.
        place: makes the folder; benchmarks take `disk_folder`.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    with place(kind.sources.name) as folder:
        server = OpenSearchServer(folder / "node", kind, java, settings or {})
        try:
            server.start()
            yield server
        finally:
            server.stop()


def emptied(url: str) -> str:
    """The address, once no index is there any more."""
    for index in plain_http.get(f"{url}/_cat/indices?h=index&format=json&expand_wildcards=all").json():
        plain_http.delete(f"{url}/{quote(index['index'], safe='')}").raise_for_status()
    return url
