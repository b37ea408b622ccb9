"""Templates: what a resident server gives us to make a membership of, and what comes back signed.

They are not trusted. What is signed says who, where and what by our own words; the resident only
decides where in the room's graph it stands. A template that names something else is refused.

Spec: server-server-api#joining-rooms
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.protocol.canonical_json import CanonicalJsonError
from minihs.protocol.event_assembly import EventDraft, build_event
from minihs.protocol.events import Event
from minihs.protocol.identifiers import parse_user_id
from minihs.protocol.membership import AUTHORISING_USER
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.signatures import with_signatures_of
from minihs.services.rooms.send import own_event_id
from minihs.services.rooms.verification import BadPduError, is_signed_by, read_pdu

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId, RoomId, ServerName, UserId
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services


@dataclass(frozen=True, slots=True)
class RemoteChange:
    """What a local user wants to become in a room that we are not in.

    `content` is all of the event's content; `via` are servers to ask first.
    """

    room_id: RoomId
    user_id: UserId
    content: Mapping[str, object]
    via: Sequence[str] = ()

    @property
    def membership(self) -> str:
        """What the user wants to become."""
        return str(self.content["membership"])


@dataclass(frozen=True, slots=True)
class Template:
    """What we take from a resident server's template: the place in the room's graph.

    `vouching` is the resident's user who vouches for a restricted join.
    """

    room_version: RoomVersion
    depth: int
    prev_event_ids: Sequence[EventId]
    auth_event_ids: Sequence[EventId]
    vouching: str | None


class BadTemplateError(ValueError):
    """A template for something else than what we want to do."""


def read_template(change: RemoteChange, made: Mapping[str, object]) -> Template:
    """Return the place in the graph that a template gives to the event we want.

    Raises:
        BadTemplateError: it is for another event, or of a room version that we do not know.

    Spec: server-server-api#get_matrixfederationv1make_joinroomiduserid
    """
    version = ROOM_VERSIONS.get(str(made.get("room_version", "1")))
    if version is None:
        raise BadTemplateError("the room version is not known")
    match made.get("event"):
        case {"content": {"membership": str(membership), **content}, **event}:
            pass
        case _:
            raise BadTemplateError("the template has no content with a membership")
    wanted = {
        "type": "m.room.member",
        "room_id": change.room_id,
        "sender": change.user_id,
        "state_key": change.user_id,
    }
    for key, value in wanted.items():
        if event.get(key) != value:
            raise BadTemplateError(f"the template's {key} is not {value}")
    if membership != change.membership:
        raise BadTemplateError(f"the template's membership is not {change.membership}")
    vouching = content.get(AUTHORISING_USER) if membership == "join" else None
    if vouching is not None and (
        parse_user_id(vouching) is None or not version.knows_restricted_joins
    ):
        raise BadTemplateError("nobody can vouch like that")
    lenient = Event.from_pdu(event, version, "")  # type: ignore[arg-type]  # never asked for its id
    if not lenient.prev_event_ids:
        raise BadTemplateError("the template follows no event")
    return Template(
        version,
        lenient.depth,
        lenient.prev_event_ids,
        [e for e in lenient.auth_event_ids if e != lenient.create_event_id],
        vouching if isinstance(vouching, str) else None,
    )


def build_in_place(services: Services, change: RemoteChange, template: Template) -> Event:
    """Return our event in the place that a template gave it, signed.

    Raises:
        BadTemplateError: there it is no event.
    """
    content = {key: value for key, value in change.content.items() if key != AUTHORISING_USER}
    if template.vouching is not None:
        content[AUTHORISING_USER] = template.vouching
    version = template.room_version
    try:
        event = build_event(
            EventDraft(
                room_id=change.room_id,
                sender=change.user_id,
                type="m.room.member",
                content=content,
                origin_server_ts=services.clock.now_ms(),
                state_key=change.user_id,
                extra={"origin": services.server_name},  # Other servers may ask for it.
            ),
            room_version=version,
            depth=template.depth,
            prev_event_ids=template.prev_event_ids,
            auth_event_ids=template.auth_event_ids,
            server_name=services.server_name,
            signing_key=services.signing_key,
            event_id=own_event_id(services) if version.event_id_source == "server" else None,
        )
        read_pdu(event.pdu, version)  # What is not one, nobody will take for one.
    except (CanonicalJsonError, BadPduError) as error:
        raise BadTemplateError(str(error)) from error
    return event


async def countersigned(
    services: Services, event: Event, signed: object, server: ServerName
) -> Event:
    """Return our event with another server's signature, from the copy that it signed.

    Nothing but the signature is taken from that copy.

    Raises:
        BadTemplateError: it is another event, or not signed.

    Spec: server-server-api#validating-hashes-and-signatures-on-received-events
    """
    if not isinstance(signed, dict):
        raise BadTemplateError("the event did not come back")
    version = event.room_version
    try:
        if Event.from_pdu(signed, version).event_id != event.event_id:
            raise BadTemplateError("another event came back")
        # Of room versions 1 and 2 an id is only a name: what is verified here is our own event.
        pdu = with_signatures_of(event.pdu, signed, server)
    except CanonicalJsonError as error:
        raise BadTemplateError(str(error)) from error
    both = Event.from_pdu(pdu, version, event.event_id)
    if not await is_signed_by(services, both, server):
        raise BadTemplateError(f"{server} did not sign the event")
    return both
