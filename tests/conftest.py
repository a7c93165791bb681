"""Fixtures on real servers; how to use them stands in `tests/support/__init__.py`."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings

from support.apicurio_server import ApicurioServer, local_apicurio
from support.database import Database, fresh_database
from support.guarded_kafka import GuardedKafka, guarded_kafka
from support.kafka_server import Cluster, local_kafka, or_missing
from support.model_source import ModelSource
from support.opensearch_server import (
    ELASTICSEARCH,
    OPENSEARCH,
    Kind,
    OpenSearchServer,
    emptied,
    local_opensearch,
)
from support.oracle import Oracle
from support.order import ordered_for
from support.postgres_programs import programs_of, versions_of
from support.redis_cluster import LocalCluster, local_cluster
from support.scripted_relay import ScriptedRelay
from support.seed import shared_seed
from support.server_folder import server_folder
from support.services import RedisServer, docker_answers, local_redis, missing, redis_answers
from walbus.demo.postgres import THROWAWAY_SETTINGS, EmbeddedPostgres
from walbus.demo.postgres import free_port as any_free_port
from walbus.errors import UsageError

# A busy machine makes an example slow, and nothing wrong.
settings.register_profile(
    "walbus", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("walbus")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pg", default="18", help="PostgreSQL: 14 to 18, all, or a folder with bin/; several by commas")
    parser.addoption("--sample", type=int, default=1, help="of N tests one, drawn by the seed of the run")


def pytest_configure(config: pytest.Config) -> None:
    """Tests interrupt the programs that they start; a shell that runs us in the background makes SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--sample") < 1:
        raise pytest.UsageError("--sample takes a number from 1 on: of so many tests one is run")
    if config.getoption("--sample") > 1:
        shared_seed()  # before the workers are started, which have it from here


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says how to draw the same tests again."""
    share = config.getoption("--sample")
    if share > 1:
        terminalreporter.write_line(f"of {share} tests one was drawn by WALBUS_TEST_SEED={shared_seed()}")


@pytest.hookimpl(trylast=True)  # behind what -m and -k leave out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves those that `--sample` draws; in xdist's workers in the order of `support.order`."""
    share = config.getoption("--sample")
    if share > 1:
        seed = shared_seed()
        drawn = {item for item in items if crc32(f"{seed} {item.nodeid}".encode()) % share == 0}
        config.hook.pytest_deselected(items=[item for item in items if item not in drawn])
        items[:] = [item for item in items if item in drawn]
    if workers := getattr(config, "workerinput", {}).get("workercount"):
        items[:] = ordered_for(items, workers)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test with a server runs on every chosen version; one marked `one_version` on the last of them."""
    if "pg_version" in metafunc.fixturenames:
        versions = versions_of(metafunc.config.getoption("--pg"))
        if any(metafunc.definition.iter_markers("one_version")):
            versions = versions[-1:]
        metafunc.parametrize("pg_version", versions, indirect=True, ids=[f"pg{v}" for v in versions], scope="session")


def open_postgres(folder: Path, version: str, settings: dict[str, str], *, contrib: bool = False) -> EmbeddedPostgres:
    """An embedded server by a word of --pg; skips (or fails, see services) where it is not to be had."""
    try:
        return EmbeddedPostgres(folder, settings=settings, bin_dir=programs_of(version, contrib=contrib))
    except UsageError as error:
        missing(f"PostgreSQL {version}", str(error))
        raise


@pytest.fixture(scope="session")
def pg_version(request: pytest.FixtureRequest) -> str:
    """The PostgreSQL of this run of the test, by its word of --pg."""
    version: str = request.param
    return version


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that every user can reach (pytest's tmp_path is closed to the user PostgreSQL runs as)."""
    folder = Path(tempfile.mkdtemp(prefix="walbus-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def pg_server(pg_version: str) -> Iterator[EmbeddedPostgres]:
    """The session's PostgreSQL. Do not stop or kill it: tests that must take `own_pg_server`."""
    with server_folder("pg-test") as folder:
        server = open_postgres(folder / "pg", pg_version, {**THROWAWAY_SETTINGS, "max_prepared_transactions": "30"})
        try:
            server.start()
            yield server
        finally:
            server.remove()


@pytest.fixture
def own_pg_server(pg_version: str) -> Iterator[Callable[..., EmbeddedPostgres]]:
    """Makes servers of the test's own, started; removed at the end.

    `own_pg_server(version="16", contrib=True, wal_level="replica")`: a version other than the run's, with the contrib
    extensions, with settings.
    """
    with server_folder("pg-own") as folder, ExitStack() as servers:

        def make(version: str | None = None, *, contrib: bool = False, **settings: str) -> EmbeddedPostgres:
            own = Path(tempfile.mkdtemp(dir=folder))
            own.chmod(0o755)
            server = open_postgres(own, version or pg_version, {**THROWAWAY_SETTINGS, **settings}, contrib=contrib)
            servers.callback(server.remove)
            server.start()
            return server

        yield make


@pytest.fixture
def database(pg_server: EmbeddedPostgres) -> Iterator[Database]:
    """A fresh database on the session's server; its slots and walsenders go with it."""
    with fresh_database(pg_server) as fresh:
        yield fresh


@pytest.fixture(scope="session")
def target_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """The session's PostgreSQL for sinks, of the last version of --pg: another server than any source is."""
    with server_folder("pg-target") as folder:
        server = open_postgres(folder / "pg", versions_of(request.config.getoption("--pg"))[-1], THROWAWAY_SETTINGS)
        try:
            server.start()
            yield server
        finally:
            server.remove()


@pytest.fixture
def target_database(target_server: EmbeddedPostgres) -> Iterator[Database]:
    """A fresh database for a PostgreSQL sink."""
    with fresh_database(target_server) as fresh:
        yield fresh


@pytest.fixture
def oracle(database: Database) -> Callable[..., Oracle]:
    """Makes a second slot beside the real one: `oracle(publication="walbus")`; see `support.oracle`."""

    def make(publication: str = "walbus", **options: Any) -> Oracle:
        return Oracle(database.dsn, publication, **options)

    return make


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """The session's Redis: WALBUS_TEST_REDIS (a URL), else redis-server, else Docker. Use `redis_url` in tests."""
    address = os.environ.get("WALBUS_TEST_REDIS")
    if address:
        if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # a database each, on a server that they share
            address = urlsplit(address)._replace(path=f"/{worker.removeprefix('gw')}").geturl()
        assert redis_answers(address), "the Redis of WALBUS_TEST_REDIS does not answer"
        yield RedisServer(address)
    elif shutil.which("redis-server"):
        with local_redis() as server:
            yield server
    elif docker_answers():
        ip, services = request.getfixturevalue("docker_ip"), request.getfixturevalue("docker_services")
        url = f"redis://{ip}:{services.port_for('redis', 6379)}/0"
        services.wait_until_responsive(lambda: redis_answers(url), timeout=60, pause=0.5)
        yield RedisServer(url)
    else:
        missing("Redis", "WALBUS_TEST_REDIS is not set, and there is neither redis-server nor Docker")


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    """The services that pytest-docker starts where this machine has none."""
    return str(Path(__file__).parent / "support" / "docker-compose.yml")


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of the session's Redis, emptied."""
    import redis

    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
    return redis_server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A client of that Redis, for texts."""
    import redis

    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A redis-server of the test's own, to stop or kill by `pid`."""
    if not shutil.which("redis-server"):
        missing("redis-server", "the test must be able to kill it, so it takes a program of this machine")
    with local_redis() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster_nodes() -> Iterator[LocalCluster]:
    """The session's Redis Cluster of three masters. To kill or move: `local_cluster`."""
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(redis_cluster_nodes: LocalCluster) -> LocalCluster:
    """The session's Redis Cluster, emptied."""
    redis_cluster_nodes.empty()
    return redis_cluster_nodes


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A Redis Cluster to kill, of three masters with a replica each. For all else: `redis_cluster`."""
    with local_cluster(replicas=True) as cluster:
        yield cluster


@pytest.fixture
def source() -> ModelSource:
    """A source without PostgreSQL."""
    return ModelSource()


@pytest.fixture
def relay(source: ModelSource) -> Iterator[ScriptedRelay]:
    """A relay and a bootstrap of that source."""
    with ScriptedRelay(source) as relay:
        yield relay


@pytest.fixture(scope="session")
def opensearch_server() -> Iterator[str]:
    """Address of the session's OpenSearch: WALBUS_TEST_OPENSEARCH, else a node of our own. Use `opensearch_url`."""
    if address := os.environ.get("WALBUS_TEST_OPENSEARCH"):
        yield address.rstrip("/")
        return
    with own_node() as server:
        yield server.url


@contextmanager
def own_node(kind: Kind = OPENSEARCH) -> Iterator[OpenSearchServer]:
    try:
        node = local_opensearch(kind=kind)
        server = node.__enter__()
    except UsageError as error:
        missing(kind.sources.name, f"WALBUS_TEST_{kind.sources.name.upper()} is not set, and {error}")
        raise
    with ExitStack() as stack:
        stack.push(node)
        yield server


@pytest.fixture
def opensearch_url(opensearch_server: str) -> str:
    """Address of the session's OpenSearch, emptied."""
    return emptied(opensearch_server)


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Addresses of the session's Kafka: WALBUS_TEST_KAFKA, else a broker of our own. Topics have names of their own."""
    if addresses := os.environ.get("WALBUS_TEST_KAFKA"):
        yield addresses
        return
    # Tests compare each record that was written. The broker would compact a topic every 15 s: rows of the model source
    # are of 2023, for which a segment is closed at once.
    settings = {"log.cleaner.min.compaction.lag.ms": str(10 * 365 * 86_400_000)}
    with or_missing(lambda: local_kafka(settings=settings), "WALBUS_TEST_KAFKA is not set, and ") as cluster:
        yield cluster.bootstrap


@pytest.fixture(scope="session")
def guarded() -> Iterator[GuardedKafka]:
    """The session's Kafka with ACLs: everybody there is somebody, with grants of his own."""
    with or_missing(guarded_kafka) as cluster:
        yield cluster


@pytest.fixture
def own_kafka() -> Iterator[Cluster]:
    """A broker of the test's own, to stop, kill and start again."""
    with or_missing(local_kafka, "WALBUS_TEST_KAFKA is not set, and ") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def apicurio() -> Iterator[ApicurioServer]:
    """The session's Apicurio Registry; who stops it starts it again."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(local_apicurio())
        except UsageError as error:
            missing("apicurio", str(error))
            raise
        yield server


@pytest.fixture(scope="session")
def elasticsearch_server() -> Iterator[str]:
    """Address of the session's Elasticsearch: WALBUS_TEST_ELASTICSEARCH, else a node of our own."""
    if address := os.environ.get("WALBUS_TEST_ELASTICSEARCH"):
        yield address.rstrip("/")
        return
    with own_node(ELASTICSEARCH) as server:
        yield server.url


@pytest.fixture
def elasticsearch_url(elasticsearch_server: str) -> str:
    """Address of the session's Elasticsearch, emptied."""
    return emptied(elasticsearch_server)


@pytest.fixture
def own_opensearch() -> Iterator[OpenSearchServer]:
    """A node of the test's own, to stop, kill and start again."""
    with own_node() as server:
        yield server


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    return any_free_port()
