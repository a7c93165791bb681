"""The routes of groups: who has which part of all keys (`walbus.relay.group_leases`).

    GET    /v1/groups/NAME                     its parts and members
    PUT    /v1/groups/NAME/members/MEMBER      a member asks: its lease begins anew, and it is told what it holds
    DELETE /v1/groups/NAME/members/MEMBER      a member is known to have ended: what it had is free at once

A group goes by the name of the consumer that its members are, and a token that may be that consumer may be a member.
For a member speaks the token alone that it joined with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from aiohttp import web

from walbus.consumer_reports import checked_name
from walbus.relay.access import AccessError, granted, require_consumer
from walbus.relay.group_desk import GroupDesk, NoGroupsNow, TooManyGroups
from walbus.relay.group_leases import MAX_MEMBERS, Group, OtherOwner, OtherParts, TooManyMembers
from walbus.relay.group_requests import checked_member, parse_asked, told
from walbus.relay.groups_file import in_order
from walbus.relay.http import RequestError, json_response
from walbus.relay.request_body import bounded_body

_MAX_BODY = 64 << 10
Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


class GroupRoutes:
    """The handlers.

    Args:
        desk: the groups.
        threads: gives the server's threads, or raises what a client is told while there is no log.
        copies: whether the log is another relay's, which keeps the groups.
    """

    def __init__(self, desk: GroupDesk, threads: Callable[[], ThreadPoolExecutor], *, copies: bool) -> None:
        self._desk, self._threads, self._copies = desk, threads, copies

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Registers them."""
        router.add_get("/v1/groups/{name}", self._guarded(self._one), allow_head=False)
        router.add_put("/v1/groups/{name}/members/{member}", self._guarded(self._ask))
        router.add_delete("/v1/groups/{name}/members/{member}", self._guarded(self._remove))

    def _guarded(self, respond: Respond) -> Respond:
        async def handler(request: web.Request) -> web.StreamResponse:
            if self._copies:
                mend = "ask the relay that it copies from (relay.upstream), or the one behind that"
                raise RequestError(409, "this relay copies its log, and keeps no groups", where="path", mend=mend)
            try:
                return await respond(request)
            except NoGroupsNow as error:
                headers = {"Retry-After": "1"}
                raise RequestError(503, error.args[0], where="name", mend="ask again", headers=headers) from None

        return handler

    async def _one(self, request: web.Request) -> web.Response:
        name = checked_name(request.match_info["name"])
        group = await self._desk.group(name, self._threads())
        if group is None:
            mend = "a group is known once a member has asked for it"
            raise RequestError(404, f"there is no group {name!r}", where="name", mend=mend)
        return json_response(_document(name, group))

    async def _ask(self, request: web.Request) -> web.Response:
        name, member = _names(request)
        require_consumer(request, name)
        token = granted(request).name
        asked = replace(parse_asked(await bounded_body(request, "what a member asks", _MAX_BODY)), owner=token)
        try:
            group = await self._desk.ask(name, member, asked, self._threads())
        except OtherParts as error:
            what = f"the group {name} has members that read {error.args[0]} parts"
            mend = "give the group of another number another name, or end all of its members first"
            raise RequestError(409, what, where="parts", mend=mend, more={"parts": error.args[0]}) from None
        except OtherOwner:
            what = f"the token {token} may not speak for the member {member!r}, which joined with another one"
            mend = "give each process a member's name of its own"
            raise AccessError(403, what, reason="beyond the scope", where="member", mend=mend, token=token) from None
        except TooManyMembers:
            mend = f"a group has at most {MAX_MEMBERS}"
            raise RequestError(429, f"the group {name} has too many members", where="member", mend=mend) from None
        except TooManyGroups:
            mend = "end the members of groups that are not needed"
            raise RequestError(429, "the relay keeps too many groups", where="name", mend=mend) from None
        return json_response(told(group, member, asked))

    async def _remove(self, request: web.Request) -> web.Response:
        name, member = _names(request)
        if not await self._desk.remove(name, member, self._threads()):
            mend = "nothing: a member whose lease is over has left"
            raise RequestError(404, f"the group {name} has no member {member!r}", where="member", mend=mend)
        return json_response({"removed": member})


def _names(request: web.Request) -> tuple[str, str]:
    name = checked_name(request.match_info["name"])
    return name, checked_member(request.match_info["member"])


def _document(name: str, group: Group) -> dict[str, object]:
    members = [{"name": member, "parts": [hold.part for hold in group.holds(member)]} for member, _ in in_order(group)]
    parts = [{"part": number, "token": part.token, "member": part.holder} for number, part in enumerate(group.parts)]
    return {"name": name, "parts": parts, "members": members}
