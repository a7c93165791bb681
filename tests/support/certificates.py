"""Certificates made for a test: authorities, and what they sign, as files.

authority = Authority(tmp_path)
keys = authority.server("localhost")                 # tls_cert and tls_key, for RelayConfig
client = authority.believed()                        # what a client speaks that believes this authority
"""

from __future__ import annotations

import datetime
import itertools
import ssl
from pathlib import Path

import trustme

_numbers = itertools.count()


class Authority:
    """One that nobody believes who is not told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.pem = folder / f"authority-{next(_numbers)}.pem"
        self._ca.cert_pem.write_to_path(self.pem)

    def server(self, *names: str, ends_in_days: float = 365) -> dict[str, Path]:
        """The keys `tls_cert` and `tls_key` of a server with these names."""
        now = datetime.datetime.now(datetime.UTC)
        made = self._ca.issue_cert(
            *names,
            not_before=now - datetime.timedelta(days=400),
            not_after=now + datetime.timedelta(days=ends_in_days),
            key_type=trustme.KeyType.ECDSA,
        )
        stem = self._folder / f"server-{next(_numbers)}"
        cert, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
        cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        return {"tls_cert": cert, "tls_key": key}

    def believed(self) -> ssl.SSLContext:
        """A client's context."""
        return ssl.create_default_context(cafile=self.pem)
