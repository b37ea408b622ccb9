"""Walking through a space: its rooms, those of the spaces in it, and so on, a page at a time.

A page is found by walking from the root again and leaving out what was shown before: a token is a
number of rooms, and nothing is kept for it. Rooms that we are in cost a few statements for each
space. For others, other servers are asked, one after the other; what they told is kept for a while,
and a page ends early rather than letting its reader wait for many of them.

Spec: client-server-api#discovering-rooms-within-spaces
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.errors import Forbidden, InvalidParam
from minihs.base.limits import (
    SPACE_DEPTH_MAX,
    SPACE_PAGE_MS,
    SPACE_ROOMS_MAX,
)
from minihs.services.rooms.summaries import ask, chosen, list_open, load_summaries

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minihs.protocol.identifiers import RoomId, UserId
    from minihs.services.context import Services
    from minihs.services.rooms.summaries import Json, Summary

_TOKEN = re.compile(r"h([0-9]{1,6})_([0-9]{1,16})_([0-9]{1,3})([as])", re.ASCII)


@dataclass(frozen=True, slots=True)
class SpaceQuery:
    """What of a space is asked for. None stands for what the token says, or else for the default.

    `suggested_only`: only children that the space suggests. `max_depth`: how far to go; 0 is the
    space alone.
    """

    limit: int
    suggested_only: bool | None = None
    max_depth: int | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class _Page:
    """Where a page begins: how many rooms were shown before, in a walk begun at some time."""

    skip: int
    began_ms: int
    max_depth: int
    suggested_only: bool

    def token(self, skip: int) -> str:
        """Return the token of the page that begins after `skip` rooms."""
        kind = "s" if self.suggested_only else "a"
        return f"h{skip}_{self.began_ms}_{self.max_depth}{kind}"


@dataclass(frozen=True, slots=True)
class _Place:
    """A room that is to be looked at. `told` is what its parent's server says of it."""

    room_id: RoomId
    via: Sequence[str]
    depth: int
    told: Summary | None = None


@dataclass(slots=True)
class _Walk:
    """A walk, depth first. `places` are those to come, the next one last.

    `depths` says how deep a room was met. `ours` has the rooms that we are in: None is one that
    the user may not look at.
    """

    services: Services
    user_id: UserId
    page: _Page
    places: list[_Place]
    depths: dict[str, int] = field(default_factory=dict)
    ours: dict[str, Summary | None] = field(default_factory=dict)

    async def look_up(self, room_ids: Sequence[str]) -> None:
        """Read what there is to tell of those of the rooms that we are in."""
        new = [room_id for room_id in room_ids if room_id not in self.ours]
        found = await load_summaries(self.services, new) if new else {}
        shown = await list_open(self.services, self.user_id, found.values())
        self.ours |= {room: summary if room in shown else None for room, summary in found.items()}

    async def enter(self, place: _Place) -> Summary | None:
        """Return a room that the user may look at, and put its children upon those to come."""
        told: Mapping[str, Summary] = {}
        hidden: Collection[str] = ()
        if place.room_id in self.ours:
            summary = self.ours[place.room_id]
        else:
            summary = place.told
            if summary is None or summary.is_space:
                answer = await ask(
                    self.services, place.room_id, place.via,
                    suggested_only=self.page.suggested_only, since_ms=self.page.began_ms,
                )  # fmt: skip
                summary = answer.summary or summary
                told, hidden = answer.children, answer.inaccessible
            if summary and not await list_open(self.services, self.user_id, [summary]):
                summary = None
        if summary is None or place.depth >= self.page.max_depth:
            return summary
        links = chosen(summary.links, suggested_only=self.page.suggested_only)
        await self.look_up([link.child for link in links])
        self.places += [
            _Place(link.child, link.via, place.depth + 1, told.get(link.child))
            for link in reversed(links)
            if link.child in self.ours or link.child not in hidden
        ]
        return summary


async def get_space_hierarchy(
    services: Services, user_id: UserId, room_id: RoomId, query: SpaceQuery
) -> Json:
    """Return a page of the rooms below a space that a user may look at, the space first.

    Raises:
        Forbidden: the user may not look at the space, or there is none.
        InvalidParam: the token is none of ours, or belongs to another question.

    Spec: client-server-api#get_matrixclientv1roomsroomidhierarchy
    """
    page = _page(query, services.clock.now_ms())
    until_ms = services.clock.monotonic_ms() + SPACE_PAGE_MS
    walk = _Walk(services, user_id, page, [_Place(room_id, (), 0)])
    await walk.look_up([room_id])
    if walk.ours.get(room_id) is None:
        raise Forbidden("You are not allowed to view this room.")
    rooms: list[Json] = []
    met = 0
    while walk.places and met < SPACE_ROOMS_MAX:
        if rooms and services.clock.monotonic_ms() >= until_ms:
            return {"rooms": rooms, "next_batch": page.token(met)}
        place = walk.places.pop()
        depth = walk.depths.get(place.room_id)
        if depth is not None and depth <= place.depth:
            continue
        summary = await walk.enter(place)
        walk.depths[place.room_id] = place.depth
        if summary is None or depth is not None:
            continue
        if len(rooms) == query.limit:
            return {"rooms": rooms, "next_batch": page.token(met)}
        met += 1
        if met > page.skip:
            rooms.append(summary.with_links(suggested_only=page.suggested_only))
    return {"rooms": rooms}


def _page(query: SpaceQuery, now_ms: int) -> _Page:
    """Return the page that is asked for."""
    if query.token is None:
        depth = SPACE_DEPTH_MAX if query.max_depth is None else query.max_depth
        return _Page(0, now_ms, depth, query.suggested_only or False)
    found = _TOKEN.fullmatch(query.token)
    if found is None:
        raise InvalidParam("This is not a pagination token of this server.")
    page = _Page(int(found[1]), int(found[2]), int(found[3]), found[4] == "s")
    if query.suggested_only not in (None, page.suggested_only) or (
        query.max_depth not in (None, page.max_depth)
    ):
        raise InvalidParam("suggested_only and max_depth cannot change from page to page.")
    return page
