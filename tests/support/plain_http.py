"""Requests without TLS to servers of this machine: `httpx`'s own functions at a fifteenth of their cost.

httpx makes a TLS context for each request that no client sends, and reads the machine's authorities into it: 25 ms of
the processor, for an address without TLS too. A test that waits asks a hundred times a second.

told = plain_http.get(f"{relay.url}/v1/info").json()
"""

from __future__ import annotations

import ssl
from functools import partial

import httpx

#: Believes nobody: a server with TLS is never read by these.
_UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

request = partial(httpx.request, verify=_UNUSED, trust_env=False, timeout=30)
get = partial(httpx.get, verify=_UNUSED, trust_env=False, timeout=30)
post = partial(httpx.post, verify=_UNUSED, trust_env=False, timeout=30)
put = partial(httpx.put, verify=_UNUSED, trust_env=False, timeout=30)
delete = partial(httpx.delete, verify=_UNUSED, trust_env=False, timeout=30)
stream = partial(httpx.stream, verify=_UNUSED, trust_env=False, timeout=30)
