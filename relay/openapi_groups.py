"""The routes of groups in the OpenAPI document (`walbus.relay.openapi`). No I/O."""

from __future__ import annotations

from walbus.relay.group_requests import MAX_LEASE, MAX_PARTS, MIN_LEASE
from walbus.relay.openapi_parts import COUNT, NULLABLE, Json, get_of, object_of, parameter, ref, text

_WORD = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"
_NAME = parameter("name", "path", "of the group", text(_WORD))
_MEMBER = parameter("member", "path", "of the member", text(_WORD))
_PART: Json = {"type": "integer", "minimum": 0, "maximum": MAX_PARTS - 1}
_TOKEN: Json = {"type": "integer", "minimum": 0, "maximum": (1 << 53) - 1}


def group_paths() -> Json:
    """The paths."""
    ask = get_of("ask", "A member asks for parts", ref("Holds"), _NAME, "400", "408", "409", "413", "429")
    ask["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref("Asked")}}}
    removed = object_of({"removed": text(".+")}, "removed")
    remove = get_of("remove", "Removes a member that has ended", removed, _NAME, "400", "404", "409")
    for operation in (ask, remove):
        operation["parameters"].append(_MEMBER)
    return {
        "/v1/groups/{name}": {"get": get_of("group", "Who has which part", ref("Group"), _NAME, "400", "404", "409")},
        "/v1/groups/{name}/members/{member}": {"put": ask, "delete": remove},
    }


def group_schemas() -> Json:
    """What they send and take."""
    hold = {"part": _PART, "token": _TOKEN}
    seconds: Json = {"type": "number", "minimum": MIN_LEASE, "maximum": MAX_LEASE}
    parts: Json = {"type": "integer", "minimum": 1, "maximum": MAX_PARTS}
    done = {"type": "array", "maxItems": MAX_PARTS, "items": object_of(hold, *hold)}
    held = {**hold, "give_up": {"type": "boolean"}}
    holds = {
        "parts": parts, "lease_seconds": seconds, "members": COUNT,
        "holds": {"type": "array", "items": object_of(held, *held)},
    }  # fmt: skip
    part, member = (
        {**hold, "member": NULLABLE},
        {"name": {"type": "string"}, "parts": {"type": "array", "items": _PART}},
    )
    group = {
        "name": {"type": "string"}, "parts": {"type": "array", "items": object_of(part, *part)},
        "members": {"type": "array", "items": object_of(member, *member)},
    }  # fmt: skip
    asked = {"parts": parts, "lease_seconds": seconds}
    return {
        "Asked": object_of({**asked, "done": done, "leaves": {"type": "boolean"}}, *asked),
        "Holds": object_of(holds, *holds),
        "Group": object_of(group, *group),
    }
