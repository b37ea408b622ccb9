"""Spaces, and what those outside a room are told of it: links, their order, and who may look.

Spec: client-server-api#spaces
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.protocol.identifiers import parse_room_id
from minihs.protocol.room_versions import ROOM_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import RoomId

SPACE = "m.space"
CHILD = "m.space.child"
VIA_MAX = 10  # Servers of one link that are looked at; ours.

_ORDER = re.compile(r"[\x20-\x7e]{1,50}")

# What other servers tell of a room, if it is of these types.
_TYPES: dict[str, type] = {
    "name": str,
    "topic": str,
    "canonical_alias": str,
    "avatar_url": str,
    "join_rule": str,
    "room_type": str,
    "room_version": str,
    "encryption": str,
}


@dataclass(frozen=True, slots=True)
class SpaceLink:
    """A child of a space. `json` is the link's event, stripped, with `origin_server_ts`.

    `order` is the text to sort it by, None where the event has no valid one.
    """

    child: RoomId
    via: Sequence[str]
    suggested: bool
    order: str | None
    sent_at_ms: int
    json: Mapping[str, object]


def read_link(json: object) -> SpaceLink | None:
    """Return the link of a stripped `m.space.child` event; None where it is none.

    Spec: client-server-api#mspacechild
    """
    match json:
        case {
            "type": "m.space.child",
            "state_key": str(state_key),
            "sender": str(sender),
            "content": {"via": [_, *_] as via, **others} as content,
            "origin_server_ts": int(sent_at_ms),
        }:
            child = parse_room_id(state_key)
            if child is None:
                return None
            order = others.get("order")
            return SpaceLink(
                child,
                [name for name in via[:VIA_MAX] if isinstance(name, str)],
                others.get("suggested") is True,
                order if isinstance(order, str) and _ORDER.fullmatch(order) else None,
                sent_at_ms,
                {
                    "type": CHILD,
                    "state_key": state_key,
                    "sender": sender,
                    "content": content,
                    "origin_server_ts": sent_at_ms,
                },
            )
        case _:
            return None


def ordered(links: Iterable[SpaceLink]) -> list[SpaceLink]:
    """Return the children of a space in the order in which they are shown.

    Spec: client-server-api#ordering-of-children-within-a-space
    """
    return sorted(
        links,
        key=lambda link: (
            link.order is None,
            link.order or "",
            link.sent_at_ms,
            link.child,
        ),
    )


def read_summary(json: object) -> dict[str, object] | None:
    """Return what another server tells of a room, without what is malformed; None if it is none.

    Spec: server-server-api#get_matrixfederationv1hierarchyroomid
    """
    if not isinstance(json, dict):
        return None
    room_id = parse_room_id(json.get("room_id"))
    count = json.get("num_joined_members")
    if room_id is None or type(count) is not int or count < 0:
        return None
    summary: dict[str, object] = {
        "room_id": room_id,
        "num_joined_members": count,
        "world_readable": json.get("world_readable") is True,
        "guest_can_join": json.get("guest_can_join") is True,
    }
    for key, kind in _TYPES.items():
        if isinstance(json.get(key), kind):
            summary[key] = json[key]
    allowed = json.get("allowed_room_ids")
    if isinstance(allowed, list) and allowed:
        summary["allowed_room_ids"] = [text for text in allowed if parse_room_id(text) is not None]
    return summary


def is_open_to(summary: Mapping[str, object], memberships: Mapping[str, str]) -> bool:
    """Return whether a user may look at a room: they are in it, may enter or knock, or it is shown.

    `memberships` is what they are in this room, and in those whose members it lets in.

    Spec: client-server-api#get_matrixclientv1roomsroomidhierarchy
    """
    own = memberships.get(str(summary["room_id"]))
    if own in ("join", "invite") or summary["world_readable"] is True:
        return True
    if own == "ban":
        return False
    return anybody_may_ask(summary) or any(
        memberships.get(room_id) == "join" for room_id in rooms_let_in(summary)
    )


def anybody_may_ask(summary: Mapping[str, object]) -> bool:
    """Return whether everybody may join a room, or knock on it, by its join rule."""
    rule = summary.get("join_rule", "public")
    version = ROOM_VERSIONS.get(str(summary.get("room_version", "")))
    return (
        rule == "public"
        or (rule == "knock" and (version is None or version.knows_knocking))
        or (rule == "knock_restricted" and (version is None or version.knows_knock_restricted))
    )


def rooms_let_in(summary: Mapping[str, object]) -> Sequence[str]:
    """Return the rooms whose members may join a restricted room.

    Spec: client-server-api#restricted-rooms
    """
    allowed = summary.get("allowed_room_ids")
    version = ROOM_VERSIONS.get(str(summary.get("room_version", "")))
    if not isinstance(allowed, list) or (
        version is not None and not version.knows_restricted_joins
    ):
        return ()
    return allowed
