"""`Services`: what every service function is given first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minihs.base.batching import Batcher
    from minihs.base.caching import BoundedCache
    from minihs.base.clock import Clock
    from minihs.base.config import Config
    from minihs.base.leaky_buckets import LeakyBuckets
    from minihs.base.metrics import Metrics
    from minihs.base.randomness import Randomness
    from minihs.base.sharing import SharedWork
    from minihs.base.tasks import TaskOwner
    from minihs.protocol.filters import Filter
    from minihs.protocol.identifiers import EventId, ServerName
    from minihs.protocol.server_acl import ServerAcl
    from minihs.protocol.server_keys import VerifyKey
    from minihs.protocol.signatures import SigningKey
    from minihs.remote.client import Remote
    from minihs.services.appservices.registry import Appservices
    from minihs.services.ephemeral.presence import PresenceBoard
    from minihs.services.ephemeral.typing_notifications import TypingRooms
    from minihs.services.federation.delivery import Delivery
    from minihs.services.rooms.heads import RoomHeads
    from minihs.services.rooms.notifications import Rulesets
    from minihs.services.rooms.sticky_limits import StickyLimits
    from minihs.services.rooms.summaries import RemoteAnswer
    from minihs.services.server_keys import KeyRing
    from minihs.services.sync.joined_rooms import SharedParts
    from minihs.services.sync.sliding_memory import SlidingMemory
    from minihs.services.sync.views import Views
    from minihs.storage.database import Database
    from minihs.storage.event_store import EventStore
    from minihs.storage.group_commit import GroupCommitter
    from minihs.storage.join_marks import JoinMarks
    from minihs.storage.numbers import Numbers
    from minihs.storage.sessions import TokenOwner
    from minihs.storage.state import StateStore
    from minihs.storage.streams import StreamFollower
    from minihs.storage.unread import UnreadCounts


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one running server. A module of functions takes it as its first argument.

    `events` and `states` cache immutable things; `committer` is the process's only writer of the
    stream; `follower` is how the process sees what any process wrote.
    """

    config: Config
    server_name: ServerName
    signing_key: SigningKey
    retired_keys: tuple[VerifyKey, ...]
    clock: Clock
    randomness: Randomness
    tasks: TaskOwner
    db: Database
    remote: Remote
    key_ring: KeyRing
    transactions: SharedWork[tuple[str, str], bytes]
    token_owners: Batcher[str, TokenOwner]
    events: EventStore
    event_numbers: Numbers
    room_numbers: Numbers
    states: StateStore
    committer: GroupCommitter
    follower: StreamFollower
    heads: RoomHeads
    rulesets: Rulesets
    views: Views
    shared_parts: SharedParts
    sliding: SlidingMemory
    unread: Batcher[tuple[str, str], UnreadCounts]
    ignored_lists: Batcher[str, str]
    joined_rooms: Batcher[str, dict[str, int]]
    parsed_filters: BoundedCache[tuple[str, str], Filter]
    remote_summaries: BoundedCache[tuple[str, bool], RemoteAnswer]
    typing: TypingRooms
    presence: PresenceBoard
    sticky_limits: StickyLimits
    redactions: LeakyBuckets[tuple[str, bool]]
    handshakes: SharedWork[str, EventId]
    join_marks: JoinMarks
    server_acls: BoundedCache[EventId, ServerAcl]
    delivery: Delivery
    appservices: Appservices
    metrics: Metrics

    def is_local(self, user_id: str) -> bool:
        """Return whether a user id belongs to this server."""
        return user_id.partition(":")[2] == self.server_name
