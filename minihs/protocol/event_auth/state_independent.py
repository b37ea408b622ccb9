"""The authorization rules that need nothing but the event and the auth events that it names.

They never change their answer: an event that fails here is rejected on every server, for ever.

Spec: server-server-api#checks-performed-on-receipt-of-a-pdu, and the first rules of
rooms/v1#authorisation-rules … rooms/v12#authorisation-rules
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.event_auth.errors import rejection
from minihs.protocol.event_auth.selection import select_auth_keys_of
from minihs.protocol.event_auth.state_dependent import check_state_dependent
from minihs.protocol.identifiers import parse_user_id, server_name_of
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.signatures import required_signers, signing_key_ids
from minihs.protocol.state_keys import CREATE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, StateKey


def check_against_auth_events(
    event: Event, auth_events: Collection[Event], rejected: Collection[EventId] = ()
) -> None:
    """Refuse an event that its own auth events do not allow.

    The arguments are those of `check_state_independent`. That signatures are *right* is for
    `signatures.verify_event_signature`; here they must be there.

    Raises:
        EventAuthError: With the rule that rejects it.

    Spec: server-server-api#checks-performed-on-receipt-of-a-pdu
    """
    check_signers(event)
    check_state_independent(event, auth_events, rejected)
    check_state_dependent(event, {auth_event.key: auth_event for auth_event in auth_events})


def check_signers(event: Event) -> None:
    """Refuse an event that lacks a signature it must have.

    Raises:
        EventAuthError: If so.
    """
    for server_name in required_signers(event):
        if not signing_key_ids(event.pdu, server_name):
            raise rejection(event, "signatures.missing", f"{server_name} has not signed the event")


def check_state_independent(
    event: Event, auth_events: Collection[Event], rejected: Collection[EventId] = ()
) -> None:
    """Refuse an event that breaks a rule which no room state can heal.

    Args:
        event: The event in question.
        auth_events: The events of `event.auth_event_ids`; since v12 that includes the create event.
        rejected: Those of them (or any) that were rejected themselves.

    Raises:
        EventAuthError: With the rule that rejects it.
    """
    if event.type == "m.room.create":
        _check_create(event)
    else:
        _check_auth_events(event, auth_events, rejected)


def _check_create(event: Event) -> None:
    if event.prev_event_ids:
        raise rejection(event, "create.prev_events", "a create event has no prev_events")
    room_version = event.room_version
    if room_version.room_id_is_create_event_id:
        if "room_id" in event.pdu:  # Since v12: its own ID becomes the room's.
            raise rejection(event, "create.room_id", "the create event names a room")
    elif server_name_of(event.room_id) != server_name_of(event.sender):  # v1–v11.
        raise rejection(event, "create.room_id", "the room ID is not of the sender's server")
    claimed = event.content.get("room_version", "1")
    if not isinstance(claimed, str) or claimed not in ROOM_VERSIONS:
        raise rejection(event, "create.room_version", "the room version is not recognised")
    if room_version.creator_is_in_content and "creator" not in event.content:  # v1–v10.
        raise rejection(event, "create.creator", "content has no creator")
    if room_version.creators_are_privileged and "additional_creators" in event.content:
        creators = event.content["additional_creators"]  # Since v12.
        if not isinstance(creators, list) or None in map(parse_user_id, creators):
            raise rejection(
                event, "create.additional_creators", "additional_creators is not a list of user IDs"
            )


def _check_auth_events(
    event: Event, auth_events: Collection[Event], rejected: Collection[EventId]
) -> None:
    by_id = {auth_event.event_id: auth_event for auth_event in auth_events}
    if missing := [event_id for event_id in event.auth_event_ids if event_id not in by_id]:
        raise rejection(event, "auth_events.unknown", f"auth events are not known: {missing}")

    named = [by_id[event_id] for event_id in event.auth_event_ids]
    if event.create_event_id is not None:  # Since v12 the create event, implied, comes last.
        create = named.pop()
        if create.key != CREATE or not create.is_state or create.event_id in rejected:
            raise rejection(event, "room_id.create", "the room ID is not that of a create event")
    elif not any(named_event.key == CREATE for named_event in named):  # v1–v11.
        raise rejection(event, "auth_events.create", "auth_events do not name the create event")
    _check_named(event, named, rejected)


def _check_named(event: Event, named: Iterable[Event], rejected: Collection[EventId]) -> None:
    selected = select_auth_keys_of(event)
    seen: set[StateKey] = set()
    for auth_event in named:
        what = f"{auth_event.event_id} ({auth_event.type})"
        if auth_event.room_id != event.room_id:
            raise rejection(event, "auth_events.room_id", f"{what} is of another room")
        if auth_event.key in seen:
            raise rejection(event, "auth_events.duplicate", f"{what} is there twice")
        if not auth_event.is_state or auth_event.key not in selected:
            raise rejection(event, "auth_events.selection", f"{what} does not belong there")
        if auth_event.event_id in rejected:
            raise rejection(event, "auth_events.rejected", f"{what} was itself rejected")
        seen.add(auth_event.key)
