"""Joining, inviting, leaving, kicking, banning, knocking: whatever changes who is in a room.

Every path ends in `change_membership`, also `PUT .../state/m.room.member/...`, the deactivation of
an account and a new display name, so that one place decides what a member event says. It decides
under the room's turn: what it looked at is what the event is built upon.

Spec: client-server-api#room-membership
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.errors import (
    BadJson,
    Forbidden,
    GuestAccessForbidden,
    MatrixError,
    NotFound,
    UnableToAuthoriseJoin,
    UnableToGrantJoin,
    Unavailable,
)
from minihs.protocol import canonical_json
from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.identifiers import parse_user_id
from minihs.protocol.membership import AUTHORISING_USER, INSIDE, MEMBERSHIPS, membership_of
from minihs.protocol.state_keys import CREATE, GUEST_ACCESS
from minihs.protocol.stickiness import sticky_members
from minihs.protocol.unstable import DEACTIVATED, ERASED
from minihs.services.rooms import remote_invites, remote_membership
from minihs.services.rooms.candidates import candidates
from minihs.services.rooms.forget import forget_all_left_rooms
from minihs.services.rooms.predecessors import follow_to_replacement, predecessor_of
from minihs.services.rooms.profile import member_profile
from minihs.services.rooms.remote_membership import Elsewhere
from minihs.services.rooms.restricted_joins import find_authorising_user
from minihs.services.rooms.send import send_decided
from minihs.services.rooms.standing import current_events, load_known_room, text_of
from minihs.services.rooms.state import load_state_events
from minihs.services.rooms.templates import RemoteChange
from minihs.storage import accounts
from minihs.storage import membership as memberships
from minihs.storage.account_data import fetch_account_data

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from minihs.protocol.events import Event
    from minihs.protocol.identifiers import EventId, RoomId, StateKey, UserId
    from minihs.services.context import Services
    from minihs.services.rooms.heads import RoomHead
    from minihs.services.rooms.origins import Origin

logger = logging.getLogger(__name__)

ROOMS_AT_ONCE = 16

# What only the server says in a member event, whatever a client sends.
_SAID_OF_THE_DEACTIVATED = frozenset({*DEACTIVATED.spellings, ERASED})
_SERVERS_OWN = frozenset({"membership", AUTHORISING_USER}) | _SAID_OF_THE_DEACTIVATED


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """What a local user wants a membership to become.

    `content` is what the event says beside its membership and the user's profile. `only_from`: the
    memberships that the user must have at present (None: any). `once`: nothing is sent when the
    user has that membership already. `more` is what the server adds, and no client may. `via` are
    servers through which the room may be entered. `sticky_ms`: for how long the event is sticky,
    if it is made here: events that other servers' templates make are not (MSC4354). `sent_ms` is
    when it claims to be made, None: now.
    """

    room_id: RoomId
    sender: UserId
    user_id: UserId
    membership: str
    content: Mapping[str, object] = field(default_factory=dict)
    only_from: frozenset[str] | None = None
    once: bool = False
    guest: bool = False
    sticky_ms: int | None = None
    more: Mapping[str, object] = field(default_factory=dict)
    via: Sequence[str] = ()
    sent_ms: int | None = None
    transaction: Origin | None = None

    @property
    def is_own(self) -> bool:
        """Whether users change their own membership."""
        return self.sender == self.user_id


async def change_membership(  # noqa: C901  # the cases of a membership, told once
    services: Services, change: MembershipChange
) -> EventId:
    """Change a membership; return the member event, the present one if it says the same already.

    Raises:
        NotFound: nobody who was asked knows the room, or the invited user.
        Forbidden: the room's rules, or the invited user's wishes, are against it.
        MatrixError: other servers had to be asked, and did not help.
    """
    await _check_invitable(services, change)
    profile: dict[str, object] = {}
    if change.membership in INSIDE:
        profile = await member_profile(services, change.user_id)
    predecessor: str | None = None

    async def decide(head: RoomHead) -> EventDraft | EventId:
        nonlocal predecessor
        if change.is_own and await remote_membership.is_for_others(
            services, head, change.user_id, change.membership
        ):
            raise Elsewhere("The room is not on this server.")
        key: StateKey = ("m.room.member", change.user_id)
        stored = (await load_state_events(services, head.state, [key])).get(key)
        current = None if stored is None else stored.event
        now = membership_of(current)
        if change.only_from is not None and now not in change.only_from:
            raise Forbidden(f"{change.user_id} has membership {now} in the room.")
        if change.once and stored is not None and now == change.membership:
            return stored.event_id
        content = _content(services, change, profile)
        if change.membership == "join" and now != "join":
            predecessor = await _enter(services, head, change, now, content)
        if (
            change.sticky_ms is None
            and stored is not None
            and _says_the_same(stored.event, change.sender, content)
        ):
            return stored.event_id
        if change.sticky_ms:
            await services.sticky_limits.check_own(services, head, change.sender)
        return EventDraft(
            room_id=change.room_id,
            sender=change.sender,
            type="m.room.member",
            content=content,
            origin_server_ts=services.clock.now_ms() if change.sent_ms is None else change.sent_ms,
            state_key=change.user_id,
            extra={} if change.sticky_ms is None else sticky_members(change.sticky_ms),
        )

    if change.membership == "invite" and not services.is_local(change.user_id):
        return await remote_invites.invite(
            services, change.room_id, change.user_id, decide, change.transaction
        )
    limits = services.sticky_limits
    try:
        async with limits.own_turn(change.room_id, change.sender, change.sticky_ms):
            event_id = await send_decided(
                services, change.room_id, decide, transaction=change.transaction
            )
    except (NotFound, Elsewhere, UnableToAuthoriseJoin, UnableToGrantJoin) as error:
        if not change.is_own:
            raise
        event_id = await _change_elsewhere(
            services, change, _content(services, change, profile), error
        )
        if change.membership == "join":
            predecessor = await _predecessor(services, change.room_id)
    if predecessor is not None:
        await follow_to_replacement(services, change.user_id, predecessor, change.room_id)
    return event_id


async def _change_elsewhere(
    services: Services, change: MembershipChange, content: Mapping[str, object], why: MatrixError
) -> EventId:
    """Change a user's own membership through other servers. `why` this one cannot do it."""
    if change.guest:
        raise GuestAccessForbidden("Guests cannot join rooms of other servers.")
    remote = RemoteChange(change.room_id, change.user_id, content, change.via)
    match change.membership:
        case "join":
            if isinstance(why, UnableToAuthoriseJoin | UnableToGrantJoin) and (
                not await candidates(services, remote)
            ):
                raise Forbidden(why.message) from why
            return await remote_membership.join(services, remote)
        case "knock":
            return await remote_membership.knock(services, remote)
        case "leave":
            return await remote_membership.leave(services, remote)
        case _:
            raise why


async def _predecessor(services: Services, room_id: RoomId) -> str | None:
    head = await load_known_room(services, room_id)
    return predecessor_of((await current_events(services, head, [CREATE])).get(CREATE))


async def join_room(
    services: Services,
    user_id: UserId,
    room_id: RoomId,
    *,
    content: Mapping[str, object],
    guest: bool = False,
    via: Sequence[str] = (),
) -> EventId:
    """Let a user enter a room; joining twice is the same as once.

    `content` are further keys of the member event; `via` servers to ask if we are not in the room.
    Spec: client-server-api#post_matrixclientv3joinroomidoralias

    Raises:
        NotFound, Forbidden: see `change_membership`.
    """
    change = MembershipChange(
        room_id, user_id, user_id, "join", content, once=True, guest=guest, via=via
    )
    return await change_membership(services, change)


async def knock_on_room(
    services: Services,
    user_id: UserId,
    room_id: RoomId,
    *,
    content: Mapping[str, object],
    via: Sequence[str] = (),
) -> EventId:
    """Let a user ask to be let in. Spec: client-server-api#post_matrixclientv3knockroomidoralias.

    Raises:
        NotFound, Forbidden: see `change_membership`.
    """
    return await change_membership(
        services, MembershipChange(room_id, user_id, user_id, "knock", content, via=via)
    )


async def leave_room(
    services: Services, user_id: UserId, room_id: RoomId, *, content: Mapping[str, object]
) -> EventId:
    """Let a user leave, reject their invite, or retract their knock; twice is the same as once.

    Spec: client-server-api#post_matrixclientv3roomsroomidleave

    Raises:
        NotFound, Forbidden: see `change_membership`.
    """
    return await change_membership(
        services, MembershipChange(room_id, user_id, user_id, "leave", content, once=True)
    )


async def set_member_event(
    services: Services,
    sender: UserId,
    room_id: RoomId,
    user_id: str,
    content: Mapping[str, object],
    *,
    guest: bool = False,
    sticky_ms: int | None = None,
    sent_ms: int | None = None,
    transaction: Origin | None = None,
) -> EventId:
    """Change a membership as `PUT .../state/m.room.member/{userId}` asks; return the event.

    Raises:
        BadJson: the state key is no user id, or the content has no membership.
        NotFound, Forbidden: see `change_membership`.
    """
    target, membership = parse_user_id(user_id), content.get("membership")
    if target is None:
        raise BadJson("The state key of a member event is a user id.")
    if not isinstance(membership, str) or membership not in MEMBERSHIPS:
        raise BadJson("A member event has a membership.")
    # A leave that somebody else writes is a kick or lifts a ban: it needs somebody to be there.
    kick = membership == "leave" and target != sender
    only_from = INSIDE | {"ban"} if kick else None
    return await change_membership(
        services,
        MembershipChange(
            room_id, sender, target, membership, content, only_from,
            guest=guest, sticky_ms=sticky_ms, sent_ms=sent_ms, transaction=transaction,
        ),
    )  # fmt: skip


async def leave_for_good(
    services: Services,
    user_id: UserId,
    *,
    erased: bool,
    go_on: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Let a deactivated user leave every room, reject every invite and retract every knock.

    May be called again where it was interrupted. The leaves say why, unless the server's
    administrator is against it. As nobody can ask any more to forget those rooms, they are
    forgotten. `go_on` is called after every few rooms.
    MSC3759#proposal

    Raises:
        Unavailable: some rooms could not be left; the others have been.
    """

    async def leave(room_id: RoomId) -> None:
        change = MembershipChange(room_id, user_id, user_id, "leave", once=True, more=why)
        await change_membership(services, change)

    why: dict[str, object] = {}
    if services.config.deactivation_metadata:
        why = DEACTIVATED.write(True) | ({ERASED: True} if erased else {})  # noqa: FBT003  # a value

    rooms = await memberships.list_rooms(services.db, user_id, sorted(INSIDE))
    failed = await _in_each_room(rooms, leave, go_on)
    await forget_all_left_rooms(services, user_id)
    if failed:
        raise Unavailable(f"{len(failed)} rooms could not be left.")


async def update_profile_in_rooms(services: Services, user_id: UserId) -> None:
    """Repeat a user's member event, with their present profile, in every room they are joined to.

    Rooms in which nothing changes are left alone. Spec:
    client-server-api#events-on-change-of-profile-information
    """

    async def repeat(room_id: RoomId) -> None:
        change = MembershipChange(room_id, user_id, user_id, "join", only_from=frozenset({"join"}))
        await change_membership(services, change)

    await _in_each_room(await memberships.list_rooms(services.db, user_id, ["join"]), repeat)


async def remove_guests(services: Services, room_id: RoomId) -> None:
    """Let this server's guests leave a room that takes none any more.

    Spec: client-server-api#guest-access ("Server behaviour")
    """
    for user_id in await memberships.list_guests(services.db, room_id):
        change = MembershipChange(room_id, user_id, user_id, "leave", once=True)
        await change_membership(services, change)


async def list_joined_rooms(services: Services, user_id: UserId) -> list[RoomId]:
    """Return the rooms that a user is joined to."""
    return await memberships.list_rooms(services.db, user_id, ["join"])


async def _in_each_room(
    rooms: Sequence[RoomId],
    work: Callable[[RoomId], Awaitable[None]],
    go_on: Callable[[], Awaitable[None]] | None = None,
) -> list[RoomId]:
    """Do something in many rooms, a few at a time; return the rooms where the server failed.

    Where the room's rules refuse it (the user has been banned meanwhile) there is nothing to do.
    """
    failed: list[RoomId] = []
    for start in range(0, len(rooms), ROOMS_AT_ONCE):
        some = rooms[start : start + ROOMS_AT_ONCE]
        outcomes = await asyncio.gather(*(work(room) for room in some), return_exceptions=True)
        for room_id, outcome in zip(some, outcomes, strict=True):
            if isinstance(outcome, Unavailable) or (
                isinstance(outcome, Exception) and not isinstance(outcome, MatrixError)
            ):
                logger.warning("a membership in %s could not be changed", room_id, exc_info=outcome)
                failed.append(room_id)
            elif isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome
        if go_on is not None:
            await go_on()
    return failed


async def _check_invitable(services: Services, change: MembershipChange) -> None:
    """Refuse an invite that cannot be delivered or is not wanted.

    Spec: client-server-api#invite-permission
    """
    if change.membership == "invite":
        await check_invitable(services, change.user_id)


async def check_invitable(services: Services, user_id: str) -> None:
    """Refuse to invite somebody who wants no invites, or is gone; other servers answer for theirs.

    Raises:
        Forbidden: their account has been deactivated; or `M_INVITE_BLOCKED`.
            Spec: client-server-api#invite-permission
    """
    if not services.is_local(user_id):
        return
    account = await accounts.fetch_account(services.db, user_id)
    if account is not None and account.deactivated:
        raise Forbidden(f"{user_id} has been deactivated.")
    json = await fetch_account_data(services.db, user_id, "", "m.invite_permission_config")
    if json is not None:
        match canonical_json.decode(json):
            case {"default_action": "block"}:
                raise Forbidden(f"{user_id} wants no invites.", errcode="M_INVITE_BLOCKED")
            case _:
                pass


async def _enter(
    services: Services,
    head: RoomHead,
    change: MembershipChange,
    now: str | None,
    content: dict[str, object],
) -> str | None:
    """Prepare the member event of somebody who comes in; return the room's predecessor, if any."""
    state = await current_events(services, head, [CREATE, GUEST_ACCESS])
    if change.guest and text_of(state.get(GUEST_ACCESS), "guest_access") != "can_join":
        raise GuestAccessForbidden("Guests cannot join this room.")
    if now != "invite" and change.sender == change.user_id:
        vouching = await find_authorising_user(services, head, change.user_id)
        if vouching is not None:
            content[AUTHORISING_USER] = vouching
    return predecessor_of(state.get(CREATE))


def _content(
    services: Services, change: MembershipChange, profile: Mapping[str, object]
) -> dict[str, object]:
    """Return the content of a member event: users may style themselves, but not others."""
    given = {key: value for key, value in change.content.items() if key not in _SERVERS_OWN}
    content = {**profile, **given} if change.is_own else {**given, **profile}
    content["membership"] = change.membership
    return {**content, **_said_of_the_deactivated(services, change), **change.more}


def _said_of_the_deactivated(services: Services, change: MembershipChange) -> dict[str, object]:
    """Return what a change may say about a deactivation, which is nothing but for bridges.

    Whoever an application service owns alone may be gone from another network. MSC3759#proposal
    """
    said = change.content.keys() & _SAID_OF_THE_DEACTIVATED
    if not said:
        return {}
    if not (
        change.is_own
        and change.membership == "leave"
        and services.appservices.owns_user(change.user_id)
    ):
        logger.info("%s may not say %s: left out", change.sender, ", ".join(sorted(said)))
        return {}
    is_gone = DEACTIVATED.either(change.content) is True
    is_erased = is_gone and change.content.get(ERASED) is True
    return (DEACTIVATED.write(True) if is_gone else {}) | ({ERASED: True} if is_erased else {})  # noqa: FBT003  # a value


def _says_the_same(event: Event, sender: str, content: Mapping[str, object]) -> bool:
    """Return whether a member event would only repeat another. Who vouched does not matter."""
    present = {key: value for key, value in event.content.items() if key != AUTHORISING_USER}
    wanted = {key: value for key, value in content.items() if key != AUTHORISING_USER}
    return event.sender == sender and present == wanted
