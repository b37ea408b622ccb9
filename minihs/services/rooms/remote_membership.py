"""Entering and leaving rooms through other servers: the handshakes, seen from our side.

A room that nobody of this server is in can only be joined, knocked on or left with the help of a
server that is: it gives us a template (`make_…`), and takes the event that we make (`send_…`).
Templates are not trusted. What is signed says who, where and what by our own words; the resident
only decides where in the room's graph it stands. A template that names something else is refused,
and so is the server that gave it.

Candidates are asked one after the other, until one helps. Invites go the other way: the invited
user's server signs our event before we commit it.

Spec: server-server-api#joining-rooms, server-server-api#knocking-rooms,
server-server-api#leaving-rooms-rejecting-invites, server-server-api#inviting-to-a-room
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minihs.base.errors import (
    Forbidden,
    IncompatibleRoomVersion,
    LimitExceeded,
    MatrixError,
    NotFound,
    Unavailable,
)
from minihs.protocol.canonical_json import CanonicalJsonError, decode, encode_strict
from minihs.protocol.client_format import strip_state, stripped_state
from minihs.protocol.event_assembly import EventDraft, build_event
from minihs.protocol.event_auth import EventAuthError, check_state_dependent, select_auth_keys_of
from minihs.protocol.events import Event
from minihs.protocol.identifiers import parse_server_name, parse_user_id, server_name_of
from minihs.protocol.membership import membership_of
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.signatures import with_signatures_of
from minihs.remote.transport import RemoteError
from minihs.services.rooms import commit
from minihs.services.rooms.commit import Plan, PlannedEvent
from minihs.services.rooms.heads import RoomHead, building
from minihs.services.rooms.remote_joins import BadRoomError, commit_join, read_given_room
from minihs.services.rooms.send import DEPTH_MAX, build_upon, load_state_events, own_event_id
from minihs.services.rooms.verification import BadPduError, is_signed_by, read_pdu
from minihs.storage import directory, timelines
from minihs.storage import membership as memberships
from minihs.storage.group_commit import Conflict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import EventId, RoomId, ServerName, StateKey, UserId
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services
    from minihs.services.rooms.commit import Origin

logger = logging.getLogger(__name__)

CANDIDATES_MAX = 20
ATTEMPTS = 20
ROOM_STATE_MAX = 50  # Entries of stripped state that we keep of what another server sent.
ROOM_STATE_BYTES_MAX = 65_536
CREATE: StateKey = ("m.room.create", "")
LEAVE_KNOWN_AFTER_MS = 3_600_000
AUTHORISING_USER = "join_authorised_via_users_server"

Draft = Callable[[RoomHead], Awaitable["EventDraft | EventId"]]


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


# --- is it for others to decide? ---------------------------------------------------------------


class Elsewhere(MatrixError):
    """A membership that can only be changed through servers that are in the room."""


async def is_for_others(services: Services, head: RoomHead, user_id: str, membership: str) -> bool:
    """Return whether users must ask other servers for a membership of theirs.

    So it is where nobody of this server is joined but others are, and for the answer to an invite
    (or the end of a knock) that is not part of the room as we know it.
    """
    if head.local_members and membership != "leave":
        return False
    row = await memberships.fetch_membership(services.db, head.room_id, user_id)
    waits = row is not None and row.membership in ("invite", "knock")
    if row is not None and waits and head.state.get("m.room.member", user_id) != row.event_id:
        return True
    return not head.local_members and await memberships.has_remote_members(
        services.db, head.room_id
    )


# --- joining, knocking, leaving ----------------------------------------------------------------


async def join(services: Services, change: RemoteChange) -> EventId:
    """Join a room through a server that is in it; return the join event's id.

    All who ask for it at the same time share one handshake.

    Raises:
        NotFound, Forbidden, IncompatibleRoomVersion, MatrixError: as the servers asked answered;
            502 where none could be reached.

    Spec: server-server-api#joining-rooms
    """
    return await services.handshakes.run(
        f"join {change.room_id} {change.user_id}",
        lambda: _through_any(services, change, _join_through),
    )


async def knock(services: Services, change: RemoteChange) -> EventId:
    """Knock on a room through a server that is in it; return the event's id.

    Raises:
        NotFound, Forbidden, IncompatibleRoomVersion, MatrixError: as `join`.

    Spec: server-server-api#knocking-rooms
    """
    return await services.handshakes.run(
        f"knock {change.room_id} {change.user_id}",
        lambda: _through_any(services, change, _knock_through),
    )


async def leave(services: Services, change: RemoteChange) -> EventId:
    """Reject an invite or retract a knock; return the event's id.

    Where no server helps, the user is rid of it all the same: nobody else hears of it then.

    Raises:
        NotFound, Forbidden: the user has nothing to do with the room.

    Spec: server-server-api#leaving-rooms-rejecting-invites
    """
    row = await memberships.fetch_membership(services.db, change.room_id, change.user_id)
    present = None if row is None else await services.events.get(row.event_id)
    if row is None or present is None:
        raise NotFound("Unknown room.")
    if row.membership == "leave":
        return row.event_id
    if row.membership not in ("invite", "knock"):
        raise Forbidden("You are not in this room.")
    try:
        return await services.handshakes.run(
            f"leave {change.room_id} {change.user_id}",
            lambda: _through_any(services, change, _leave_through),
        )
    except MatrixError as error:
        logger.info("%s leaves %s alone: %s", change.user_id, change.room_id, error.message)
    place = Template(
        present.event.room_version,
        min(present.event.depth + 1, DEPTH_MAX),
        [present.event_id],
        [present.event_id],
        None,
    )
    event = _build(services, change, place)
    return (await commit.commit_outside_event(services, event)).event_id


async def _join_through(
    services: Services, change: RemoteChange, server: ServerName
) -> EventId | RemoteError:
    """Join through one server."""
    versions = list(ROOM_VERSIONS)
    made = await services.remote.make_join(server, change.room_id, change.user_id, versions)
    if isinstance(made, RemoteError):
        return made
    template = read_template(change, made)
    await _require_leave_is_known(services, change, template)
    event = _build(services, change, template)
    answer = await services.remote.send_join(server, change.room_id, event.event_id, event.pdu)
    if isinstance(answer, RemoteError):
        return answer
    if template.vouching is not None:
        event = await _countersigned(
            services, event, answer.get("event"), server_name_of(template.vouching)
        )
    state, chain = answer["state"], answer["auth_chain"]
    if not isinstance(state, list) or not isinstance(chain, list):
        raise BadRoomError("state or auth_chain are no lists")
    given = await read_given_room(services, template.room_version, event, state, chain)
    return await commit_join(services, given)


async def _require_leave_is_known(
    services: Services, change: RemoteChange, template: Template
) -> None:
    """Refuse the help of a server that has yet to hear that the user is no longer in the room.

    It would take the join for one of somebody who is in. As soon as it has heard of both, state
    resolution decides between them, and may undo the join. After a while it no longer matters.

    Raises:
        BadTemplateError: the join would rest upon the one before.
    """
    row = await memberships.fetch_membership(services.db, change.room_id, change.user_id)
    if row is None or row.membership != "leave" or row.event_id in template.auth_event_ids:
        return
    events = await services.events.get_many([row.event_id, *template.auth_event_ids])
    gone = events.pop(row.event_id, None)
    now_ms = services.clock.now_ms()
    if gone is None or gone.event.origin_server_ts < now_ms - LEAVE_KNOWN_AFTER_MS:
        return
    for stored in events.values():
        event = stored.event
        if event.key == ("m.room.member", change.user_id) and membership_of(event) == "join":
            raise BadTemplateError("the server has yet to hear that the user had left")


async def _knock_through(
    services: Services, change: RemoteChange, server: ServerName
) -> EventId | RemoteError:
    """Knock through one server."""
    versions = [v.identifier for v in ROOM_VERSIONS.values() if v.knows_knocking]
    made = await services.remote.make_knock(server, change.room_id, change.user_id, versions)
    if isinstance(made, RemoteError):
        return made
    event = _build(services, change, read_template(change, made))
    answer = await services.remote.send_knock(server, change.room_id, event.event_id, event.pdu)
    if isinstance(answer, RemoteError):
        return answer
    shown = read_room_state(answer.get("knock_room_state")) or []
    shown = [*shown, stripped_state(event)]
    return (await commit.commit_outside_event(services, event, shown)).event_id


async def _leave_through(
    services: Services, change: RemoteChange, server: ServerName
) -> EventId | RemoteError:
    """Leave through one server."""
    made = await services.remote.make_leave(server, change.room_id, change.user_id)
    if isinstance(made, RemoteError):
        return made
    event = _build(services, change, read_template(change, made))
    answer = await services.remote.send_leave(server, change.room_id, event.event_id, event.pdu)
    if isinstance(answer, RemoteError):
        return answer
    return (await commit.commit_outside_event(services, event)).event_id


async def _through_any(
    services: Services,
    change: RemoteChange,
    through: Callable[[Services, RemoteChange, ServerName], Awaitable[EventId | RemoteError]],
) -> EventId:
    """Return what the first candidate achieves that achieves anything.

    Raises:
        MatrixError: nobody did.
    """
    failures: list[RemoteError] = []
    for server in await candidates(services, change):
        try:
            outcome = await through(services, change, server)
        except (BadTemplateError, BadRoomError) as error:
            outcome = RemoteError("bad_answer", server, str(error))
        if not isinstance(outcome, RemoteError):
            return outcome
        logger.info("%s of %s: %s", change.membership, change.user_id, outcome.describe())
        failures.append(outcome)
    raise _failure(failures)


async def candidates(services: Services, change: RemoteChange) -> list[ServerName]:
    """Return the servers to ask, the likeliest first."""
    row = await memberships.fetch_membership(services.db, change.room_id, change.user_id)
    named: list[str] = list(change.via)
    if row is not None and row.membership == "invite":
        inviter = server_name_of(row.sender)
        named = [*named, inviter] if change.membership == "join" else [inviter, *named]
    if set(change.via) <= {services.server_name}:  # A client that names others means those.
        named += await directory.list_servers_in_room(services.db, change.room_id)
        named += await _servers_shown(services, change)
        named.append(server_name_of(change.room_id))  # Since v12 that is nobody.
    found = dict.fromkeys(
        name
        for text in named
        if (name := parse_server_name(text)) is not None and name != services.server_name
    )
    return list(found)[:CANDIDATES_MAX]


async def _servers_shown(services: Services, change: RemoteChange) -> list[ServerName]:
    """Return the servers of those who made the room what we were shown when outside of it."""
    shown = await timelines.list_invite_states(services.db, change.user_id, [change.room_id])
    events = decode(shown.get(change.room_id, "[]"))
    return [
        server_name_of(event["sender"])
        for event in (events if isinstance(events, list) else ())
        if isinstance(event, dict) and isinstance(event.get("sender"), str)
    ]


def _failure(failures: Sequence[RemoteError]) -> MatrixError:
    """Return the error that tells the user most about why no server helped."""
    reached = [failure for failure in failures if failure.kind != "unreachable"]
    if not reached:
        return NotFound("No server that knows this room can be reached.")
    for failure in reached:
        if failure.errcode == "M_INCOMPATIBLE_ROOM_VERSION":
            version = failure.body.get("room_version")
            return IncompatibleRoomVersion(failure.message, room_version=version)
    for failure in reached:
        if failure.status == 403:
            return refusal_of(failure)
    for failure in reached:
        if failure.errcode in ("M_UNABLE_TO_AUTHORISE_JOIN", "M_UNABLE_TO_GRANT_JOIN"):
            return Forbidden(failure.message)
    return refusal_of(reached[0])


def refusal_of(failure: RemoteError) -> MatrixError:
    """Return what a user is told of another server's refusal, or of its silence."""
    if failure.kind == "unreachable":
        return NotFound(f"The server {failure.destination} cannot be reached.")
    if failure.status == 403:
        return Forbidden(failure.message, errcode=failure.errcode or None)
    if failure.status == 404:
        return NotFound(failure.message or "Not found.")
    if failure.status == 429:
        return LimitExceeded(failure.retry_after_ms or 1_000, failure.message)
    if failure.errcode == "M_INCOMPATIBLE_ROOM_VERSION":
        version = failure.body.get("room_version")
        return IncompatibleRoomVersion(failure.message, room_version=version)
    return MatrixError(f"{failure.destination} does not help: {failure.message}", status=502)


# --- inviting ----------------------------------------------------------------------------------


async def invite(
    services: Services,
    room_id: RoomId,
    user_id: UserId,
    decide: Draft,
    transaction: Origin | None = None,
) -> EventId:
    """Invite a user of another server: it signs the invite before we commit it.

    `decide` says what to send, or the event that makes it needless, as for `send_decided`.

    Raises:
        NotFound: this server is not in the room, or the user's server cannot be reached.
        Forbidden: the room's rules, or the user's server, are against it.

    Spec: server-server-api#inviting-to-a-room
    """
    async with building(services, room_id) as head:
        if head is None or not head.extremities:
            raise NotFound("Unknown room.")
        decided = await decide(head)
        if isinstance(decided, str):
            return decided
        named = {**decided.extra, "origin": services.server_name}  # Other servers may ask for it.
        planned = await build_upon(services, head, replace(decided, extra=named))
        planned.transaction = transaction
        shown = await commit.room_state_for_outsiders(services, head, planned.event)
    # Neither a transaction nor the room's turn waits for another server.
    event, server = planned.event, server_name_of(user_id)
    answer = await services.remote.invite(
        server,
        room_id,
        event.event_id,
        event.pdu,
        event.room_version.identifier,
        [of_room.pdu for of_room in shown],
    )
    if isinstance(answer, RemoteError):
        raise refusal_of(answer)
    try:
        planned.event = await _countersigned(services, event, answer["event"], server)
    except BadTemplateError as error:
        raise MatrixError(f"{server} did not take the invite: {error}", status=502) from error
    return await _commit_signed(services, planned)


async def _commit_signed(services: Services, planned: PlannedEvent) -> EventId:
    """Commit an event that was built a while ago, where it was built.

    Raises:
        Forbidden: the room has changed, and does not allow it any more.
        Unavailable: other processes were faster, time after time.
    """
    event = planned.event
    keys = [*select_auth_keys_of(event), CREATE]
    for _ in range(ATTEMPTS):
        async with building(services, event.room_id) as head:
            if head is None:
                raise NotFound("Unknown room.")
            current = await load_state_events(services, head.state, keys)
            try:
                check_state_dependent(event, {key: s.event for key, s in current.items()})
            except EventAuthError as error:
                raise Forbidden(error.message) from error
            plan = Plan(head)
            stored = await commit.add_event(services, plan, planned)
            durable = plan.submit(services)
        try:
            await durable
        except Conflict:
            if planned.transaction is not None and (
                known := await commit.find_by_transaction(
                    services, event.room_id, planned.transaction
                )
            ):
                return known
            continue
        return stored.event_id
    raise Unavailable("The room is too busy; try again.")


# --- templates ---------------------------------------------------------------------------------


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


def _build(services: Services, change: RemoteChange, template: Template) -> Event:
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


async def _countersigned(
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


def read_room_state(given: object) -> list[dict[str, object]] | None:
    """Return the stripped state that came with an invite or a knock; None if it is no list.

    What is no state event is left out, and so is what exceeds our limits, in size or in kind:
    clients are shown it unverified. Spec: client-server-api#stripped-state
    """
    if not isinstance(given, list):
        return None
    shown: list[dict[str, object]] = []
    bytes_left = ROOM_STATE_BYTES_MAX
    for entry in given[:ROOM_STATE_MAX]:
        stripped = strip_state(entry)
        try:
            size = 0 if stripped is None else len(encode_strict(stripped))
        except CanonicalJsonError:
            continue
        if stripped is not None and size <= bytes_left:
            bytes_left -= size
            shown.append(stripped)
    return shown
