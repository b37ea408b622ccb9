"""Connections of sliding sync: what each was sent, and the `pos` that names it.

`s123_45.ab12` is: everything up to position 123 of the stream, for a connection that was sent what
row 45 says, of a request with digest ab12. A room that the row names is *live*, unless it says up
to which position it was sent: then it had news while no list or subscription matched it. So the row
stays the same as long as only live rooms have news, and nothing is written for that.

MSC4186#connections
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import immutables
import orjson

from minihs.base.errors import UnknownPos
from minihs.protocol import canonical_json
from minihs.services.sync.sliding_request import Position, RequiredState, RoomConfig
from minihs.storage import sliding

if TYPE_CHECKING:
    from minihs.services.context import Services
    from minihs.services.sync.sliding_request import SlidingRequest

Kind = Literal["join", "left", "outside"]
_POS = re.compile(r"s([0-9]{1,18})_([0-9]{1,18})\.([0-9a-f]{12})", re.ASCII)


@dataclass(frozen=True, slots=True)
class SentRoom:
    """What a connection was sent of a room.

    `upto` is None where that is everything up to the `pos`. `kind` is how the user stood to the
    room: joined, departed, or outside of it (invited, knocking, or never let in).
    """

    upto: int | None
    kind: Kind
    config: RoomConfig
    is_dm: bool


@dataclass(frozen=True, slots=True)
class Connection:
    """What a connection was sent: rooms, and the extensions (with scopes) of its last answer."""

    rooms: immutables.Map[str, SentRoom] = field(default_factory=immutables.Map)
    extensions: frozenset[str] = frozenset()


NEW = Connection()


def parse_position(pos: str) -> Position:
    """Return what a `pos` says.

    Raises:
        UnknownPos: it is not one of ours.
    """
    found = _POS.fullmatch(pos)
    if found is None:
        raise UnknownPos("This is not a position of this server.")
    return Position(int(found[1]), int(found[2]), found[3])


def format_position(position: Position) -> str:
    """Return the `pos` that says so."""
    return f"s{position.upto}_{position.state_nid}.{position.digest}"


async def load(services: Services, request: SlidingRequest) -> Connection:
    """Return what the connection was sent when the request's `pos` was handed out.

    Raises:
        UnknownPos: it was handed out to another user, device or connection, or long ago.
    """
    position = request.position
    if position is None:
        return NEW
    owner = (request.requester.device_nid, request.conn_id)
    cached = services.sliding.connections.get((position.state_nid, *owner))
    if cached is None:
        json = await sliding.fetch_state(services.db, position.state_nid, *owner)
        if json is None:
            raise UnknownPos("This position is not known any more.")
        cached = _read(json)
        _keep(services, request, position.state_nid, cached)
    if position.upto > services.follower.head:
        raise UnknownPos("This position was never handed out.")
    return cached


async def save(
    services: Services, request: SlidingRequest, old: Connection, new: Connection
) -> int:
    """Return the number of a connection's new state; nothing is written where it is the old one."""
    position = request.position
    if position is not None and (new is old or new == old):
        return position.state_nid
    state_nid = await sliding.insert_state(
        services.db,
        request.requester.device_nid,
        request.conn_id,
        0 if position is None else position.state_nid,
        _written(new),
    )
    _keep(services, request, state_nid, new)
    return state_nid


def _keep(
    services: Services, request: SlidingRequest, state_nid: int, connection: Connection
) -> None:
    key = (state_nid, request.requester.device_nid, request.conn_id)
    services.sliding.connections.put(key, connection, 1 + len(connection.rooms))


def _written(connection: Connection) -> str:
    """Return a connection as JSON; room configurations are named by their place in a list."""
    configs: dict[RoomConfig, int] = {}
    rooms = {
        room_id: [
            sent.upto,
            sent.kind,
            configs.setdefault(sent.config, len(configs)),
            sent.is_dm,
        ]
        for room_id, sent in connection.rooms.items()
    }
    return orjson.dumps(
        {
            "rooms": rooms,
            "configs": [
                [c.timeline_limit, [[r.include, r.exclude, r.lazy_members] for r in c.required]]
                for c in configs
            ],
            "extensions": sorted(connection.extensions),
        }
    ).decode()


def _read(json: str) -> Connection:
    """Return the connection of JSON that `_written` made."""
    match canonical_json.decode(json):
        case {"rooms": dict(rooms), "configs": list(configs), "extensions": list(extensions)}:
            known = [_config(config) for config in configs]
            sent = {
                str(room_id): SentRoom(upto, kind, known[config], is_dm)
                for room_id, (upto, kind, config, is_dm) in rooms.items()
            }
            return Connection(immutables.Map(sent), frozenset(map(str, extensions)))
        case _:
            raise ValueError("this is not what a connection was sent")


def _config(json: object) -> RoomConfig:
    match json:
        case [int(limit), list(required)]:
            return RoomConfig(
                limit,
                tuple(
                    RequiredState(
                        tuple((t, k) for t, k in include),
                        tuple((t, k) for t, k in exclude),
                        lazy is True,
                    )
                    for include, exclude, lazy in required
                ),
            )
        case _:
            raise ValueError("this is not a room configuration")
