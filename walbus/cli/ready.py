"""`walbus ready`: whether the relay of this machine is ready, for a container's healthcheck."""

from __future__ import annotations

import ssl

import httpx
import typer

from walbus.cli.options import ConfigFile, load
from walbus.config import Settings, local_url
from walbus.credentials import connection_problem, credentials_of
from walbus.errors import RelayUnavailable

_TIMEOUT = 3.0  # seconds


def command(context: typer.Context, config: ConfigFile = None) -> None:
    """Ask the relay of this machine whether there is a log to serve; exit code 1 if there is not."""
    ask(load(context, config))
    typer.echo("ready")


def ask(settings: Settings) -> None:
    """Asks on the address on which the relay listens.

    Raises:
        RelayUnavailable: it does not answer, or is not ready.
    """
    secure = settings.relay.tls_cert is not None
    url = f"{local_url(settings.relay.listen, scheme='https' if secure else 'http')}/readyz"
    try:
        answer = httpx.get(url, timeout=_TIMEOUT, trust_env=False, verify=_anybody(settings) if secure else True)
    except (httpx.HTTPError, OSError) as error:
        what, mend = connection_problem(error)
        raise RelayUnavailable(what, where=url, mend=mend) from None
    if answer.status_code != httpx.codes.OK:
        raise RelayUnavailable(f"it is not ready ({answer.status_code})", where=url, mend="look at its log")


def _anybody(settings: Settings) -> ssl.SSLContext:
    """TLS with whoever listens there.

    The certificate is for the name by which others reach the relay, and nothing is told that needs to be kept: neither
    a token nor what is answered.
    """
    context = credentials_of(settings.client).context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
