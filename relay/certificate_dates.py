"""Until when a certificate is valid: the one field that Python's `ssl` does not tell of a certificate of one's own.

An X.509 certificate is DER: each value is a tag, a length and content. Its validity is the second SEQUENCE behind the
serial number (the first is the signature's algorithm, then comes the issuer):

    Certificate     ::= SEQUENCE { tbsCertificate, ... }
    tbsCertificate  ::= SEQUENCE { [0] version OPTIONAL, serialNumber, signature, issuer, validity, ... }
    validity        ::= SEQUENCE { notBefore, notAfter }       each UTCTime or GeneralizedTime
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def valid_until(pem: str) -> float:
    """When the first certificate of a PEM text ends, in Unix seconds.

    Raises:
        ValueError: there is none, or it is malformed.
    """
    start, end = pem.find(_BEGIN), pem.find(_END)
    if start < 0 or end < start:
        raise ValueError("no certificate")
    der = ssl.PEM_cert_to_DER_cert(pem[start : end + len(_END)])
    try:
        return _end_of(der)
    except IndexError:
        raise ValueError("a value is cut off") from None


def _end_of(der: bytes) -> float:
    certificate = _inside(der)
    fields = _values(_inside(certificate))
    if fields[0][0] == _VERSION:
        fields = fields[1:]
    _, _, _, (tag, validity), *_ = fields
    if tag != _SEQUENCE:
        raise ValueError("no validity")
    _, (kind, text) = _values(validity)
    return _moment(kind, text.decode("ascii"))


def _inside(der: bytes) -> bytes:
    """The content of the SEQUENCE that stands first."""
    tag, content = _values(der)[0]
    if tag != _SEQUENCE:
        raise ValueError("no sequence")
    return content


def _values(der: bytes) -> list[tuple[int, bytes]]:
    """The values that stand one behind the other: tag and content of each."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        if at + length > len(der):
            raise ValueError("a value is cut off")
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _moment(kind: int, text: str) -> float:
    if kind == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif kind != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
