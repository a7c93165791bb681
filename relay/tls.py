"""A server's certificate: read again when it is renewed, refused when it cannot work, told before it expires.

Each connection is made with the context that is current when it comes, so a renewed certificate serves new connections
and drops none. Files that do not fit together (as between the two writes of a renewal) or cannot be read leave the old
context in place, which is said once for each change, and are tried again. TLS 1.2 is the least.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from walbus.errors import ConfigError
from walbus.relay.certificate_dates import valid_until
from walbus.relay.token_file import signature_of

_log = structlog.get_logger(__name__)

WARN_SECONDS = 14 * 86400.0  #: before it expires
_WARN_EVERY = 86400.0
_EXPIRED_EVERY = 3600.0
_MEND_READ = "name a PEM file that this user may read"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a server's certificate lies.

    Attributes:
        cert: PEM, the server's own first, then those between it and its authority.
        key: PEM, not encrypted.
        client_ca: PEM; clients must show a certificate of one of these. None: clients show none.
        room: the configuration's section, for errors.
    """

    cert: Path
    key: Path
    client_ca: Path | None
    room: str

    def load(self) -> tuple[ssl.SSLContext, float]:
        """What connections are made with, and when the certificate expires, in Unix seconds.

        Raises:
            ConfigError: the files cannot be used.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        expires = self._certificate_end()
        self._load_pair(context)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            self._load_authorities(context, self.client_ca)
        return context, expires

    def _certificate_end(self) -> float:
        where = f"{self.cert}, key {self.room}.tls_cert"
        try:
            return valid_until(self.cert.read_text())
        except OSError as error:
            raise ConfigError(f"cannot read the certificate: {error.strerror}", where=where, mend=_MEND_READ) from None
        except ValueError:
            mend = "give the PEM file of the server's certificate (BEGIN CERTIFICATE)"
            raise ConfigError("that is no certificate", where=where, mend=mend) from None

    def _load_pair(self, context: ssl.SSLContext) -> None:
        where = f"{self.key}, key {self.room}.tls_key"
        asked: list[bool] = []

        def no_password() -> bytes:
            asked.append(True)
            return b""

        try:
            context.load_cert_chain(self.cert, self.key, no_password)
        except ssl.SSLError as error:
            what, mend = _key_problem(error, encrypted=bool(asked))
            raise ConfigError(what, where=where, mend=mend) from None
        except OSError as error:
            raise ConfigError(f"cannot read the key: {error.strerror}", where=where, mend=_MEND_READ) from None

    def _load_authorities(self, context: ssl.SSLContext, path: Path) -> None:
        where = f"{path}, key {self.room}.tls_client_ca"
        try:
            context.load_verify_locations(path)
        except ssl.SSLError:
            mend = "give a PEM file of certificates (BEGIN CERTIFICATE)"
            raise ConfigError("there is no authority in it", where=where, mend=mend) from None
        except OSError as error:
            raise ConfigError(f"cannot read the authorities: {error.strerror}", where=where, mend=_MEND_READ) from None


class ServerTls:
    """The TLS side of one server.

    Args:
        files: the certificate.
        wall: Unix seconds.

    Raises:
        ConfigError: the files cannot be used, or the certificate has expired.
    """

    def __init__(self, files: CertificateFiles, wall: Callable[[], float]) -> None:
        self._files = files
        self._wall = wall
        self._signatures = self._told = self._look()
        self.context, self._expires = self._files.load()
        if self._expires <= wall():
            raise ConfigError(
                f"the certificate expired on {_day(self._expires)}",
                where=f"{files.cert}, key {files.room}.tls_cert",
                mend="renew it",
            )
        self._next_warning = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Takes over files that have changed, and warns of the end."""
        signatures = self._look()
        if signatures != self._signatures:
            try:
                self.context, self._expires = self._files.load()
            except ConfigError as error:
                if signatures != self._told:
                    _log.error("tls_kept", error=error.what, where=error.where, mend=error.mend)
                self._told = signatures
            else:
                self._signatures = self._told = signatures
                self._next_warning = 0.0
                _log.info("tls_reloaded", cert=str(self._files.cert), expires=_day(self._expires))
        self._warn(self._wall())

    def _warn(self, now: float) -> None:
        left = self._expires - now
        if left > WARN_SECONDS or now < self._next_warning:
            return
        if left > 0:
            self._next_warning = now + _WARN_EVERY
            _log.warning("tls_certificate_expires", cert=str(self._files.cert), on=_day(self._expires), mend="renew it")
        else:
            self._next_warning = now + _EXPIRED_EVERY
            mend = "renew it; clients refuse it, and it is read again by itself"
            _log.error("tls_certificate_expired", cert=str(self._files.cert), on=_day(self._expires), mend=mend)

    def _look(self) -> tuple[object, ...]:
        files = self._files
        return tuple(signature_of(path) for path in (files.cert, files.key, files.client_ca) if path is not None)


def _key_problem(error: ssl.SSLError, *, encrypted: bool) -> tuple[str, str]:
    if encrypted:
        return "the key is encrypted", "take its password off (openssl pkey), and let only Walbus's user read it"
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate", "give the key that the certificate was made for"
    return "that is no key", "give the PEM file of the key (BEGIN PRIVATE KEY)"


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M UTC}"
