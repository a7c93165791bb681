"""Rules about who may reach the servers: files of tokens, certificates and their keys. Facts in, findings out; pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from walbus.amounts import counted, human_seconds
from walbus.capture.doctor import Finding
from walbus.capture.doctor.findings import advice, error, ok, refused, shell, warning
from walbus.errors import ConfigError

#: Seconds before its end at which a token or a certificate is worth a warning.
SOON: Final = 14 * 86_400.0


@dataclass(frozen=True, slots=True)
class TokensFacts:
    """A file of tokens.

    Attributes:
        path: the file.
        problem: why the servers cannot use it; the rest says nothing then.
        mode: permission bits.
        count: tokens in it.
        expired, expiring: names of those that count no more, and of those that soon will not.
    """

    path: str
    problem: ConfigError | None = None
    mode: int = 0o600
    count: int = 0
    expired: tuple[str, ...] = ()
    expiring: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """A certificate of ours, with its key and the authorities beside it.

    Attributes:
        key: the configuration's, that names it.
        path: the file.
        problem: why it cannot be used; the rest says nothing then.
        left: seconds until it expires; None where only authorities are named.
        key_path, key_mode: of the private key, and its permission bits.
    """

    key: str
    path: str
    problem: ConfigError | None = None
    left: float | None = None
    key_path: str = ""
    key_mode: int = 0o600


def access_findings(tokens: Iterable[TokensFacts], certificates: Iterable[CertificateFacts]) -> Iterator[Finding]:
    """All of this module's."""
    for file in tokens:
        yield from _tokens(file)
    for certificate in certificates:
        yield from _certificate(certificate)


def _tokens(file: TokensFacts) -> Iterator[Finding]:
    if file.problem is not None:
        yield refused("tokens-file", file.problem)
        return
    path = shlex.quote(file.path)
    if file.mode & 0o022:
        found = f"others may write to {file.path} (mode {file.mode:o}): whoever does lets himself in"
        yield warning("tokens-file", found, shell(f"chmod go-w {path}"), of=[file.path])
    if not file.count:
        make = shell(f"walbus token new NAME --tables '*.*' --file {path}")
        yield warning("tokens-file", f"{file.path} holds no token: everybody is turned away", make, of=[file.path])
    for names, what in ((file.expired, "have expired, and are turned away"), (file.expiring, f"end within {_soon()}")):
        if names:
            mend = advice("make others with walbus token new, hand them out, and take these sections out of the file")
            yield warning("tokens-file", f"tokens of {file.path} {what}", mend, of=names)
    if file.count and not (file.mode & 0o022 or file.expired or file.expiring):
        yield ok("tokens-file", f"{file.path}: {counted(file.count, 'token')}")


def _certificate(certificate: CertificateFacts) -> Iterator[Finding]:
    if certificate.problem is not None:
        yield refused("certificate", certificate.problem)
        return
    path, left = certificate.path, certificate.left
    renew = advice("renew it; servers read it again by themselves, commands and consumers at their next start")
    if left is not None and left <= 0:
        yield error("certificate", f"{path} has expired: whoever verifies it refuses it", renew, of=[certificate.key])
    elif left is not None and left < SOON:
        yield warning("certificate", f"{path} expires in {human_seconds(left)}", renew, of=[certificate.key])
    else:
        valid = "" if left is None else f", valid for {human_seconds(left)}"
        yield ok("certificate", f"{certificate.key}: {path}{valid}")
    if certificate.key_path and certificate.key_mode & 0o007:
        found = f"everybody may read the private key {certificate.key_path} (mode {certificate.key_mode:o})"
        mend = shell(f"chmod o-rwx {shlex.quote(certificate.key_path)}")
        yield warning("certificate", found, mend, of=[certificate.key])


def _soon() -> str:
    return human_seconds(SOON)
