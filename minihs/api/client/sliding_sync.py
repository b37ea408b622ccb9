"""Simplified sliding sync, in the shapes of the merged MSC and in the older ones that clients use.

MSC4186#api, MSC4186#unstable-prefix
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from minihs.api.client.presence import wished_presence
from minihs.base.errors import BadJson, InvalidParam
from minihs.base.limits import (
    SLIDING_LISTS_MAX,
    SLIDING_TIMELINE_LIMIT_MAX,
    SLIDING_WISHES_MAX,
    STICKY_EVENTS_DEFAULT,
    SYNC_TIMEOUT_MAX_MS,
)
from minihs.protocol import unstable
from minihs.protocol.identifiers import parse_room_id
from minihs.services.sync import sliding, sliding_connections
from minihs.services.sync.positions import parse_token
from minihs.services.sync.sliding_extensions import KNOWN, TO_DEVICE
from minihs.services.sync.sliding_request import (
    RequiredState,
    RoomConfig,
    RoomFilters,
    RoomList,
    Scope,
    SlidingRequest,
    StickyRequest,
    ToDeviceRequest,
)
from minihs.services.sync.sliding_sticky import parse_since
from minihs.services.sync.streams.to_device import MESSAGES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from minihs.api.requests import Request
    from minihs.services.sync.sliding_request import Element

CONN_ID_CHARS_MAX = 255
_LIST_KEY = re.compile(r"[A-Za-z0-9._~-]{1,255}", re.ASCII)  # Spec: appendices#opaque-identifiers


class StateElement(msgspec.Struct):
    """What state to match. MSC4186#requiredstateelement."""

    type: str | None = None
    state_key: str | None = None


class StateWishes(msgspec.Struct):
    """MSC4186#requiredstaterequest."""

    include: list[StateElement] = []
    exclude: list[StateElement] = []
    lazy_members: bool = False


class Filters(msgspec.Struct):
    """MSC4186#slidingroomfilter, and what only the older shape has."""

    is_dm: bool | None = None
    spaces: tuple[str, ...] | None = None
    is_encrypted: bool | None = None
    is_invited: bool | None = None
    is_invite: bool | None = None
    room_types: tuple[str | None, ...] | None = None
    not_room_types: tuple[str | None, ...] | None = None
    tags: tuple[str, ...] | None = None
    not_tags: tuple[str, ...] | None = None
    room_name_like: str | None = None


class Subscription(msgspec.Struct):
    """MSC4186#roomsubscription."""

    timeline_limit: int
    required_state: StateWishes


class ListWishes(Subscription):
    """MSC4186#synclistconfig."""

    range: tuple[int, int] | None = None
    filters: Filters | None = None


class OlderSubscription(msgspec.Struct):
    """The same in the older shape: pairs of type and state key."""

    timeline_limit: int = 10
    required_state: list[tuple[str, str]] = []


class OlderListWishes(OlderSubscription):
    """The same in the older shape: several ranges."""

    ranges: list[tuple[int, int]] | None = None
    filters: Filters | None = None


class Extension(msgspec.Struct):
    """What all extensions take, and what the paged ones take beside."""

    enabled: bool | None = None
    lists: tuple[str, ...] | None = None
    rooms: tuple[str, ...] | None = None
    limit: object = None
    since: object = None


class Common(msgspec.Struct):
    """What both shapes have."""

    conn_id: str | None = None
    pos: str | None = None
    timeout: int | None = None
    set_presence: str | None = None
    extensions: dict[str, object] = {}


class Body(Common):
    """The merged shape. MSC4186#request-body."""

    lists: dict[str, ListWishes] = {}
    room_subscriptions: dict[str, Subscription] = {}


class OlderBody(Common):
    """The older shape."""

    lists: dict[str, OlderListWishes] = {}
    room_subscriptions: dict[str, OlderSubscription] = {}


async def sliding_sync(request: Request) -> object:
    """POST /_matrix/client/v4/sync. MSC4186#api."""
    body = await request.json(Body)
    lists = {
        name: RoomList(
            None if list_.range is None else _ranges([list_.range]),
            _filters(list_.filters),
            _config(list_),
        )
        for name, list_ in body.lists.items()
    }
    subscriptions = {room_id: _config(s) for room_id, s in body.room_subscriptions.items()}
    return await _sync(request, body, lists, subscriptions, merged=True)


async def unstable_sliding_sync(request: Request) -> object:
    """POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync. MSC4186#unstable-prefix."""
    body = await request.json(OlderBody)
    user_id = request.requester.user_id
    lists = {
        name: RoomList(
            None if list_.ranges is None else _ranges(list_.ranges),
            _filters(list_.filters),
            _older_config(list_, user_id),
        )
        for name, list_ in body.lists.items()
    }
    subscriptions = {
        room_id: _older_config(s, user_id) for room_id, s in body.room_subscriptions.items()
    }
    return await _sync(request, body, lists, subscriptions, merged=False)


async def _sync(
    request: Request,
    body: Common,
    lists: dict[str, RoomList],
    subscriptions: dict[str, RoomConfig],
    *,
    merged: bool,
) -> object:
    services, requester = request.services, request.requester
    requester.require_device()
    if len(lists) > SLIDING_LISTS_MAX or len(subscriptions) > SLIDING_LISTS_MAX:
        raise InvalidParam(f"There may be {SLIDING_LISTS_MAX} lists and as many subscriptions.")
    if _count_wishes(lists.values(), subscriptions.values()) > SLIDING_WISHES_MAX:
        raise InvalidParam("There is too much required state, or too many names in filters.")
    if any(_LIST_KEY.fullmatch(name) is None for name in lists):
        raise InvalidParam("The key of a list is 1 to 255 letters, digits and any of -._~.")
    conn_id = body.conn_id or ""
    if len(conn_id) > CONN_ID_CHARS_MAX or "\0" in conn_id:
        raise InvalidParam("This conn_id is too long, or has characters that it may not have.")
    presence = wished_presence(request, body.set_presence)
    if body.timeout is not None and body.timeout < 0:
        raise InvalidParam("timeout must not be negative.")
    timeout_ms = min(request.query_integer("timeout", body.timeout or 0), SYNC_TIMEOUT_MAX_MS)
    services.presence.note_poll(
        services, requester.user_id, requester.device_nid, presence, timeout_ms
    )
    await services.follower.wait_for(requester.position)
    pos = request.query("pos")
    if pos is None:
        pos = body.pos
    head = services.follower.head
    extensions, sticky = _extensions(requester.user_id, body.extensions, head)
    return await sliding.sliding_sync(
        services,
        SlidingRequest(
            requester,
            merged,
            conn_id,
            None if pos is None else sliding_connections.parse_position(pos),
            timeout_ms,
            lists,
            {r: config for r, config in subscriptions.items() if parse_room_id(r) is not None},
            extensions,
            sticky,
            _to_device(body.extensions, head),
        ),
    )


def _count_wishes(lists: Iterable[RoomList], subscriptions: Iterable[RoomConfig]) -> int:
    """Return how many elements of required state, names in filters and ranges there are."""
    lists = list(lists)
    configs = [*(list_.config for list_ in lists), *subscriptions]
    elements = sum(len(r.include) + len(r.exclude) for c in configs for r in c.required)
    return elements + sum(
        len(names or ())
        for list_ in lists
        for names in (
            list_.ranges, list_.filters.spaces, list_.filters.room_types,
            list_.filters.not_room_types, list_.filters.tags, list_.filters.not_tags,
        )
    )  # fmt: skip


def _ranges(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    for first, last in ranges:
        if not 0 <= first <= last:
            raise InvalidParam("A range is two indices, the smaller one first.")
    return tuple(ranges)


def _limit(limit: int) -> int:
    if limit < 0:
        raise InvalidParam("timeline_limit must not be negative.")
    return min(limit, SLIDING_TIMELINE_LIMIT_MAX)


def _config(wishes: Subscription) -> RoomConfig:
    state = wishes.required_state
    required = RequiredState(
        _elements((e.type, e.state_key) for e in state.include),
        _elements((e.type, e.state_key) for e in state.exclude),
        state.lazy_members,
    )
    return RoomConfig(_limit(wishes.timeline_limit), (required,))


def _older_config(wishes: OlderSubscription, user_id: str) -> RoomConfig:
    """Return the same: `*` matches all, `$ME` is the user, `$LAZY` asks for lazy loading."""
    lazy = ("m.room.member", "$LAZY") in wishes.required_state
    include = _elements(
        (None if t == "*" else t, None if k == "*" else user_id if k == "$ME" else k)
        for t, k in wishes.required_state
        if k != "$LAZY"
    )
    return RoomConfig(_limit(wishes.timeline_limit), (RequiredState(include, (), lazy),))


def _elements(elements: Iterable[Element]) -> tuple[Element, ...]:
    return tuple(sorted(set(elements), key=repr))


def _filters(given: Filters | None) -> RoomFilters:
    if given is None:
        return RoomFilters()
    return RoomFilters(
        given.is_dm,
        given.spaces,
        given.is_encrypted,
        given.is_invited if given.is_invite is None else given.is_invite,
        given.room_types,
        given.not_room_types or (),
        given.tags,
        given.not_tags or (),
        given.room_name_like,
    )


def _extensions(
    user_id: str, given: dict[str, object], head: int
) -> tuple[dict[str, Scope], StickyRequest | None]:
    """Return the extensions that are enabled; those that we do not know are left out.

    Raises:
        InvalidParam: a limit or a position is not one.
    """
    scopes: dict[str, Scope] = {}
    for name in KNOWN:
        extension = _extension(given.get(name))
        if extension is not None:
            scopes[name] = Scope(extension.lists, extension.rooms)
    wanted = unstable.read(given, unstable.STICKY_EXTENSION)
    if isinstance(wanted, unstable.Disagreement):
        raise InvalidParam(wanted.message)
    extension = _extension(wanted)
    if extension is None:
        return scopes, None
    limit = STICKY_EVENTS_DEFAULT if extension.limit is None else extension.limit
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise InvalidParam("limit must be a positive integer.")
    if not isinstance(extension.since, str | None):
        raise InvalidParam("since must be a next_batch of the extension.")
    token = None if extension.since is None else parse_since(user_id, extension.since, head)
    return scopes, StickyRequest(limit, token)


def _to_device(given: dict[str, object], head: int) -> ToDeviceRequest | None:
    """Return how messages to the device are wanted, if they are.

    Raises:
        InvalidParam: the limit or the position is not one.
    """
    extension = _extension(given.get(TO_DEVICE))
    if extension is None:
        return None
    limit = MESSAGES_MAX if extension.limit is None else extension.limit
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise InvalidParam("limit must be a positive integer.")
    if not isinstance(extension.since, str | None):
        raise InvalidParam("since must be a next_batch of the extension.")
    received = parse_token(extension.since, head).position if extension.since else 0
    return ToDeviceRequest(min(limit, MESSAGES_MAX), received)


def _extension(given: object) -> Extension | None:
    """Return an extension's configuration if it is enabled."""
    if given is None:
        return None
    try:
        extension = msgspec.convert(given, Extension)
    except msgspec.ValidationError as error:
        raise BadJson(str(error)) from None
    return extension if extension.enabled else None
