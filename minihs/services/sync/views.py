"""Views: which rooms a user is in, kept true by following the stream.

A view is loaded once, as of some position, and then every membership that passes in the stream is
applied to it. So at any time it says what was true at the follower's `head`: no invalidation is
needed, because nothing is cached; it is a reader that has seen everything up to a position.

`changed_at` is the position of the last item that could concern the user: a `/sync` that has seen
it has nothing to do but wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.base.caching import BoundedCache
from minihs.storage import membership, to_device
from minihs.storage.event_store import StoredEvent
from minihs.storage.stream_rows import (
    AccountDataWrite,
    DelayedEventOutcome,
    DeviceListChange,
    ForgottenRoom,
    Membership,
    PresenceWrite,
    ToDeviceNews,
    UnignoredUser,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from minihs.services.accounts.authentication import Requester
    from minihs.storage.database import Database
    from minihs.storage.stream_reads import Positioned
    from minihs.storage.streams import StreamFollower

VIEWS_MAX = 10_000
LOGOUTS_MAX = 10_000
IN_VIEW = ("join", "invite", "knock")


@dataclass(frozen=True, slots=True)
class RoomMembership:
    """A user's membership in a room, and the position and event that made it so."""

    membership: str
    position: int
    event_id: str
    joined_at: int  # The position since which the user has been joined without a break.


@dataclass(slots=True)
class Inbox:
    """Where the messages lie that wait for a device: none is before `first` or after `last`."""

    first: int
    last: int


@dataclass(slots=True, eq=False)
class UserView:
    """The rooms of one user; `changed_at` is when anything last concerned them.

    `inboxes` are of those devices (by device_nid) for which messages may wait. Nobody's presence
    that they may see has changed after `presence_at`. `ignored` are the users whom they ignore, as
    far as somebody has asked (None: not since they changed them last, at `ignored_at`).
    """

    user_id: str
    rooms: dict[str, RoomMembership]
    changed_at: int
    inboxes: dict[int, Inbox] = field(default_factory=dict)
    presence_at: int = 0
    ignored: frozenset[str] | None = None
    ignored_at: int = 0
    waiters: set[asyncio.Future[None]] = field(default_factory=set)

    def wake(self) -> None:
        """Wake everyone who waits for news of this user."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()


class Views:
    """The views of the users who sync at this process."""

    def __init__(self, db: Database, follower: StreamFollower) -> None:
        self._db = db
        self._follower = follower
        self._views: dict[str, UserView] = {}
        self._loading: dict[str, asyncio.Future[UserView]] = {}
        self._by_room: dict[str, set[UserView]] = {}
        self._deaf_at = -1
        # The position at which devices were logged out last, of those that were lately.
        self._logouts: BoundedCache[int, int] = BoundedCache(LOGOUTS_MAX)
        self.is_closing = False

    def close(self) -> None:
        """Let those who wait for news be answered now: the server stops."""
        self.is_closing = True
        for view in self._all():
            view.wake()

    def _all(self) -> set[UserView]:
        """Return the views of users and of watchers."""
        return {*self._views.values(), *itertools.chain(*self._by_room.values())}

    @contextlib.contextmanager
    def watching(self, room_id: str) -> Iterator[UserView]:
        """Give a view of one room, for somebody who need not be in it, while it is used."""
        view = UserView("", {room_id: RoomMembership("leave", 0, "", 0)}, self._follower.head)
        self._by_room.setdefault(room_id, set()).add(view)
        try:
            yield view
        finally:
            self._leave(room_id, view)

    def _leave(self, room_id: str, view: UserView) -> None:
        members = self._by_room.get(room_id)
        if members is not None:
            members.discard(view)
            if not members:
                del self._by_room[room_id]

    @property
    def waiting(self) -> int:
        """How many requests wait for news."""
        return sum(len(view.waiters) for view in self._all())

    async def get(self, user_id: str) -> UserView:
        """Return the view of a user, true as of the follower's head."""
        view = self._views.get(user_id)
        if view is not None:
            return view
        loading = self._loading.get(user_id)
        if loading is None:
            loading = self._loading[user_id] = asyncio.ensure_future(self._load(user_id))
            loading.add_done_callback(lambda _: self._loading.pop(user_id, None))
        return await asyncio.shield(loading)

    async def _load(self, user_id: str) -> UserView:
        while True:
            async with self._db.snapshot() as tx:
                position, rows = await membership.list_rooms_in_view(tx, user_id)
                inboxes = await to_device.list_inboxes(tx, user_id)
            await self._follower.wait_for(position)
            if position >= self._follower.floor:
                break
        # No await from here on: nothing can pass in the stream between the last step and the next.
        rooms = {
            room_id: RoomMembership(kind, at, event_id, joined_at)
            for room_id, kind, at, event_id, joined_at in rows
        }
        view = UserView(
            user_id,
            rooms,
            self._follower.head,
            {nid: Inbox(first, last) for nid, first, last in inboxes},
            self._follower.head,
        )
        for item in self._follower.items_after(position):
            if isinstance(item, Membership) and item.user_id == user_id:
                self._apply(view, self._position_of(item), item)
            elif isinstance(item, ToDeviceNews):
                _fill(view, self._follower.head, item)
        if len(self._views) >= VIEWS_MAX:
            self._forget_some()
        self._views[user_id] = view
        for room_id in view.rooms:
            self._by_room.setdefault(room_id, set()).add(view)
        return view

    def _position_of(self, item: Membership) -> int:
        for at, other in self._follower.room_items(item.room_id):
            if other is item:
                return at
        return self._follower.head

    def _apply(self, view: UserView, position: int, change: Membership) -> None:
        old = view.rooms.get(change.room_id)
        if change.membership in IN_VIEW:
            joined_at = change.since
            if joined_at is None:
                still = old is not None and old.membership == "join" and change.membership == "join"
                joined_at = old.joined_at if still and old is not None else position
            view.rooms[change.room_id] = RoomMembership(
                change.membership, position, change.event_id, joined_at
            )
        elif old is not None:
            del view.rooms[change.room_id]

    def follow(self, items: Sequence[Positioned]) -> None:
        """Apply new items of the stream, and wake those whom they concern."""
        concerned: set[UserView] = set()
        personal: list[tuple[int, PresenceWrite | DeviceListChange]] = []
        for position, item in items:
            if isinstance(item, StoredEvent):
                self._touch(self._by_room.get(item.event.room_id), position, concerned)
            elif isinstance(item, Membership):
                self._follow_membership(position, item, concerned)
            elif isinstance(
                item, AccountDataWrite | ForgottenRoom | UnignoredUser | DelayedEventOutcome
            ):
                self._follow_own(position, item, concerned)
            elif isinstance(item, PresenceWrite | DeviceListChange):
                personal.append((position, item))
            elif isinstance(item, ToDeviceNews):
                self._follow_messages(position, item, concerned)
            else:
                self._touch(self._by_room.get(item.room_id), position, concerned)
        if personal:
            self._follow_personal(personal, concerned)
        for view in concerned:
            view.wake()

    def note_logout(self, device_nid: int, user_id: str) -> None:
        """Take notice that a device has been logged out, and wake who waits for its user's news."""
        self._logouts.put(device_nid, self._follower.head + self._follower.behind)
        view = self._views.get(user_id)
        if view is not None:
            view.wake()

    def note_deaf(self) -> None:
        """Take notice that logouts may not have been heard of, and wake everybody who waits."""
        self._deaf_at = self._follower.head + self._follower.behind
        for view in self._views.values():
            view.wake()

    def may_have_gone_unheard(self, requester: Requester) -> bool:
        """Return whether a logout of the requester's device may not have been heard of."""
        return self._deaf_at >= requester.position

    def may_be_logged_out(self, requester: Requester) -> bool:
        """Return whether a requester's device has been logged out since they were authenticated.

        It may have been before, and logged in anew.
        """
        logout_at = self._logouts.get(requester.device_nid)
        return logout_at is not None and logout_at >= requester.position

    def _follow_own(
        self,
        position: int,
        item: AccountDataWrite | ForgottenRoom | UnignoredUser | DelayedEventOutcome,
        concerned: set[UserView],
    ) -> None:
        view = self._views.get(item.user_id)
        if view is None:
            return
        if isinstance(item, AccountDataWrite) and item.type == "m.ignored_user_list":
            view.ignored, view.ignored_at = None, position
        self._touch({view}, position, concerned)

    def _follow_messages(self, position: int, news: ToDeviceNews, concerned: set[UserView]) -> None:
        for user_id in {user_id for user_id, _ in news.devices}:
            view = self._views.get(user_id)
            if view is not None:
                _fill(view, position, news)
                self._touch({view}, position, concerned)

    def _follow_personal(
        self,
        changes: Sequence[tuple[int, PresenceWrite | DeviceListChange]],
        concerned: set[UserView],
    ) -> None:
        """Note whom changes of users concern: those in their rooms, once, however many changed."""
        rooms = {room_id for _, change in changes for room_id in change.room_ids}
        found = {
            view
            for room_id in rooms
            for view in self._by_room.get(room_id, ())
            if view.rooms[room_id].membership == "join"
        }
        found |= {view for _, c in changes if (view := self._views.get(c.user_id)) is not None}
        last = changes[-1][0]
        for view in found:
            view.presence_at = last
        self._touch(found, last, concerned)

    def _touch(self, views: set[UserView] | None, position: int, concerned: set[UserView]) -> None:
        if views:
            for view in views:
                view.changed_at = position
            concerned |= views

    def _follow_membership(
        self, position: int, change: Membership, concerned: set[UserView]
    ) -> None:
        view = self._views.get(change.user_id)
        if view is None:
            return
        self._apply(view, position, change)
        if change.room_id in view.rooms:
            self._by_room.setdefault(change.room_id, set()).add(view)
        else:
            self._leave(change.room_id, view)
        self._touch({view}, position, concerned)

    def reset(self) -> None:
        """Drop every view: part of the stream was skipped. Those who wait sync anew."""
        views, self._views = self._all(), {}
        self._by_room.clear()
        for view in views:
            view.wake()

    def _forget_some(self) -> None:
        """Drop the views nobody waits on, oldest first, until a tenth is free."""
        for user_id, view in list(self._views.items()):
            if len(self._views) < VIEWS_MAX * 9 // 10:
                return
            if not view.waiters:
                del self._views[user_id]
                for room_id in view.rooms:
                    self._leave(room_id, view)


def _fill(view: UserView, position: int, news: ToDeviceNews) -> None:
    """Note what of some messages is for devices of a view's user."""
    for user_id, device_nid in news.devices:
        if user_id == view.user_id:
            inbox = view.inboxes.setdefault(device_nid, Inbox(position, position))
            inbox.last = max(inbox.last, position)
