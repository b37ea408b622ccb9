"""Presence: who is there, who is idle, and what they say about it.

A user is there as long as a client of theirs polls, or says so. What they are is written when it
changes, and told to those who share a room with them, here and on other servers. That they are
still there changes nothing: it is noted in memory, and written now and then without telling
anybody. So where nobody comes or goes presence costs next to nothing, and who reads in silence for
five minutes becomes idle at the cost of one row.

* `online` until nothing was heard of them (offline), or they did nothing (idle: `unavailable`).
* What polling makes of them is gathered for a second, so that a thousand who come at once are told
  of at once. What they say themselves is durable, and told, at once.
* `expire` (leased housekeeping) sees who is gone or idle, for all processes.

`currently_active` is true while they are online: that spares telling when they did something last.

Spec: client-server-api#presence
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from minihs.base.errors import Forbidden, InvalidParam, Unavailable
from minihs.base.limits import STATUS_CHARS_MAX
from minihs.storage import presence as presence_store
from minihs.storage.presence import Due
from minihs.storage.stream_rows import Membership, PresenceWrite

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minihs.protocol.identifiers import UserId
    from minihs.services.context import Services
    from minihs.storage.stream_reads import Positioned

Presence = Literal["online", "unavailable", "offline"]
ONLINE: Final = "online"
UNAVAILABLE: Final = "unavailable"
OFFLINE: Final = "offline"
STATES: Final = (ONLINE, UNAVAILABLE, OFFLINE)

POLL_GRACE_MS: Final = 30_000  # From the end of a poll to the next one.
IDLE_MS: Final = 300_000  # Spec: client-server-api#idle-timeout
SAID_MS: Final = IDLE_MS  # How long a client that does not poll is believed to be there.
REMOTE_MS: Final = 1_800_000  # How long another server's user is there without news.
REPEAT_MS: Final = 1_500_000  # So other servers hear of ours before, as they do the same.
GATHER_MS: Final = 1_000
RENEW_MS: Final = 10_000
THERE_MS_MAX: Final = REMOTE_MS  # Longer than anybody waits, too.
AHEAD_MS: Final = 60_000  # Nothing was written later than that from now.
EXPIRY_GRACE_MS: Final = 15_000  # What is only in the memory of a process comes first.
AT_ONCE_MAX: Final = 500


@dataclass(slots=True)
class _Sign:
    """Until when a user will not be gone, and when they did something last."""

    until_ms: int = 0
    active_ms: int = 0

    def hold_at(self, now_ms: int) -> None:
        """Leave out what only a clock that has been put back since can have said."""
        self.until_ms = min(self.until_ms, now_ms + THERE_MS_MAX)
        self.active_ms = min(self.active_ms, now_ms)

    def take(self, other: _Sign) -> None:
        """Say what another one says, too."""
        self.until_ms = max(self.until_ms, other.until_ms)
        self.active_ms = max(self.active_ms, other.active_ms)


@dataclass(slots=True, eq=False)
class PresenceBoard:
    """What a process knows of the users of this server, and has not written yet.

    `known` are those who are not offline, true as of the follower's head. `polled` is how each
    device polled last.
    """

    known: dict[str, PresenceWrite] = field(default_factory=dict)
    polled: dict[tuple[str, int], Presence] = field(default_factory=dict)
    _signs: dict[str, _Sign] = field(default_factory=dict)
    _wanted: dict[str, tuple[Presence, bool]] = field(default_factory=dict)
    _again: set[str] = field(default_factory=set)
    _is_gathering: bool = False
    _is_renewing: bool = False
    _gathered_ms: int = -GATHER_MS

    def follow(self, services: Services, items: Sequence[Positioned]) -> None:
        """Take new items of the stream. Who joins a room is told of to those in it."""
        for _, item in items:
            if isinstance(item, PresenceWrite):
                self._learn(item)
            elif (
                isinstance(item, Membership)
                and item.membership == "join"
                and item.user_id in self.known
                and item.user_id in self._signs  # Else another process speaks for them.
            ):
                self._again.add(item.user_id)
                self._gather_soon(services)

    def _learn(self, write: PresenceWrite) -> None:
        if write.local and write.presence != OFFLINE:
            self.known[write.user_id] = write
        else:
            self.known.pop(write.user_id, None)

    def _sign(self, services: Services, user_id: str) -> _Sign:
        sign = self._signs.get(user_id)
        if sign is None:
            sign = self._signs[user_id] = _Sign()
        sign.hold_at(services.clock.now_ms())
        if not self._is_renewing:
            self._is_renewing = True
            services.tasks.spawn("renew presence", self._renew_later(services))
        return sign

    def last_active_ms(self, write: PresenceWrite) -> int:
        """Return when a user did something last."""
        sign = self._signs.get(write.user_id)
        return max(write.last_active_ms, sign.active_ms if sign is not None else 0)

    # --- what users do ---------------------------------------------------------------------------

    def note_poll(
        self, services: Services, user_id: str, device_nid: int, presence: Presence, wait_ms: int
    ) -> None:
        """Take notice of a client that polls, and will wait for so long.

        That it is idle counts when it becomes so, else two clients of a user would take turns.
        """
        if presence == OFFLINE or not services.config.presence_enabled:
            return
        now_ms = services.clock.now_ms()
        sign = self._sign(services, user_id)
        sign.until_ms = max(sign.until_ms, now_ms + wait_ms + POLL_GRACE_MS)
        known, before = self.known.get(user_id), self.polled.get((user_id, device_nid))
        self.polled[user_id, device_nid] = presence
        if (
            known is None
            or (presence == UNAVAILABLE and known.presence == ONLINE and before != UNAVAILABLE)
            or (presence == ONLINE and known.presence == UNAVAILABLE and known.by_poll)
        ):
            self._wanted[user_id] = presence, True
            self._gather_soon(services)

    def note_active(self, services: Services, user_id: str) -> None:
        """Take notice of a user who does something: who was idle no longer is."""
        known = self.known.get(user_id)
        if known is None:
            return
        self._sign(services, user_id).active_ms = services.clock.now_ms()
        if known.presence == UNAVAILABLE:
            self._wanted[user_id] = ONLINE, False
            self._gather_soon(services)

    # --- writing ---------------------------------------------------------------------------------

    def _gather_soon(self, services: Services) -> None:
        if not self._is_gathering:
            self._is_gathering = True
            services.tasks.spawn("tell presence", self._gather(services))

    async def _gather(self, services: Services) -> None:
        """Write what has gathered: at once after a silence, else a second after the last time."""
        try:
            while self._wanted or self._again:
                wait_ms = self._gathered_ms + GATHER_MS - services.clock.monotonic_ms()
                if wait_ms > 0:
                    await services.clock.sleep_ms(wait_ms)
                self._gathered_ms = services.clock.monotonic_ms()
                wanted, again = self._wanted, self._again
                try:
                    await self.write_gathered(services)
                except Unavailable:  # It is tried again, unless they have become something else.
                    self._wanted = wanted | self._wanted
                    self._again |= again
        finally:
            self._is_gathering = False

    async def write_gathered(self, services: Services) -> None:
        """Write what users have become by what their clients do."""
        wanted, self._wanted = self._wanted, {}
        again, self._again = self._again - wanted.keys(), set()
        now_ms = services.clock.now_ms()
        rows: list[PresenceWrite] = []
        users = wanted.keys() | again
        for user_id, (old, rooms) in (await _load(services, users)).items():
            if user_id in wanted:
                state, by_poll = wanted[user_id]
                is_back = old.presence == OFFLINE or not by_poll
                new = replace(
                    old,
                    presence=state,
                    by_poll=by_poll,
                    last_active_ms=now_ms if is_back else old.last_active_ms,
                )
                if new.presence == old.presence:
                    continue  # Another process was faster.
            elif old.presence == OFFLINE:
                continue
            else:
                new = old
            rows.append(self._row(services, new, rooms))
        if rows:
            await services.committer.commit_rows(rows)

    async def set(
        self, services: Services, user_id: UserId, presence: Presence, status_msg: str | None
    ) -> None:
        """Write what a user says about themselves; told to others on return."""
        self._wanted.pop(user_id, None)
        self._again.discard(user_id)
        now_ms = services.clock.now_ms()
        sign = self._sign(services, user_id)
        sign.active_ms = now_ms
        sign.until_ms = max(sign.until_ms, now_ms + SAID_MS)
        old, rooms = (await _load(services, [user_id]))[user_id]
        new = replace(
            old, presence=presence, status_msg=status_msg, by_poll=False, last_active_ms=now_ms
        )
        same = (old.presence, old.status_msg, old.by_poll) == (presence, status_msg, False)
        if not same:
            await services.committer.commit_rows([self._row(services, new, rooms)])

    def _row(self, services: Services, new: PresenceWrite, rooms: tuple[str, ...]) -> PresenceWrite:
        sign = self._signs.get(new.user_id, _Sign())
        now_ms = services.clock.now_ms()
        sign.hold_at(now_ms)
        return replace(
            new,
            last_active_ms=max(min(new.last_active_ms, now_ms), sign.active_ms),
            currently_active=new.presence == ONLINE,
            until_ms=max(min(new.until_ms, now_ms + THERE_MS_MAX), sign.until_ms, now_ms),
            written_ms=now_ms,
            room_ids=rooms,
        )

    async def _renew_later(self, services: Services) -> None:
        await services.clock.sleep_ms(RENEW_MS)
        self._is_renewing = False
        await self.renew(services)

    async def renew(self, services: Services) -> None:
        """Write that users are still there, for who sees that they are gone; nobody is told."""
        now_ms = services.clock.now_ms()
        signs, self._signs = self._signs, {}
        for sign in signs.values():
            sign.hold_at(now_ms)
        if signs:
            known = dict(self.known)
            try:
                offline = await presence_store.renew(
                    services.db, {u: (sign.until_ms, sign.active_ms) for u, sign in signs.items()}
                )
            except Unavailable:  # Who is still there is told the next time.
                for user_id, sign in signs.items():
                    self._sign(services, user_id).take(sign)
                return
            for user_id in offline:  # A crash of the database: their next poll tells it again.
                if self.known.get(user_id) is known.get(user_id):
                    self.known.pop(user_id, None)
        for user_id, sign in signs.items():
            if sign.until_ms > now_ms and user_id not in self._signs:
                self._signs[user_id] = sign  # Their next poll may be a while.
        gone = signs.keys() - self._signs.keys()
        if gone:
            self.polled = {key: p for key, p in self.polled.items() if key[0] not in gone}

    async def load(self, services: Services) -> None:
        """Learn who is not offline, as of now; from then on the stream tells."""
        if not services.config.presence_enabled:
            return
        position, rows = await presence_store.list_present_here(services.db)
        await services.follower.wait_for(position)
        # No await from here on: nothing can pass in the stream between the steps.
        self.known = {write.user_id: write for write in rows}
        for item in services.follower.items_after(position):
            if isinstance(item, PresenceWrite):
                self._learn(item)

    def reset(self, services: Services) -> None:
        """Learn it anew: part of the stream was skipped."""
        services.tasks.spawn("load presence", self._load_again(services))

    async def _load_again(self, services: Services) -> None:
        while True:
            try:
                return await self.load(services)
            except Unavailable:
                await services.clock.sleep_ms(GATHER_MS)


async def _load(
    services: Services, user_ids: Collection[str]
) -> dict[str, tuple[PresenceWrite, tuple[str, ...]]]:
    """Return users as they are, offline where nothing is known, and their rooms."""
    found = await presence_store.list_presence(services.db, user_ids)
    return {u: (old or _unknown(services, u), rooms) for u, (old, rooms) in found.items()}


def _unknown(services: Services, user_id: str) -> PresenceWrite:
    return PresenceWrite(
        user_id,  # type: ignore[arg-type]  # of an account, or checked
        OFFLINE,
        None,
        last_active_ms=0,
        currently_active=False,
        until_ms=0,
        by_poll=False,
        local=services.is_local(user_id),
        written_ms=0,
    )


# --- what clients ask and say ------------------------------------------------------------------


async def set_presence(
    services: Services, user_id: UserId, presence: str, status_msg: str | None
) -> None:
    """Let a user be online, unavailable or offline, and say something about it.

    Raises:
        InvalidParam: there is no such presence; or what they say is too long, or has a NUL in it.

    Spec: client-server-api#put_matrixclientv3presenceuseridstatus
    """
    if presence not in STATES:
        raise InvalidParam("presence must be online, unavailable or offline.")
    if status_msg is not None and (len(status_msg) > STATUS_CHARS_MAX or "\0" in status_msg):
        raise InvalidParam(f"status_msg may have {STATUS_CHARS_MAX} characters, no NUL.")
    if services.config.presence_enabled:
        await services.presence.set(services, user_id, presence, status_msg)  # type: ignore[arg-type]


async def get_presence(services: Services, reader: UserId, user_id: UserId) -> dict[str, object]:
    """Return a user's presence; they are offline where nothing is known.

    Raises:
        Forbidden: the reader shares no room with them.

    Spec: client-server-api#get_matrixclientv3presenceuseridstatus
    """
    found = await presence_store.fetch_shared(services.db, reader, user_id)
    if user_id != reader and not found.is_shared:
        raise Forbidden("You are not allowed to see their presence.")
    if found.presence is None or not services.config.presence_enabled:
        return {"presence": OFFLINE}
    return content_of(services, found.presence)


def content_of(services: Services, write: PresenceWrite) -> dict[str, object]:
    """Return the content of an m.presence event as it is now."""
    content: dict[str, object] = {"presence": write.presence}
    active_ms = services.presence.last_active_ms(write)
    if active_ms:
        content["last_active_ago"] = max(services.clock.now_ms() - active_ms, 0)
    content["currently_active"] = write.currently_active
    if write.status_msg is not None:
        content["status_msg"] = write.status_msg
    return content


# --- what other servers say --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemotePresence:
    """What another server says of one of its users."""

    user_id: UserId
    presence: Presence
    status_msg: str | None
    last_active_ms: int
    currently_active: bool


async def receive_presence(services: Services, received: Mapping[UserId, RemotePresence]) -> None:
    """Take the presence of another server's users who are in a room with us.

    Spec: server-server-api#presence
    """
    now_ms = services.clock.now_ms()
    until_ms = now_ms + REMOTE_MS
    rows: list[PresenceWrite] = []
    same: dict[str, tuple[int, int]] = {}
    for user_id, (old, rooms) in (await _load(services, received)).items():
        remote = received[user_id]  # type: ignore[index]  # it was asked for
        if not rooms:
            continue
        new = replace(
            old,
            presence=remote.presence,
            status_msg=remote.status_msg,
            last_active_ms=remote.last_active_ms,
            currently_active=remote.currently_active,
            until_ms=until_ms,
            written_ms=now_ms,
            room_ids=rooms,
        )
        if _is_same(old, new):
            same[user_id] = until_ms, remote.last_active_ms
        else:
            rows.append(new)
    if same:
        await presence_store.renew(services.db, same)
    if rows:
        await services.committer.commit_rows(rows)


def _is_same(old: PresenceWrite, new: PresenceWrite) -> bool:
    """Return whether there is nothing to tell."""
    return (old.presence, old.status_msg, old.currently_active) == (
        new.presence,
        new.status_msg,
        new.currently_active,
    )


# --- time --------------------------------------------------------------------------------------


async def expire(services: Services) -> None:
    """See who is gone and who is idle, and tell other servers again who is still there.

    What is of a time to come was written before the clock was put back: it counts as of now.
    """
    if not services.config.presence_enabled:
        return
    now_ms = services.clock.now_ms()
    gone_ms, idle_ms = now_ms - EXPIRY_GRACE_MS, now_ms - IDLE_MS - EXPIRY_GRACE_MS
    due = {
        write.user_id: write
        for write in await presence_store.list_due(
            services.db,
            Due(gone_ms, idle_ms, now_ms - REPEAT_MS, now_ms + AHEAD_MS, now_ms + 2 * THERE_MS_MAX),
            AT_ONCE_MAX,
        )
    }
    if not due:
        return
    rows = [
        replace(
            _expired(_held_at(old, now_ms), gone_ms, idle_ms), written_ms=now_ms, room_ids=rooms
        )
        for old, rooms in (await _load(services, due)).values()
    ]
    await services.committer.commit_rows(rows)


def _held_at(old: PresenceWrite, now_ms: int) -> PresenceWrite:
    return replace(
        old,
        until_ms=min(old.until_ms, now_ms + THERE_MS_MAX),
        last_active_ms=min(old.last_active_ms, now_ms),
    )


def _expired(old: PresenceWrite, gone_ms: int, idle_ms: int) -> PresenceWrite:
    if old.until_ms <= gone_ms:
        return replace(old, presence=OFFLINE, currently_active=False, by_poll=False)
    if old.local and old.presence == ONLINE and old.last_active_ms <= idle_ms:
        return replace(old, presence=UNAVAILABLE, currently_active=False, by_poll=False)
    return old


async def list_in_rooms(services: Services, room_ids: Iterable[str]) -> Sequence[PresenceWrite]:
    """Return the presence of members of rooms who are not offline; not more than some hundreds."""
    return await presence_store.list_of_rooms(services.db, list(room_ids), AT_ONCE_MAX)
