"""What those outside a room are told of it: its name, how to enter it, its place among spaces.

Of rooms that somebody here is in we know it ourselves. Of others, other servers are asked.

Spec: client-server-api#room-summaries
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import NotFound
from minihs.base.limits import SPACE_CHILDREN_MAX, SUMMARY_KEPT_MS, SUMMARY_TIMEOUT_MS
from minihs.protocol.client_format import stripped_state
from minihs.protocol.spaces import (
    CHILD,
    SPACE,
    SpaceLink,
    is_open_to,
    ordered,
    read_link,
    read_summary,
    rooms_let_in,
)
from minihs.protocol.state_keys import ENCRYPTION, JOIN_RULES
from minihs.remote.transport import RemoteError
from minihs.services.rooms.aliases import find_room
from minihs.services.rooms.candidates import candidates
from minihs.services.rooms.directory import LISTED_KEYS, listed_entry, load_listed_state
from minihs.services.rooms.restricted_joins import allowed_rooms
from minihs.services.rooms.templates import RemoteChange
from minihs.storage import directory
from minihs.storage import membership as memberships

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minihs.protocol.identifiers import RoomId, ServerName, UserId
    from minihs.services.context import Services

SERVERS_ASKED_MAX = 3
Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Summary:
    """What is told of a room, and the links to its children if it is a space, in their order."""

    json: Json
    links: Sequence[SpaceLink] = ()

    @property
    def room_id(self) -> str:
        """The room."""
        return str(self.json["room_id"])

    @property
    def is_space(self) -> bool:
        """Whether it can have children."""
        return self.json.get("room_type") == SPACE

    def with_links(self, *, suggested_only: bool) -> Json:
        """Return it as both APIs show a room of a space.

        Spec: client-server-api#get_matrixclientv1roomsroomidhierarchy
        """
        links = chosen(self.links, suggested_only=suggested_only)
        return {**self.json, "children_state": [link.json for link in links]}


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """What another server told: a room, those of its children that we may know, and those not.

    `summary` is None where no server told anything.
    """

    at_ms: int
    summary: Summary | None
    children: Mapping[str, Summary]
    inaccessible: Collection[str]


def chosen(links: Sequence[SpaceLink], *, suggested_only: bool) -> Sequence[SpaceLink]:
    """Return the links that are asked for."""
    return [link for link in links if link.suggested] if suggested_only else links


# --- rooms that we are in ----------------------------------------------------------------------


async def load_summaries(services: Services, room_ids: Sequence[str]) -> dict[str, Summary]:
    """Return what there is to tell of those of the rooms that somebody here is in."""
    known = await directory.list_our_rooms(services.db, room_ids)
    rooms = [room for room, _ in known]
    states = await load_listed_state(services, rooms, [*LISTED_KEYS, ENCRYPTION])
    found: dict[str, Summary] = {}
    for room, version in known:
        state = states[room.room_id]
        entry = listed_entry(room, state) | {"room_version": version}
        encryption, rules = state.get(ENCRYPTION), state.get(JOIN_RULES)
        if encryption is not None and isinstance(encryption.content.get("algorithm"), str):
            entry["encryption"] = encryption.content["algorithm"]
        if rules is not None and entry["join_rule"] in ("restricted", "knock_restricted"):
            entry["allowed_room_ids"] = allowed_rooms(rules.content)
        links: Sequence[SpaceLink] = ()
        if entry.get("room_type") == SPACE:
            links = await _load_links(services, room.state_id)
        found[room.room_id] = Summary(entry, links)
    return found


async def _load_links(services: Services, state_id: int) -> Sequence[SpaceLink]:
    """Return the links from a space to its children."""
    state = await services.states.get(state_id)
    ids = [event_id for (kind, _), event_id in state.entries.items() if kind == CHILD]
    events = await services.events.get_many(ids)
    links = (
        read_link({**stripped_state(event), "origin_server_ts": event.origin_server_ts})
        for event in (found.event for found in events.values() if found.redacted_by is None)
    )
    return ordered(link for link in links if link is not None)[:SPACE_CHILDREN_MAX]


async def list_open(
    services: Services, user_id: UserId | None, summaries: Collection[Summary]
) -> set[str]:
    """Return those of the rooms that a user may look at; None is somebody who has not logged in."""
    asked = {summary.room_id for summary in summaries}
    for summary in summaries:
        asked.update(rooms_let_in(summary.json))
    own: Mapping[str, str] = {}
    if user_id is not None and asked:
        own = await memberships.list_memberships(services.db, user_id, sorted(asked))
    return {summary.room_id for summary in summaries if is_open_to(summary.json, own)}


# --- rooms that we are not in ------------------------------------------------------------------


async def ask(
    services: Services,
    room_id: str,
    servers: Sequence[str],
    *,
    suggested_only: bool = False,
    since_ms: int | None = None,
) -> RemoteAnswer:
    """Return what the first server that tells something tells of a room.

    What was told lately is told again; that nobody told anything, only if it was found out since
    `since_ms` (None: never).
    Spec: server-server-api#get_matrixfederationv1hierarchyroomid
    """
    now_ms, key = services.clock.now_ms(), (room_id, suggested_only)
    kept = services.remote_summaries.get(key)
    if kept is not None:
        good_since_ms = since_ms if kept.summary is None else now_ms - SUMMARY_KEPT_MS
        if good_since_ms is not None and good_since_ms <= kept.at_ms <= now_ms:
            return kept
    found = RemoteAnswer(now_ms, None, {}, ())
    others = (name for name in dict.fromkeys(servers) if name != services.server_name)
    for server in list(others)[:SERVERS_ASKED_MAX]:
        answer = await services.remote.get_room_hierarchy(
            server, room_id, suggested_only=suggested_only, timeout_ms=SUMMARY_TIMEOUT_MS
        )
        if isinstance(answer, RemoteError):
            continue
        summary = _read(answer["room"])
        if summary is not None and summary.room_id == room_id:
            found = _answer(now_ms, summary, answer)
            break
    weight = 1 + len(found.children) + (0 if found.summary is None else len(found.summary.links))
    services.remote_summaries.put(key, found, weight)
    return found


def _answer(now_ms: int, summary: Summary, answer: Mapping[str, object]) -> RemoteAnswer:
    """Return what another server told of a room and of its children, and of nothing else."""
    children = {link.child for link in summary.links}
    listed, hidden = answer.get("children"), answer.get("inaccessible_children")
    told = [_read(json) for json in (listed if isinstance(listed, list) else ())]
    named = (room for room in (hidden if isinstance(hidden, list) else ()) if isinstance(room, str))
    return RemoteAnswer(
        now_ms,
        summary,
        {child.room_id: child for child in told if child is not None and child.room_id in children},
        children.intersection(named),
    )


def _read(json: object) -> Summary | None:
    summary = read_summary(json)
    if summary is None or not isinstance(json, dict):
        return None
    listed = json.get("children_state")
    links = [read_link(event) for event in (listed if isinstance(listed, list) else ())]
    known = ordered(link for link in links if link is not None)
    return Summary(summary, known[:SPACE_CHILDREN_MAX] if summary.get("room_type") == SPACE else ())


# --- one room ----------------------------------------------------------------------------------


async def get_room_summary(
    services: Services, user_id: UserId | None, room_id_or_alias: str, via: Sequence[str]
) -> Json:
    """Return what a user is told of a room, and what they are in it.

    Whoever has not logged in is told of rooms that we are in, and that everybody may enter, knock
    on or read; other servers are not asked for them.

    Raises:
        InvalidParam: it is neither a room id nor an alias.
        NotFound: there is no such room, or it is not for this user.

    Spec: client-server-api#get_matrixclientv1room_summaryroomidoralias
    """
    room_id, servers = await find_room(services, room_id_or_alias)
    summary = (await load_summaries(services, [room_id])).get(room_id)
    if summary is None and user_id is not None:
        summary = await _ask_candidates(services, user_id, room_id, [*via, *servers])
    if summary is None or not await list_open(services, user_id, [summary]):
        raise NotFound("Room not found.")
    if user_id is None:
        return summary.json
    own = await memberships.list_memberships(services.db, user_id, [room_id])
    return {**summary.json, "membership": own.get(room_id, "leave")}


async def _ask_candidates(
    services: Services, user_id: UserId, room_id: RoomId, via: Sequence[str]
) -> Summary | None:
    """Return what a server tells of a room that we are not in; as those through which to join."""
    change = RemoteChange(room_id, user_id, {"membership": "join"}, via)
    servers: Sequence[ServerName] = await candidates(services, change)
    return (await ask(services, room_id, servers)).summary
