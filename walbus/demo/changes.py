"""How many changes a relay's log holds: counted in its own records, whose checksums are proved on the way."""

from __future__ import annotations

import httpx

from walbus.errors import ProtocolError, RelayUnavailable
from walbus.record_parser import RecordParser
from walbus.records import Kind

_PARAMETERS = {"from": "earliest", "until": "latest", "follow": "false"}
_PLAIN = {"Accept-Encoding": "identity"}  # records as they lie on disk


def count_changes(relay_url: str) -> int:
    """Changes of all transactions in the log as of now.

    Raises:
        RelayUnavailable: the relay does not answer.
        ProtocolError: it refuses, or the stream broke off inside a record.
    """
    parser = RecordParser()
    count = 0
    try:
        with (
            httpx.Client(base_url=relay_url, timeout=30, trust_env=False) as client,
            client.stream("GET", "/v1/stream", params=_PARAMETERS, headers=_PLAIN) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise ProtocolError(f"the relay answered {answer.status_code}", where=relay_url)
            for data in answer.iter_raw():
                parser.feed(data)
                count += sum(header.count for header, _ in parser.records() if header.kind == Kind.TRANSACTION)
    except httpx.HTTPError as error:
        raise RelayUnavailable(f"the relay does not answer: {error}", where=relay_url) from error
    if parser.pending:
        raise ProtocolError("the stream broke off inside a record", where=relay_url)
    return count
