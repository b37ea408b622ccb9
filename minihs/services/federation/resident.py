"""THE RESIDENT'S PART: letting users of other servers join, knock and leave; taking their invites.

Somebody who is outside asks twice. `make_…` gets a template: the event as it would stand in the
room now, if the rules allow it. `send_…` brings the event, signed by its sender's server; we sign
it, too, and from there on it is a PDU like any other: received, checked and committed by
`rooms.receive`. Whatever is sent there must be exactly the membership that the endpoint is for.

An invite comes the other way. Its room's state is unknown to us, so little can be checked; what we
sign is an invite, of a user of ours, by a user of the server that sends it, and nothing else.

Spec: server-server-api#joining-rooms, server-server-api#knocking-rooms,
server-server-api#inviting-to-a-room, server-server-api#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from minihs.base.errors import (
    Forbidden,
    IncompatibleRoomVersion,
    InvalidParam,
    LimitExceeded,
    NotFound,
)
from minihs.protocol.client_format import stripped_state
from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.events import Event
from minihs.protocol.hashes import signed_bytes
from minihs.protocol.identifiers import parse_user_id, server_name_of
from minihs.protocol.membership import AUTHORISING_USER, membership_of
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.signatures import with_signature
from minihs.protocol.state_keys import CREATE
from minihs.services.federation import answers
from minihs.services.rooms import commit, outsiders
from minihs.services.rooms.heads import load_head
from minihs.services.rooms.membership import check_invitable
from minihs.services.rooms.outsiders import ROOM_STATE_MAX, read_room_state
from minihs.services.rooms.receive import receive_pdus
from minihs.services.rooms.restricted_joins import find_authorising_user
from minihs.services.rooms.send import build_upon
from minihs.services.rooms.standing import current_events
from minihs.services.rooms.verification import (
    BadPduError,
    is_signed_by,
    read_pdu,
    verify_pdu,
    verify_pdus,
)
from minihs.storage import accounts, directory, timelines
from minihs.storage import membership as memberships
from minihs.storage.event_store import ACCEPTED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import RoomId, ServerName
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.storage.event_store import StoredEvent

Json = dict[str, object]

HEROES_MAX = 5
INVITES_OF_USER_MAX = 1_000  # Not yet answered.
INVITES_OF_USER_FROM_SERVER_MAX = 200
FULL_PAUSE_MS = 3_600_000


# --- templates ---------------------------------------------------------------------------------


async def make_membership(
    services: Services,
    origin: ServerName,
    room_id: RoomId,
    user_id: str,
    membership: str,
    room_versions: Sequence[str] | None,
) -> Json:
    """Return the template of a member event (`event`), and the room's version.

    `room_versions` are those that the other server knows; None: it need not.

    Raises:
        NotFound: this server is not in the room.
        Forbidden: the room does not allow it, or the user is of another server.
        IncompatibleRoomVersion, UnableToAuthoriseJoin, UnableToGrantJoin: see the passage.

    Spec: server-server-api#get_matrixfederationv1make_joinroomiduserid,
    server-server-api#get_matrixfederationv1make_knockroomiduserid,
    server-server-api#get_matrixfederationv1make_leaveroomiduserid
    """
    sender = parse_user_id(user_id)
    if sender is None or server_name_of(sender) != origin:
        raise Forbidden("You may only ask for users of your own server.")
    head = await _open(services, room_id)
    version = head.room_version
    if room_versions is not None and version.identifier not in room_versions:
        raise IncompatibleRoomVersion(
            "Your server does not know the version of this room.", room_version=version.identifier
        )
    content: Json = {"membership": membership}
    if membership == "join":
        vouching = await _vouching_user(services, head, sender)
        if vouching is not None:
            content[AUTHORISING_USER] = vouching
    draft = EventDraft(
        room_id=room_id,
        sender=sender,
        type="m.room.member",
        content=content,
        origin_server_ts=services.clock.now_ms(),
        state_key=sender,
    )
    planned = await build_upon(services, head, draft)
    template = {
        key: value
        for key, value in planned.event.pdu.items()
        if key not in ("hashes", "signatures", "event_id")
    }
    return {
        "room_version": version.identifier,
        "event": {**template, "origin": services.server_name},
    }


async def _open(services: Services, room_id: RoomId) -> RoomHead:
    """Return the head of a room that somebody of this server is in.

    Raises:
        NotFound: nobody is.
    """
    head = await load_head(services, room_id)
    if head is None or not head.extremities or not head.local_members:
        raise NotFound("This server is not in the room.")
    return head


async def _vouching_user(services: Services, head: RoomHead, user_id: str) -> str | None:
    """Return a user of ours who vouches for a join; None where nobody need.

    Raises:
        Forbidden, UnableToAuthoriseJoin, UnableToGrantJoin: nobody does.

    Spec: server-server-api#restricted-rooms
    """
    key = ("m.room.member", user_id)
    member = (await current_events(services, head, [key])).get(key)
    if membership_of(member) in ("join", "invite"):
        return None
    return await find_authorising_user(services, head, user_id)


# --- events that others send -------------------------------------------------------------------


async def take_membership(
    services: Services,
    origin: ServerName,
    room_id: RoomId,
    event_id: str,
    pdu: Mapping[str, object],
    membership: str,
) -> StoredEvent:
    """Take a member event of another server's user into its room; return it, signed by us as well.

    Raises:
        NotFound: this server is not in the room.
        InvalidParam: it is not the event that the endpoint is for, or not signed.
        Forbidden: the room does not allow it.
        UnableToAuthoriseJoin, UnableToGrantJoin: one of our users is to vouch for it, and may not.

    Spec: server-server-api#put_matrixfederationv2send_joinroomideventid,
    server-server-api#put_matrixfederationv2send_leaveroomideventid,
    server-server-api#put_matrixfederationv1send_knockroomideventid
    """
    head = await _open(services, room_id)
    try:
        event = read_pdu(dict(pdu), head.room_version)
    except BadPduError as error:
        raise InvalidParam(f"This is no event: {error}") from error
    _check_is(event, room_id, event_id, membership)
    if event.state_key != event.sender or server_name_of(event.sender) != origin:
        raise InvalidParam("Members of your server, and they alone, change their memberships.")
    vouching = event.content.get(AUTHORISING_USER)
    if membership == "join" and isinstance(vouching, str) and services.is_local(vouching):
        # By our signature we say so. It holds whatever else may let the user in.
        await find_authorising_user(services, head, event.sender)
    reasons = await receive_pdus(services, origin, room_id, [signed_by_us(services, event)])
    if (reason := reasons.get(event.event_id)) is not None:
        raise InvalidParam(f"The event is not accepted: {reason}.")
    stored = await services.events.get(event.event_id)
    if stored is None or stored.status != ACCEPTED:
        raise Forbidden("The room does not allow it.")
    return stored


def _check_is(event: Event, room_id: str, event_id: str, membership: str) -> None:
    """Refuse an event that is not the membership, of the room, that an endpoint is for.

    Raises:
        InvalidParam: so it is.
    """
    if event.room_id != room_id:
        raise InvalidParam("The event is of another room than the path.")
    if event.event_id != event_id:
        raise InvalidParam("The event has another id than the path.")
    if event.type != "m.room.member" or event.state_key is None:
        raise InvalidParam("This is not a membership event.")
    if membership_of(event) != membership:
        raise InvalidParam(f"The event's membership is not {membership}.")


def signed_by_us(services: Services, event: Event) -> dict[str, object]:
    """Return an event's PDU with our signature beside the others'.

    Spec: server-server-api#signing-events
    """
    key = services.signing_key
    signature = key.sign(signed_bytes(event.pdu, event.room_version))
    return with_signature(event.pdu, services.server_name, key.key_id, signature)


async def send_join(
    services: Services,
    origin: ServerName,
    room_id: RoomId,
    event_id: str,
    pdu: Mapping[str, object],
    *,
    omit_members: bool,
) -> Json:
    """Take a join; return the state before it, what that rests upon, and the join.

    With `omit_members` the state has only those member events that name the room, and nothing is
    sent twice.

    Raises:
        NotFound, InvalidParam, Forbidden, UnableToAuthoriseJoin, UnableToGrantJoin: as
            `take_membership`.

    Spec: server-server-api#put_matrixfederationv2send_joinroomideventid
    """
    servers = await directory.list_servers_in_room(services.db, room_id) if omit_members else []
    heroes = await _heroes(services, room_id) if omit_members else set[str]()
    stored = await take_membership(services, origin, room_id, event_id, pdu, "join")
    state = (await services.states.get(stored.state_before or 0)).entries
    state_ids = [
        entry
        for key, entry in state.items()
        if not omit_members or key[0] != "m.room.member" or key[1] in heroes
    ]
    chain = await answers.auth_chain_of(services, [*state_ids, stored.event_id])
    answer: Json = {
        "origin": services.server_name,
        "event": orjson.Fragment(stored.event.json),
        "state": await answers.pdu_list(services, state_ids),
        "members_omitted": omit_members,
    }
    if omit_members:
        present = set(state_ids)
        chain = [entry for entry in chain if entry not in present]
        answer["servers_in_room"] = servers
    answer["auth_chain"] = await answers.pdu_list(services, chain)
    return answer


async def _heroes(services: Services, room_id: RoomId) -> set[str]:
    """Return the members after whom a room is named that has no name of its own.

    Spec: client-server-api#calculating-the-display-name-for-a-room
    """
    head = await _open(services, room_id)
    if head.state.get("m.room.name") or head.state.get("m.room.canonical_alias"):
        return set()
    found = await timelines.list_heroes(services.db, [room_id], HEROES_MAX)
    return {user_id for user_id, _ in found[room_id]}


async def send_leave(
    services: Services,
    origin: ServerName,
    room_id: RoomId,
    event_id: str,
    pdu: Mapping[str, object],
) -> Json:
    """Take a leave: the rejection of an invite, or the end of a knock; return an empty object.

    Raises:
        NotFound, InvalidParam, Forbidden: as `take_membership`.

    Spec: server-server-api#put_matrixfederationv2send_leaveroomideventid
    """
    await take_membership(services, origin, room_id, event_id, pdu, "leave")
    return {}


async def send_knock(
    services: Services,
    origin: ServerName,
    room_id: RoomId,
    event_id: str,
    pdu: Mapping[str, object],
) -> Json:
    """Take a knock; return what tells the user what the room is (`knock_room_state`).

    Raises:
        NotFound, InvalidParam, Forbidden: as `take_membership`.

    Spec: server-server-api#put_matrixfederationv1send_knockroomideventid
    """
    stored = await take_membership(services, origin, room_id, event_id, pdu, "knock")
    head = await _open(services, room_id)
    shown = await outsiders.room_state_for_outsiders(services, head, stored.event)
    return {"knock_room_state": [orjson.Fragment(event.json) for event in shown]}


# --- invites of our users ----------------------------------------------------------------------


async def take_invite(
    services: Services,
    origin: ServerName,
    room_id: RoomId,
    event_id: str,
    pdu: Mapping[str, object],
    room_version_id: str,
    room_state: object,
) -> Json:
    """Take an invite of one of our users; return its event with our signature.

    Where this server is in the room, the invite comes once more as a PDU, and takes effect then.

    Raises:
        IncompatibleRoomVersion: this server does not know the room's version.
        InvalidParam: it is no invite of a user of ours by a user of that server, or not signed;
            or what came with it is not state of the room.
        NotFound: there is no such user here.
        Forbidden: the user wants no invites.
        LimitExceeded: the user has too many that they have not answered.

    Spec: server-server-api#put_matrixfederationv2inviteroomideventid
    """
    version = ROOM_VERSIONS.get(room_version_id)
    if version is None:
        raise IncompatibleRoomVersion(
            "This server does not know the room's version.", room_version=room_version_id
        )
    try:
        event = await verify_pdu(services, dict(pdu), version)
    except BadPduError as error:
        raise InvalidParam(f"This is no event: {error}") from error
    _check_is(event, room_id, event_id, "invite")
    if server_name_of(event.sender) != origin or not await is_signed_by(services, event, origin):
        raise InvalidParam("The invite is not by a user of your server, or not signed by it.")
    shown = await _checked_room_state(services, event, room_state)
    await _check_invitee(services, origin, event)
    head = await load_head(services, room_id)
    is_known = head is not None and bool(head.extremities)
    if is_known and head is not None and head.room_version is not version:
        raise InvalidParam("The room is of another version.")
    signed = signed_by_us(services, event)
    if head is None or not head.local_members:
        ours = Event.from_pdu(signed, version, event.event_id)
        await commit.commit_outside_event(services, ours, [*shown, stripped_state(ours)])
    unsigned = {"unsigned": pdu["unsigned"]} if "unsigned" in pdu else {}
    return {"event": {**signed, **unsigned}}


async def _check_invitee(services: Services, origin: ServerName, event: Event) -> None:
    """Refuse an invite that does not reach one of our users, or should not.

    Raises:
        InvalidParam, NotFound, Forbidden, LimitExceeded: see `take_invite`.
    """
    user_id = parse_user_id(event.state_key)
    if user_id is None or not services.is_local(user_id):
        raise InvalidParam("The invited user is not of this server.")
    account = await accounts.fetch_account(services.db, user_id)
    if account is None or account.deactivated:
        raise NotFound("There is no such user.")
    await check_invitable(services, user_id)
    waiting, of_server = await memberships.count_invites(services.db, user_id, origin)
    if waiting >= INVITES_OF_USER_MAX or of_server >= INVITES_OF_USER_FROM_SERVER_MAX:
        raise LimitExceeded(FULL_PAUSE_MS, "The user has too many invites to answer.")


async def _checked_room_state(
    services: Services, invite: Event, room_state: object
) -> list[dict[str, object]]:
    """Return the stripped state that came with an invite.

    Raises:
        InvalidParam: it is no list; or, since room version 12, not state of the room, or without
            its create event.

    Spec: server-server-api#put_matrixfederationv2inviteroomideventid
    """
    shown = read_room_state(room_state)
    if shown is None or not isinstance(room_state, list):
        raise InvalidParam("invite_room_state is not a list.")
    if invite.room_version.room_id_is_create_event_id:
        verified = await verify_pdus(services, room_state[:ROOM_STATE_MAX], invite.room_version)
        if any(event is None or event.room_id != invite.room_id for event in verified):
            raise InvalidParam("invite_room_state has what is not an event of the room.")
        if not any(event is not None and event.key == CREATE for event in verified):
            raise InvalidParam("invite_room_state lacks the create event.")
    return shown
