"""What a client of relay and bootstrap shows of itself, whom it believes, and what may go wrong with that.

A token goes into the `Authorization` header of requests to the address that was configured, and nowhere else: redirects
are not followed. A server's certificate is verified, with its name, by the system's authorities or by `ca_file`; there
is no switch that leaves it out.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog
from pydantic import SecretStr

from walbus.config import ClientConfig
from walbus.errors import ConfigError

_log = structlog.get_logger(__name__)

TOKEN_VARIABLE = "WALBUS_CLIENT__TOKEN"  # noqa: S105 - its name
_TOKEN = re.compile(r"[!-~]{1,256}\Z")

#: OpenSSL's X509_V_ERR_… by number: what is wrong with a server's certificate, and what to do.
_CERTIFICATES = {
    9: ("the server's certificate is not valid yet", "see whether the clocks agree"),
    10: ("the server's certificate has expired", "have it renewed; the server reads it again by itself"),
    18: ("the server's certificate is signed by itself", "name it as ca_file under [client] if it is the right one"),
    19: ("the server's authority is not known here", "name its certificate as ca_file under [client]"),
    20: ("the server's authority is not known here", "name its certificate as ca_file under [client]"),
    21: ("the server's certificate came without those between", "have the whole chain put into its tls_cert"),
    62: ("the server's certificate is for another name", "use the name that it is for, or have it made for this one"),
    64: (
        "the server's certificate is for another address",
        "use the name that it is for, or have it made for this one",
    ),
}


_MEND_CERTIFICATE = "if it asks for a certificate of yours (tls_client_ca), name tls_cert and tls_key under [client]"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A client's side of access; it prints without its token.

    Attributes:
        token: None: none is shown.
        ca_file: PEM; whom to believe instead of the system's authorities.
        cert, key: PEM; shown to a server that asks for a certificate.
    """

    token: SecretStr | None = None
    ca_file: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def headers(self) -> dict[str, str]:
        """The headers of each request.

        Raises:
            ConfigError: the token has signs that no header can carry.
        """
        if self.token is None:
            return {}
        secret = self.token.get_secret_value().strip()
        if not _TOKEN.match(secret):
            mend = "give it as `walbus token new` printed it"
            raise ConfigError("that is no token", where=f"key client.token, or {TOKEN_VARIABLE}", mend=mend)
        return {"Authorization": f"Bearer {secret}"}

    def context(self) -> ssl.SSLContext:
        """How TLS is spoken with a server.

        Raises:
            ConfigError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise _unusable(error, self.ca_file, "client.ca_file") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, lambda: b"")
            except OSError as error:
                raise _unusable(error, self.cert, "client.tls_cert, client.tls_key") from None
        return context


def _unusable(error: OSError, path: Path | None, key: str) -> ConfigError:
    what = "that is no PEM file of a certificate" if isinstance(error, ssl.SSLError) else f"{error.strerror}"
    return ConfigError(what, where=f"{path}, key {key}", mend="name a PEM file that this user may read")


#: Shows nothing, and believes the system's authorities.
ANONYMOUS = Credentials()


def credentials_of(client: ClientConfig, token: SecretStr | None = None) -> Credentials:
    """Those of a configuration; `token` goes before its own."""
    return Credentials(token or client.token, client.ca_file, client.tls_cert, client.tls_key)


def credentials_from_environment() -> Credentials:
    """Those of `WALBUS_CLIENT__…`, where there is no configuration to read."""
    token = os.environ.get(TOKEN_VARIABLE)
    ca_file, cert, key = (os.environ.get(f"WALBUS_CLIENT__{name}") for name in ("CA_FILE", "TLS_CERT", "TLS_KEY"))
    return Credentials(
        SecretStr(token) if token else None, *(Path(path) if path else None for path in (ca_file, cert, key))
    )


#: Believes nobody. Without TLS it is asked for nothing, and to read the machine's authorities takes longer than many a
#: request: a client with little to read would spend most of its time on that.
_UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def new_client(url: str, credentials: Credentials, timeout: httpx.Timeout, *, agent: str = "walbus") -> httpx.Client:
    """A connection pool for one server.

    Raises:
        ConfigError: the credentials cannot be used.
    """
    secure = url.lower().startswith("https://")
    if credentials.token is not None and not secure and not is_loopback(url):
        _log.warning(
            "the token travels in the clear", url=url, mend="give the server a certificate, and write https://"
        )
    return httpx.Client(
        base_url=url,
        timeout=timeout,
        headers={"User-Agent": agent, **credentials.headers()},
        verify=credentials.context() if secure else _UNUSED,
        follow_redirects=False,  # to another host the token must not go, and Walbus's servers send none
        trust_env=False,  # the environment's proxies are for the world outside; a relay is addressed directly
    )


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine."""
    try:
        host = httpx.URL(url).host
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except (ValueError, httpx.InvalidURL):
        return False


def require_no_less_private(url: str, other: str, credentials: Credentials) -> None:
    """Refuses to show a token to another server than the one that it is for in a way that gives it away.

    Args:
        url: of the server that is told of the other one.
        other: of the other one.
        credentials: what both are shown.

    Raises:
        ConfigError: the token would leave this machine in the clear, which it does not do on the way to `url`.
    """
    clear = not other.startswith("https://") and not is_loopback(other)
    if credentials.token is not None and clear and url.startswith("https://"):
        mend = "give the bootstrap server a certificate, and name it with https:// as url under [bootstrap]"
        raise ConfigError(f"{other} would get the token in the clear", where=url, mend=mend)


def connection_problem(error: BaseException) -> tuple[str, str | None]:
    """What is wrong with a connection, and what to do about it if that is known; names no secret."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            unknown = f"the server's certificate is not believed: {cause.verify_message}", "see docs/access.md"
            return _CERTIFICATES.get(cause.verify_code, unknown)
        if isinstance(cause, ssl.SSLError):
            return _tls_problem(cause)
    if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):  # as one hangs up on whom it does not like
        secure = error.request.url.scheme == "https"
        return (
            f"no answer ({type(error).__name__})",
            _MEND_CERTIFICATE if secure else "if it speaks TLS, write https://",
        )
    return f"no answer ({type(error).__name__})", None


def _tls_problem(error: ssl.SSLError) -> tuple[str, str | None]:
    reason = error.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "the server speaks no TLS", "write http://, or give it a certificate"
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return "the server asks for a certificate", _MEND_CERTIFICATE
    return f"TLS failed ({reason.lower().replace('_', ' ') or type(error).__name__})", None


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
