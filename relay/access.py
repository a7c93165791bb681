"""Who may do what at an HTTP server: a rule for every route, and the check in front of all of them.

Default-deny: a route that stands in no rule is refused to everybody once access is switched on (a file of tokens is
configured), and a test walks the routes of all servers, so that a new one gets its rule with it. Without a file of
tokens everybody who reaches the address may do everything; `gate` sees to it that this is the loopback, and that it is
asked by a name of its own (`host_names`).

A handler learns by `granted` what its request may see, and refuses by name what lies beyond: nothing that was asked for
is left out silently. Where a list is asked for without names (layouts, tables), it holds what the token sees, and says
so. A response that is under way ends when its token is taken out of the file, narrowed, or expires.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog
from aiohttp import web

from walbus.relay.audit import Audit, Refusal
from walbus.relay.host_names import HostNames
from walbus.relay.http import Handler, RequestError
from walbus.relay.token_file import TokenFile
from walbus.relay.tokens import EVERYBODY, Grant, Role, Token, grant_of

_log = structlog.get_logger(__name__)


class Need(enum.Enum):
    """What a route asks for."""

    NOTHING = "nothing"
    READ = "read"
    METRICS = "metrics"
    ADMIN = "admin"


#: Every route of every server. The two that probes ask need nothing, for a load balancer has no place for a secret;
#: they say whether the server lives and whether it is ready, and no name of anything.
RULES: Final[dict[str, Need]] = {
    "GET /healthz": Need.NOTHING,
    "GET /readyz": Need.NOTHING,
    "GET /metrics": Need.METRICS,
    "GET /v1/stream": Need.READ,
    "GET /v1/info": Need.READ,
    "GET /v1/schemas": Need.READ,
    "GET /v1/schemas/{id}": Need.READ,
    "GET /v1/openapi.json": Need.READ,
    "GET /v1/consumers": Need.READ,
    "GET /v1/consumers/{name}": Need.READ,
    "PUT /v1/consumers/{name}": Need.READ,  # a consumer reports where it is
    "DELETE /v1/consumers/{name}": Need.ADMIN,
    "GET /v1/consumers/{name}/wait": Need.READ,
    "GET /v1/groups/{name}": Need.READ,
    "PUT /v1/groups/{name}/members/{member}": Need.READ,  # a token that may be the consumer
    "DELETE /v1/groups/{name}/members/{member}": Need.ADMIN,
    "GET /v1/chain": Need.READ,
    "GET /v1/chain/stream": Need.READ,
    "GET /v1/chain/catalog": Need.READ,
    "PUT /v1/chain/standbys/{name}": Need.ADMIN,  # what it says decides what the slot is confirmed to
    "GET /subjects": Need.READ,
    "POST /subjects/{subject}": Need.READ,  # asks
    "GET /subjects/{subject}/versions": Need.READ,
    "POST /subjects/{subject}/versions": Need.READ,  # changes nothing: told what is there
    "GET /subjects/{subject}/versions/{version}": Need.READ,
    "GET /subjects/{subject}/versions/{version}/schema": Need.READ,
    "GET /schemas/types": Need.READ,
    "GET /schemas/ids/{id}": Need.READ,
    "GET /schemas/ids/{id}/schema": Need.READ,
    "GET /schemas/ids/{id}/subjects": Need.READ,
    "GET /schemas/ids/{id}/versions": Need.READ,
    "GET /config": Need.READ,
    "GET /config/{subject}": Need.READ,
    "GET /mode": Need.READ,
    "GET /mode/{subject}": Need.READ,
    "POST /compatibility/subjects/{subject}/versions": Need.READ,  # asks
    "POST /compatibility/subjects/{subject}/versions/{version}": Need.READ,
    "PUT /config": Need.ADMIN,  # these are refused to whoever may ask: the registry is the log's
    "PUT /config/{subject}": Need.ADMIN,
    "PUT /mode": Need.ADMIN,
    "PUT /mode/{subject}": Need.ADMIN,
    "DELETE /config": Need.ADMIN,
    "DELETE /config/{subject}": Need.ADMIN,
    "DELETE /mode/{subject}": Need.ADMIN,
    "DELETE /subjects/{subject}": Need.ADMIN,
    "DELETE /subjects/{subject}/versions/{version}": Need.ADMIN,
    "GET /v1/tables": Need.READ,
    "GET /v1/seeding": Need.READ,
    "GET /v1/snapshot": Need.READ,
    "GET /v1/delta": Need.READ,
    "GET /v1/row": Need.READ,
}

_NOBODY: Final = Grant("", (), frozenset())
_GRANT: web.RequestKey[Grant] = web.RequestKey("grant", Grant)
_SEND = "send Authorization: Bearer TOKEN (in Walbus: WALBUS_CLIENT__TOKEN, or token under [client])"


class AccessError(RequestError):
    """A request that may not be served to this client.

    Args:
        reason: for the audit; from a small set.
    """

    def __init__(  # noqa: PLR0913  # each is a part of the answer
        self, status: int, what: str, *, reason: str, where: str = "Authorization", mend: str, token: str = ""
    ) -> None:
        headers = {"WWW-Authenticate": 'Bearer realm="walbus"'} if status == 401 else None
        super().__init__(status, what, where=where, mend=mend, headers=headers)
        self.reason = reason
        self.token = token


def granted(request: web.Request) -> Grant:
    """What a request may see; KeyError if no `Access` stands before its handler."""
    return request[_GRANT]


def require_tables(request: web.Request, tables: Sequence[str], where: str) -> None:
    """Refuses a request for tables, or patterns of tables, that its token does not see.

    Args:
        request: whose token counts.
        tables: what it asks for; a whole pattern must lie inside the scope.
        where: the parameter that names them.

    Raises:
        AccessError: names the first that is beyond the scope.
    """
    grant = granted(request)
    beyond = grant.beyond(tables)
    if beyond:
        raise AccessError(
            403,
            f"the token {grant.name} does not reach {beyond[0][:140]!r}",
            reason="beyond the scope",
            where=where,
            mend=f"ask for no more than {','.join(grant.tables) or 'nothing'}, or have the token's tables widened",
            token=grant.name,
        )


def require_consumer(request: web.Request, name: str) -> None:
    """Refuses a request that makes a consumer known, unless its token may be that consumer.

    Args:
        request: whose token counts.
        name: of the consumer.

    Raises:
        AccessError: the token may not.
    """
    grant = granted(request)
    if not grant.reports_as(name):
        raise AccessError(
            403,
            f"the token {grant.name} may not be the consumer {name[:64]!r}",
            reason="beyond the scope",
            where="name",
            mend=f"use a name of {', '.join(grant.consumers or ()) or 'none'}, or have the token's consumers widened",
            token=grant.name,
        )


def require_everything(request: web.Request, mend: str) -> None:
    """Refuses a request that shows what others do, unless its token sees everything.

    Args:
        request: whose token counts.
        mend: what it may ask for instead.

    Raises:
        AccessError: the token does not see everything.
    """
    grant = granted(request)
    if not grant.everything:
        what = f"the token {grant.name} does not see everything"
        raise AccessError(403, what, reason="beyond the scope", where="path", mend=mend, token=grant.name)


@dataclass(eq=False, slots=True)
class _Served:
    """A request under way, and the token that opened it, without its end."""

    request: web.Request
    token: Token
    task: asyncio.Task[object] | None  # that handles it

    def end(self) -> None:
        """Breaks the connection.

        What is being sent from a file is given up first: it waits for the socket by itself, and would go on waiting for
        the number of a socket that is closed, which the next connection gets.
        """
        transport = self.request.transport
        if self.task is not None:
            self.task.cancel()
        if transport is not None:
            transport.abort()


class Access:
    """The check of one server.

    Args:
        tokens: None: everybody may do everything.
        audit: is told each refusal.
        names: that a request without a token may ask by; None: whichever it likes.
        wall: Unix seconds, for expiry.
        monotonic: seconds, for the audit.
    """

    def __init__(
        self,
        tokens: TokenFile | None,
        audit: Audit,
        *,
        names: HostNames | None = None,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._tokens = tokens
        self._audit = audit
        self.names = names
        self._wall = wall
        self._monotonic = monotonic
        self._served: set[_Served] = set()

    def guard(self, application: web.Application) -> None:
        """Stands before all handlers of an application, behind what makes errors into JSON."""
        application.middlewares.append(self._check)

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self._tokens is None:
                request[_GRANT] = self._everybody(request)
                return await handler(request)
            served = self._admit(request, self._tokens)
            if served is None:
                return await handler(request)
            self._served.add(served)
            try:
                return await handler(request)
            finally:
                self._served.discard(served)
        except AccessError as refused:
            self._note(request, refused)
            raise

    def _everybody(self, request: web.Request) -> Grant:
        """What a request sees where no tokens are asked for.

        Raises:
            AccessError: it may be that of a stranger's page.
        """
        if self.names is not None and not self.names.know(request.headers.getall("Host", [])):
            raise AccessError(
                421,
                "this server has no tokens, and is not asked by that name",
                reason="host not known",
                where="Host",
                mend="ask for 127.0.0.1 or localhost; or name the host in allowed_hosts of the server's section, or "
                "as its url, or have tokens asked for (tokens_file)",
            )
        return EVERYBODY

    def _admit(self, request: web.Request, tokens: TokenFile) -> _Served | None:
        """Sets the request's grant; None for a route that asks for nothing and is shown nothing.

        Raises:
            AccessError: the route asks for more than is shown.
        """
        need = RULES.get(_route(request))
        shown = request.headers.getall("Authorization", [])
        if need is Need.NOTHING and not shown:
            request[_GRANT] = _NOBODY
            return None
        token = self._token(shown, tokens)
        grant = request[_GRANT] = grant_of(token)
        if need is None and request.match_info.http_exception is None:
            _log.error("route_without_rule", route=_route(request))
            mend = "this is a mistake of Walbus; please report it"
            raise AccessError(403, "the route has no rule", reason="no rule", where="path", mend=mend)
        if need is not None and need is not Need.NOTHING:
            _require_role(grant, need.value)
        return _Served(request, _without_end(token), asyncio.current_task())

    def _token(self, shown: Sequence[str], tokens: TokenFile) -> Token:
        scheme, _, secret = (shown[0] if len(shown) == 1 else "").partition(" ")
        secret = secret.strip()
        token = tokens.find(secret)
        if not shown:
            raise AccessError(401, "a token is needed", reason="token missing", mend=_SEND)
        if scheme.lower() != "bearer" or not secret:
            raise AccessError(401, "that is no Bearer token", reason="token malformed", mend=_SEND)
        if token is None:
            mend = "have one made with `walbus token new`, or see whether it was taken out of the file"
            raise AccessError(401, "the token is not known here", reason="token unknown", mend=mend)
        if token.expired(self._wall()):
            mend = "have a new one made with `walbus token new`"
            what = f"the token {token.name} has expired"
            raise AccessError(401, what, reason="token expired", mend=mend, token=token.name)
        return token

    def _note(self, request: web.Request, refused: AccessError) -> None:
        address = request.remote or "unknown"
        self._audit.note(Refusal(refused.reason, address, _route(request), refused.token), self._monotonic())

    def read(self) -> None:
        """Reads the file of tokens if it has changed; on any thread, since a large file takes a while."""
        if self._tokens is not None:
            self._tokens.refresh()

    def refresh(self) -> None:
        """Ends what is under way under a token that counts no more."""
        if self._tokens is None:
            return
        now = self._wall()
        valid = {_without_end(token) for token in self._tokens.tokens if not token.expired(now)}
        for served in list(self._served):
            if served.token not in valid and served.request.transport is not None:
                _log.warning("access_ended", token_name=served.token.name, address=served.request.remote)
                served.end()


def _without_end(token: Token) -> Token:
    """A token that only expires later ends nothing."""
    return replace(token, expires=None)


def _require_role(grant: Grant, role: Role) -> None:
    if not grant.may(role):
        what = f"the token {grant.name} may not do this"
        mend = f"use one with the role {role}"
        raise AccessError(403, what, reason="role missing", where="path", mend=mend, token=grant.name)


def _route(request: web.Request) -> str:
    """Method and pattern of a request's route; never the path as it was sent."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical}" if resource is not None else "unknown"
