"""`walbus relay` with an upstream: copies in a thread, and serves the copy as any log is served."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from walbus.config import RelayConfig
from walbus.credentials import Credentials
from walbus.relay.chain import Chain
from walbus.relay.upstream import Upstream


def serve_chained(  # noqa: PLR0913  # both halves of a process
    folder: Path,
    config: RelayConfig,
    credentials: Credentials,
    *,
    status_dir: Path,
    stop: threading.Event,
    serve: Callable[[], None],
) -> None:
    """Copies `config.upstream` into the folder while `serve` runs; either's end ends the other.

    Args:
        folder: of the copy.
        config: of the relay.
        credentials: what is shown to the upstream.
        status_dir: folder of the status files.
        stop: ends both.
        serve: serves the folder's log until `stop` is set.

    Raises:
        As `walbus.relay.chain.Chain.run`, and as `serve`.
    """
    with ExitStack() as closing_them:
        upstreams = [
            closing_them.enter_context(closing(Upstream(url, config.name, credentials))) for url in config.upstream
        ]
        chain = Chain(folder, config, upstreams, stop=stop, status_path=status_dir / "upstream.json")
        serve_beside(chain.run, stop=stop, serve=serve)


def serve_beside(copy: Callable[[], None], *, stop: threading.Event, serve: Callable[[], None]) -> None:
    """Runs `copy` in a thread while `serve` runs; either's end ends the other.

    Args:
        copy: fills the folder that is served, until `stop` is set.
        stop: ends both.
        serve: serves it until `stop` is set.

    Raises:
        As `copy`, and as `serve`.
    """
    failures: list[BaseException] = []

    def copying() -> None:
        try:
            copy()
        except BaseException as error:
            failures.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=copying, name="walbus-chain", daemon=True)
    thread.start()
    try:
        serve()
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
