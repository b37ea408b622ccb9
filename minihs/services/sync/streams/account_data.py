"""Account data, global and of rooms. Spec: client-server-api#client-config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from minihs.protocol import canonical_json
from minihs.protocol.push_rule_edits import rules_json
from minihs.storage import account_data as stored
from minihs.storage import timelines
from minihs.storage.stream_rows import AccountDataWrite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.services.context import Services
    from minihs.services.sync.spans import SyncRequest

PUSH_RULES = "m.push_rules"


async def read(
    services: Services, request: SyncRequest, upto: int, new_rooms: Sequence[str]
) -> dict[str, list[dict[str, object]]]:
    """Return account data set after the client's position, by room; the empty room is global.

    Of rooms that are new to the client, it is all that the user has ever set.
    """
    after = request.since or 0
    newest: dict[tuple[str, str], str] = {}
    if new_rooms and request.since is not None:
        for room_id, kind, json in await stored.list_of_rooms(
            services.db, request.user_id, new_rooms
        ):
            newest[room_id, kind] = json
    if request.since is not None and services.follower.floor <= after:
        for item in services.follower.items_after(after):
            if isinstance(item, AccountDataWrite) and item.user_id == request.user_id:
                newest[item.room_id, item.type] = item.json
    else:
        for room_id, kind, json in await timelines.list_account_data(
            services.db, request.user_id, after, upto
        ):
            newest[room_id, kind] = json
    if request.since is None:
        newest.setdefault(("", PUSH_RULES), "{}")
    found: dict[str, list[dict[str, object]]] = {}
    for (room_id, kind), json in newest.items():
        filter_ = request.filter.room.account_data if room_id else request.filter.account_data
        if not filter_.has_type(kind) or not filter_.has_room(room_id):
            continue
        found.setdefault(room_id, []).append(
            {"type": kind, "content": _content(request, kind, json)}
        )
    return found


def _content(request: SyncRequest, kind: str, json: str) -> object:
    """Return the content for the client: stored push rules are changes to the default ones."""
    if kind != PUSH_RULES:
        return orjson.Fragment(json.encode())
    changes = canonical_json.decode(json)
    return rules_json(changes if isinstance(changes, dict) else {}, request.user_id)
