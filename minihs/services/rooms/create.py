"""Making a room: what its first events are, and committing all of them at once.

`initial_events` is pure: it turns the options of the request into the events, in the order that the
specification demands. They are one plan and one commit together with the alias and the place in the
directory, so that a room is made whole or not at all.

Spec: client-server-api#post_matrixclientv3createroom
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from minihs.base.clock import time_limit
from minihs.base.errors import (
    Forbidden,
    InvalidParam,
    InvalidRoomState,
    MatrixError,
    RoomInUse,
    UnsupportedRoomVersion,
)
from minihs.base.limits import (
    INITIAL_STATE_EVENTS_MAX,
    INVITES_PER_CREATION_MAX,
    REMOTE_QUERIES_MS,
)
from minihs.protocol.event_assembly import EventDraft
from minihs.protocol.identifiers import parse_room_alias, parse_user_id
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.state_keys import CREATE, POWER_LEVELS
from minihs.services.rooms.commit import Plan
from minihs.services.rooms.heads import new_head
from minihs.services.rooms.membership import MembershipChange, change_membership, check_invitable
from minihs.services.rooms.predecessors import follow_to_replacement, predecessor_of
from minihs.services.rooms.profile import member_profile
from minihs.services.rooms.room_events import CANONICAL_ALIAS, check_new_aliases
from minihs.services.rooms.send import plan_draft
from minihs.services.rooms.standing import current_events
from minihs.storage import rooms
from minihs.storage.directory import fetch_alias
from minihs.storage.group_commit import Conflict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.protocol.identifiers import RoomAlias, RoomId, StateKey, UserId
    from minihs.protocol.room_versions import RoomVersion
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

INVITES_AT_ONCE = 10

Preset = Literal["private_chat", "public_chat", "trusted_private_chat"]
Content = dict[str, object]

# join_rule, history_visibility, guest_access, and the power that it takes to invite.
PRESETS: Mapping[Preset, tuple[str, str, str, int]] = {
    "private_chat": ("invite", "shared", "can_join", 0),
    "trusted_private_chat": ("invite", "shared", "can_join", 0),
    "public_chat": ("public", "shared", "forbidden", 50),
}


@dataclass(frozen=True, slots=True)
class StateEvent:
    """A state event without its room: an entry of `initial_state`, or one that we add."""

    type: str
    content: Content
    state_key: str = ""

    @property
    def key(self) -> StateKey:
        """Its place in the state."""
        return self.type, self.state_key


@dataclass(frozen=True, slots=True)
class RoomOptions:
    """The body of `createRoom`."""

    visibility: Literal["public", "private"] | None = None
    room_alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invite: list[str] | None = None
    invite_3pid: list[Content] | None = None
    room_version: str | None = None
    creation_content: Content | None = None
    initial_state: list[StateEvent] | None = None
    preset: Preset | None = None
    is_direct: bool | None = None
    power_level_content_override: Content | None = None

    @property
    def effective_preset(self) -> Preset:
        """The preset asked for, or the one that follows from the visibility."""
        return self.preset or ("public_chat" if self.visibility == "public" else "private_chat")


@dataclass(frozen=True, slots=True)
class RoomPlan:
    """Everything about a room to be made. `events` come after those in which it is made."""

    creator: UserId
    room_version: RoomVersion
    creation_content: Content
    events: Sequence[StateEvent]
    published: bool = False
    alias: RoomAlias | None = None
    profile: Content = field(default_factory=dict)


async def create_room(
    services: Services, creator: UserId, options: RoomOptions, *, by_service: str | None = None
) -> RoomId:
    """Make a room as its creator wants it; return its id. `by_service` acts as the creator, if any.

    Raises:
        UnsupportedRoomVersion, RoomInUse, InvalidRoomState, InvalidParam, BadJson: see the passage.
        Exclusive: the alias is reserved by an application service.
        NotFound, Forbidden: somebody cannot be invited.
    """
    version = ROOM_VERSIONS.get(options.room_version or services.config.default_room_version)
    if version is None:
        raise UnsupportedRoomVersion(f"Room version {options.room_version} is not supported.")
    invited = await _check_invites(services, creator, options)
    if len(options.initial_state or ()) > INITIAL_STATE_EVENTS_MAX:
        raise InvalidParam(f"initial_state may have {INITIAL_STATE_EVENTS_MAX} events.")
    alias = await _check_alias(services, options, by_service)
    events = initial_events(options, version, creator, alias)
    for event in events:
        if event.key == (CANONICAL_ALIAS, ""):
            known = () if alias is None else (alias,)
            await check_new_aliases(services, "", event.content, known=known)
    direct: Content = {"is_direct": True} if options.is_direct else {}
    for user_id in filter(services.is_local, invited):
        content = {"membership": "invite", **await member_profile(services, user_id), **direct}
        events.append(StateEvent("m.room.member", content, user_id))
    room_id = await make_room(
        services,
        RoomPlan(
            creator=creator,
            room_version=version,
            creation_content=create_content(options, version, creator),
            events=events,
            published=options.visibility == "public",
            alias=alias,
            profile=await member_profile(services, creator),
        ),
    )
    elsewhere = [
        MembershipChange(room_id, creator, user_id, "invite", direct)
        for user_id in invited
        if not services.is_local(user_id)
    ]
    if elsewhere:
        inviting = services.tasks.spawn("invites", _invite_from_elsewhere(services, elsewhere))
        with contextlib.suppress(TimeoutError):  # It goes on: the room is there.
            async with time_limit(services.clock, REMOTE_QUERIES_MS):
                await asyncio.shield(inviting)
    return room_id


async def _invite_from_elsewhere(services: Services, invites: Sequence[MembershipChange]) -> None:
    """Invite users of other servers, which must sign it, to a room that has just been made.

    The room is there, whatever their servers say.
    """
    for start in range(0, len(invites), INVITES_AT_ONCE):
        some = invites[start : start + INVITES_AT_ONCE]
        outcomes = await asyncio.gather(
            *(change_membership(services, invite) for invite in some), return_exceptions=True
        )
        for invite, outcome in zip(some, outcomes, strict=True):
            if isinstance(outcome, MatrixError):
                logger.warning("cannot invite %s: %s", invite.user_id, outcome.message)
            elif isinstance(outcome, BaseException):
                raise outcome


async def make_room(services: Services, room: RoomPlan) -> RoomId:
    """Commit a room with all its first events; return its id.

    Raises:
        InvalidRoomState: the creator may not send one of them.
        RoomInUse: the alias is taken.
        TooLarge, BadJson: one of them cannot be an event.
    """
    head = await new_head(services, room.room_version)
    alias = None if room.alias is None else (room.alias, room.creator)
    plan = Plan(head, published=room.published, alias=alias)
    join: Content = {"membership": "join", **room.profile}
    created_ms = services.heads.creation_ms(services.clock.now_ms())
    for event in (
        StateEvent("m.room.create", room.creation_content),
        StateEvent("m.room.member", join, room.creator),
        *room.events,
    ):
        draft = EventDraft(
            room_id=head.room_id or None,
            sender=room.creator,
            type=event.type,
            content=event.content,
            origin_server_ts=max(created_ms, services.clock.now_ms()),
            state_key=event.state_key,
        )
        try:
            await plan_draft(services, plan, draft)
        except Forbidden as error:
            if event.type == "m.room.member":
                raise
            message = f"You may not send {event.type} in the room as you want it: {error.message}"
            raise InvalidRoomState(message) from error
    predecessor = predecessor_of((await current_events(services, head, [CREATE])).get(CREATE))
    try:
        await plan.submit(services)
    except Conflict:
        if await rooms.fetch_version(services.db, head.room_id) is not None:
            return await make_room(services, room)  # Another process has just made one alike.
        raise RoomInUse(f"The alias {room.alias} is taken.") from None
    services.heads.put(head)
    if predecessor is not None:
        await follow_to_replacement(services, room.creator, predecessor, head.room_id)
    return head.room_id


def create_content(options: RoomOptions, version: RoomVersion, creator: UserId) -> Content:
    """Return the content of the create event.

    Raises:
        InvalidParam: `additional_creators` are not user ids.

    Spec: client-server-api#mroomcreate
    """
    content = dict(options.creation_content or {})
    content["room_version"] = version.identifier
    content.pop("creator", None)
    if version.creator_is_in_content:  # v1–v10
        content["creator"] = creator
    if version.creators_are_privileged:  # Since v12.
        others = content.get("additional_creators", [])
        if not isinstance(others, list) or any(parse_user_id(other) is None for other in others):
            raise InvalidParam("additional_creators is a list of user ids.")
        if options.effective_preset == "trusted_private_chat":
            others = list(dict.fromkeys((*others, *(options.invite or ()))))
            if others:
                content["additional_creators"] = others
    return content


def initial_events(
    options: RoomOptions, version: RoomVersion, creator: UserId, alias: RoomAlias | None
) -> list[StateEvent]:
    """Return the events between the creator's join and the invites, in their order.

    An event of `initial_state` stands in for the one that the server would have sent itself; `name`
    and `topic` win over it.

    Raises:
        InvalidRoomState: `initial_state` has an event that only the server sends.
    """
    given = {event.key: event for event in options.initial_state or ()}
    for kind, key in given:
        if kind in ("m.room.create", "m.room.member"):
            raise InvalidRoomState(f"initial_state cannot have {kind} {key}".rstrip() + ".")
    levels = given.get(POWER_LEVELS)
    if levels is None:
        levels = StateEvent(
            "m.room.power_levels",
            default_power_levels(options, version, creator)
            | (options.power_level_content_override or {}),
        )
    join_rule, visibility, guest_access, _ = PRESETS[options.effective_preset]
    presets = [
        StateEvent("m.room.join_rules", {"join_rule": join_rule}),
        StateEvent("m.room.history_visibility", {"history_visibility": visibility}),
    ]
    if guest_access != "forbidden":  # Which is what rooms without the event are.
        presets.append(StateEvent("m.room.guest_access", {"guest_access": guest_access}))
    if alias is not None:
        presets.insert(0, StateEvent(CANONICAL_ALIAS, {"alias": alias}))
    last: list[StateEvent] = []
    if options.name is not None:
        last.append(StateEvent("m.room.name", {"name": options.name}))
    if options.topic is not None:
        last.append(StateEvent("m.room.topic", topic_content(options.topic)))
    overridden = {levels.key, *(event.key for event in last)}
    return [
        levels,
        *(event for event in presets if event.key not in given),
        *(event for event in given.values() if event.key not in overridden),
        *last,
    ]


def default_power_levels(options: RoomOptions, version: RoomVersion, creator: UserId) -> Content:
    """Return the power levels of a new room, before what its creator overrides.

    Spec: client-server-api#post_matrixclientv3createroom
    """
    users: dict[str, int] = {}
    if not version.creators_are_privileged:  # v1–v11. Since v12 creators need no level.
        users[creator] = 100
        if options.effective_preset == "trusted_private_chat":
            users |= dict.fromkeys(options.invite or (), 100)
    return {
        "users": users,
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.canonical_alias": 50,
            "m.room.avatar": 50,
            "m.room.tombstone": 150 if version.creators_are_privileged else 100,
            "m.room.server_acl": 100,
            "m.room.encryption": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": PRESETS[options.effective_preset][3],
    }


def topic_content(topic: str) -> Content:
    """Return the content of a topic event: the text, in the old form and the new.

    Spec: client-server-api#mroomtopic
    """
    return {"topic": topic, "m.topic": {"m.text": [{"body": topic}]}}


async def _check_invites(services: Services, creator: UserId, options: RoomOptions) -> list[UserId]:
    """Return whom to invite, each once."""
    if options.invite_3pid:
        raise Forbidden(
            "This server cannot invite by email address or phone number.",
            errcode="M_THREEPID_DENIED",
        )
    invited: dict[UserId, None] = {}
    for text in options.invite or ():
        user_id = parse_user_id(text)
        if user_id is None:
            raise InvalidParam(f"{text!r} is not a user id.")
        if user_id == creator:
            raise Forbidden("You cannot invite yourself.")
        invited[user_id] = None
    if len(invited) > INVITES_PER_CREATION_MAX:
        raise InvalidParam(f"At most {INVITES_PER_CREATION_MAX} users can be invited at once.")
    for user_id in invited:
        await check_invitable(services, user_id)
    return list(invited)


async def _check_alias(
    services: Services, options: RoomOptions, by_service: str | None
) -> RoomAlias | None:
    """Return the alias that the room is to have, which must be free."""
    name = options.room_alias_name
    if name is None:
        return None
    alias = parse_room_alias(f"#{name}:{services.server_name}")
    if alias is None or ":" in name or not name or name.startswith("#"):
        raise InvalidParam("room_alias_name is not the local part of an alias.")
    services.appservices.check_alias(alias, by_service)
    if await fetch_alias(services.db, alias) is not None:
        raise RoomInUse(f"The alias {alias} is taken.")
    return alias
