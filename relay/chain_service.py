"""`walbus relay` with an upstream: copies in a thread, and serves the copy as any log is served."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from walbus.config import ClientConfig, RelayConfig
from walbus.errors import ConfigError
from walbus.relay.chain import Chain
from walbus.relay.upstream import TIMEOUTS, Upstream


def serve_chained(  # noqa: PLR0913  # both halves of a process
    folder: Path,
    config: RelayConfig,
    client: ClientConfig,
    *,
    status_dir: Path,
    stop: threading.Event,
    serve: Callable[[], None],
) -> None:
    """Copies `config.upstream` into the folder while `serve` runs; either's end ends the other.

    Args:
        folder: of the copy.
        config: of the relay.
        client: how the upstream is reached.
        status_dir: folder of the status files.
        stop: ends both.
        serve: serves the folder's log until `stop` is set.

    Raises:
        As `walbus.relay.chain.Chain.run`, and as `serve`.
    """
    failures: list[BaseException] = []
    with _http(client) as http:
        upstreams = [Upstream(url, config.name, http) for url in config.upstream]
        chain = Chain(folder, config, upstreams, stop=stop, status_path=status_dir / "upstream.json")

        def copy() -> None:
            try:
                chain.run()
            except BaseException as error:
                failures.append(error)
            finally:
                stop.set()

        thread = threading.Thread(target=copy, name="walbus-chain", daemon=True)
        thread.start()
        try:
            serve()
        finally:
            stop.set()
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _http(client: ClientConfig) -> Iterator[httpx.Client]:
    """Requests as the configuration has them."""
    headers = {} if client.token is None else {"Authorization": f"Bearer {client.token.get_secret_value()}"}
    try:
        context = httpx.create_ssl_context(trust_env=False)
        if client.ca_file is not None:
            context.load_verify_locations(client.ca_file)
        if client.tls_cert is not None:
            context.load_cert_chain(client.tls_cert, client.tls_key)
    except OSError as error:
        what = f"a certificate cannot be used: {error.strerror or error}"
        mend = "name files in PEM form that this user may read"
        raise ConfigError(what, where="section [client]", mend=mend) from None
    with httpx.Client(timeout=TIMEOUTS, headers=headers, verify=context, trust_env=False) as http:
        yield http
