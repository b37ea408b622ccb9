"""Stripped state: what somebody is shown of a room to which they are invited, or knock.

It is kept as it came; with the ids of its events, if it is of a room of ours. What was redacted
since, by itself or with all that its sender said (MSC4293), is shown redacted; and where that is
the invite, so is whatever its sender wrote: the reason, their name, their picture.

Spec: client-server-api#stripped-state
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import canonical_json
from minihs.protocol.identifiers import EventId
from minihs.protocol.redaction import redact
from minihs.storage import stripped_states

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from minihs.protocol.events import Event
    from minihs.services.context import Services
    from minihs.storage.stripped_states import StrippedState

PAGE = 1_000


async def load_stripped(
    services: Services, user_id: str, room_ids: Collection[str]
) -> dict[str, list[object]]:
    """Return the stripped state that came with a user's invites and knocks, by room."""
    rows = await stripped_states.list_of_user(services.db, user_id, room_ids)
    return {
        row.room_id: [_shown(event) for event in events]
        for row, events in await _with_redactions(services, rows)
    }


def _shown(event: object) -> object:
    """Return an event of stripped state as clients are given it."""
    if isinstance(event, dict):
        return {key: value for key, value in event.items() if key != "event_id"}
    return event


async def _with_redactions(
    services: Services, rows: Collection[StrippedState]
) -> list[tuple[StrippedState, list[object]]]:
    """Return stripped states with no more of what was redacted since than is kept."""
    decoded = [(row, canonical_json.decode(row.json)) for row in rows]
    states = [(row, events) for row, events in decoded if isinstance(events, list)]
    of_rooms = (_id_of(event) for _, events in states for event in events)
    ids = {row.member_id for row in rows}.union(filter(None, of_rooms))
    stored = await services.events.get_many(list(ids))
    redacted = {i: one.event for i, one in stored.items() if one.redacted_by is not None}
    return [
        (row, [_left_of(event, redacted, redacted.get(row.member_id)) for event in events])
        for row, events in states
    ]


def _id_of(event: object) -> EventId | None:
    """Return the id of an event of stripped state; None in what another server gave us."""
    return event.get("event_id") if isinstance(event, dict) else None


def _left_of(event: object, redacted: Mapping[EventId, Event], member: Event | None) -> object:
    """Return what is left of an event of stripped state.

    `member`: the event that invites, if it was redacted. Then all that its sender wrote goes.
    """
    if not isinstance(event, dict):
        return event
    own = redacted.get(EventId(event.get("event_id", "")))
    if own is None and member is not None and event.get("sender") == member.sender:
        own = member
    if own is None:
        return event
    return {**event, "content": redact(event, own.room_version)["content"]}


async def purge_stripped(services: Services, room_nid: int, sender: str) -> None:
    """Take out of the database what somebody wrote into the stripped state of a room.

    As far as it is redacted, or the invite is over: those of a later stay are not touched.
    MSC4293#proposal
    """
    sender_json = '"sender":' + canonical_json.encode(sender).decode()
    after = ""
    while rows := await stripped_states.list_by_sender(
        services.db, room_nid, sender_json, after, PAGE
    ):
        after = rows[-1].user_id
        for row, events in await _with_redactions(services, rows):
            json = None if row.is_over else canonical_json.encode_any(events).decode()
            if json != row.json:
                await stripped_states.replace(services.db, row, json)
