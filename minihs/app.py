"""The composition root: the only place that knows every room of the house.

`build_services` opens the database and wires the parts; `serve` adds the HTTP listeners. Tests use
the former with a clock of their own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import TYPE_CHECKING

from aiohttp import web

from minihs.api import metrics
from minihs.api.server import build_application
from minihs.base.batching import Batcher
from minihs.base.caching import BoundedCache
from minihs.base.clock import Clock, SystemClock
from minihs.base.leaky_buckets import LeakyBuckets
from minihs.base.metrics import Metrics
from minihs.base.randomness import Randomness
from minihs.base.sharing import SharedWork
from minihs.base.tasks import TaskOwner
from minihs.checks import check_config, check_open_database, server_tls
from minihs.protocol.identifiers import EventId, ServerName
from minihs.remote.appservices import AppserviceRemote
from minihs.remote.client import Remote
from minihs.remote.http import HttpTransport
from minihs.remote.signed_requests import SignedRequests
from minihs.services import own_keys
from minihs.services.appservices import registry
from minihs.services.appservices.registration import load_registrations
from minihs.services.context import Services
from minihs.services.ephemeral import typing_notifications
from minihs.services.ephemeral.presence import PresenceBoard
from minihs.services.ephemeral.typing_notifications import TypingRooms
from minihs.services.federation.delivery import Delivery
from minihs.services.rooms.heads import RoomHeads
from minihs.services.rooms.notifications import Rulesets
from minihs.services.rooms.sticky_limits import StickyLimits
from minihs.services.server_keys import KeyRing
from minihs.services.sync.joined_rooms import SharedParts
from minihs.services.sync.sliding_memory import SlidingMemory
from minihs.services.sync.views import Views
from minihs.storage import account_data, device_lists, sessions, unread
from minihs.storage.database import Database, is_transaction_open
from minihs.storage.event_store import EventStore
from minihs.storage.group_commit import GroupCommitter
from minihs.storage.join_marks import JoinMarks
from minihs.storage.numbers import Numbers
from minihs.storage.state import StateStore
from minihs.storage.streams import StreamFollower

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Sequence

    from minihs.base.config import Config
    from minihs.remote.transport import Transport

logger = logging.getLogger(__name__)

KEEPALIVE_S = 75
EVENT_CACHE_BYTES = 32 * 1_048_576
PARSED_FILTERS_MAX = 10_000
REMOTE_SUMMARIES_MAX = 50_000  # Rooms, and links of spaces.
SERVER_ACLS_MAX = 1_000
LAST_ANSWERS_MS = 500  # For connections that are in use; those that are not are just closed.
SHUTDOWN_S = 4  # For the requests that have begun; aiohttp waits as long for cancelled ones.


@contextlib.asynccontextmanager
async def build_services(
    config: Config,
    dsn: str,
    *,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
    transport: Transport | None = None,
) -> AsyncIterator[Services]:
    """Open the database at `dsn` and wire the services; close everything at the end.

    `transport` carries requests to other servers: HTTPS, unless a test has another.

    Raises:
        ConfigError: the configuration cannot be used with this database.
    """
    check_config(config)
    clock = clock or SystemClock()
    randomness = randomness or Randomness()
    transport = transport or HttpTransport(config, clock, randomness)
    db = await Database.connect(dsn, connections=config.database_connections)
    tasks = TaskOwner(clock)
    events = EventStore(db, EVENT_CACHE_BYTES)
    follower = StreamFollower(db, events, clock, tasks)
    key_ring = KeyRing(clock)
    transactions: SharedWork[tuple[str, str], bytes] = SharedWork("receive transaction")
    handshakes: SharedWork[str, EventId] = SharedWork("handshake")
    join_marks = JoinMarks(db)
    appservice_remote = AppserviceRemote(clock, is_transaction_open=is_transaction_open)
    try:
        await check_open_database(db, config)
        states = StateStore(db, Numbers(db, "state_numbers"))
        rulesets = Rulesets(db)
        signing_key = own_keys.load_signing_key(config, randomness)
        server_name = ServerName(config.server_name)
        delivery = Delivery(clock, db)
        requests = SignedRequests(
            server_name, signing_key, transport,
            is_transaction_open=is_transaction_open, is_backing_off=delivery.is_backing_off,
        )  # fmt: skip
        services = Services(
            config=config,
            server_name=server_name,
            signing_key=signing_key,
            retired_keys=own_keys.read_retired_keys(config),
            clock=clock,
            randomness=randomness,
            tasks=tasks,
            db=db,
            remote=Remote(requests),
            key_ring=key_ring,
            transactions=transactions,
            token_owners=Batcher(lambda hashes: sessions.fetch_token_owners(db, hashes)),
            events=events,
            event_numbers=Numbers(db, "event_numbers"),
            room_numbers=Numbers(db, "room_numbers"),
            states=states,
            committer=GroupCommitter(db, states, events, follower, tasks),
            follower=follower,
            heads=RoomHeads(),
            rulesets=rulesets,
            views=Views(db, follower),
            shared_parts=SharedParts(),
            sliding=SlidingMemory(db, follower),
            unread=Batcher(lambda asked: unread.list_unread(db, asked)),
            ignored_lists=Batcher(
                lambda users: account_data.list_of_type(db, users, "m.ignored_user_list")
            ),
            joined_rooms=Batcher(lambda users: device_lists.list_joined_rooms(db, users)),
            parsed_filters=BoundedCache(PARSED_FILTERS_MAX),
            remote_summaries=BoundedCache(REMOTE_SUMMARIES_MAX),
            typing=TypingRooms(),
            presence=PresenceBoard(),
            sticky_limits=StickyLimits(clock),
            redactions=LeakyBuckets(clock),
            handshakes=handshakes,
            join_marks=join_marks,
            server_acls=BoundedCache(SERVER_ACLS_MAX),
            delivery=delivery,
            appservices=registry.Appservices(
                load_registrations(config.registration_files, config.server_name),
                appservice_remote,
                db,
            ),
            metrics=Metrics(),
        )
        follower.subscribe(rulesets.follow, rulesets.reset)
        follower.subscribe(services.sliding.follow, services.sliding.reset)
        follower.subscribe(services.views.follow, services.views.reset)
        follower.subscribe_logouts(services.views.note_logout, services.views.note_deaf)
        follower.subscribe(services.sticky_limits.follow, services.sticky_limits.reset)
        follower.subscribe(delivery.follow, delivery.reset)
        follower.subscribe(functools.partial(typing_notifications.follow, services), lambda: None)
        follower.subscribe(
            functools.partial(services.presence.follow, services),
            functools.partial(services.presence.reset, services),
        )
        await follower.start()
        services.committer.start()
        await services.presence.load(services)
        await registry.begin(services.appservices, db, clock.now_ms())
        yield services
    finally:
        await handshakes.close()
        await tasks.close()
        await follower.close()
        await transactions.close()
        await key_ring.close()
        await transport.close()
        await appservice_remote.close()
        await join_marks.close()
        await db.close()


@contextlib.asynccontextmanager
async def serve(services: Services, sockets: Sequence[socket.socket | None]) -> AsyncIterator[None]:
    """Serve HTTP on the plain socket, and HTTPS on the second one if there is one."""
    runner = web.AppRunner(
        build_application(services),
        access_log=None, keepalive_timeout=KEEPALIVE_S, shutdown_timeout=SHUTDOWN_S,
    )  # fmt: skip
    await runner.setup()
    plain, encrypted = sockets
    try:
        if encrypted is not None:  # First: whoever probes the plain listener finds both.
            context = server_tls(services.config)
            await web.SockSite(runner, encrypted, ssl_context=context).start()
        if plain is not None:
            await web.SockSite(runner, plain).start()
        if services.metrics.shared is not None:
            services.tasks.keep("publish metrics", functools.partial(metrics.publish, services))
        yield
    finally:
        for site in list(runner.sites):
            await site.stop()
        services.views.close()  # When nobody can connect any more.
        await _last_answers(runner, services.clock)
        await runner.cleanup()


async def _last_answers(runner: web.AppRunner, clock: Clock) -> None:
    """Return when nobody is connected, or after a while.

    Whoever asks meanwhile is answered, and told that the connection ends: a request that comes when
    a connection is just being closed would be lost.
    """
    until_ms = clock.monotonic_ms() + LAST_ANSWERS_MS
    while runner.server is not None and runner.server.connections:
        if clock.monotonic_ms() >= until_ms:
            break
        await clock.sleep_ms(LAST_ANSWERS_MS // 20)
