"""The keys of other servers: known ones from memory or the database, others from their owners.

A key is looked up by server *and* key ID. What is known of it is enough if it was valid at the
moment in question; else its server is asked, and if that does not help, the notaries that the
configuration trusts. All who want keys of a server at the same time share one request. A server
that could not be asked, or whose answer did not help, is left alone for a while, longer each time.

Spec: server-server-api#retrieving-server-keys
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minihs.base.caching import BoundedCache
from minihs.base.sharing import SharedWork
from minihs.protocol.identifiers import ServerName, parse_server_name
from minihs.protocol.server_keys import (
    ServerKeys,
    ServerKeysError,
    VerifyKey,
    is_key_id,
    read_notary_answer,
    read_server_keys,
)
from minihs.remote.transport import RemoteError
from minihs.storage import server_keys as stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from minihs.base.clock import Clock
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

CACHED_KEYS_MAX: Final = 50_000
SERVERS_TO_AVOID_MAX: Final = 50_000
KEY_IDS_MAX: Final = 20
PAUSE_MS_MIN: Final = 1_000
PAUSE_MS_MAX: Final = 120_000


@dataclass(frozen=True, slots=True)
class Need:
    """Keys of a server (none named: whatever it uses) as they must have been valid `at_ms`.

    With `for_request` they must be in use: a retired key proves events of its time, but no request.
    """

    key_ids: tuple[str, ...]
    at_ms: int
    for_request: bool = False

    def is_met_by(self, key: VerifyKey | None) -> bool:
        """Return whether this is a key of use."""
        return (
            key is not None
            and key.is_valid_at(self.at_ms)
            and not (self.for_request and key.is_old)
        )


@dataclass(frozen=True, slots=True)
class _Pause:
    """How long not to ask a server that has disappointed us `times` in a row.

    `until_ms` is by the clock that never steps.
    """

    until_ms: int
    times: int


class KeyRing:
    """The keys that this process has seen, and the requests for keys that it has under way."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pauses: BoundedCache[str, _Pause] = BoundedCache(SERVERS_TO_AVOID_MAX)
        self.keys: BoundedCache[tuple[str, str], VerifyKey] = BoundedCache(CACHED_KEYS_MAX)
        self.requests: SharedWork[str, None] = SharedWork("fetch keys of")

    def is_paused(self, server_name: str) -> bool:
        """Return whether a server is to be left alone."""
        pause = self._pauses.get(server_name)
        return pause is not None and pause.until_ms > self._clock.monotonic_ms()

    def note(self, server_name: str, *, helped: bool) -> None:
        """Remember whether asking a server helped; if not, leave it alone for a while."""
        before = self._pauses.get(server_name)
        if helped:
            self._pauses.discard(server_name)
            return
        times = 1 if before is None else min(before.times + 1, 30)
        pause_ms = min(PAUSE_MS_MIN << (times - 1), PAUSE_MS_MAX)
        self._pauses.put(server_name, _Pause(self._clock.monotonic_ms() + pause_ms, times))

    async def close(self) -> None:
        """Give up every request under way."""
        await self.requests.close()


async def verify_keys(
    services: Services,
    server_name: str,
    key_ids: Iterable[str],
    at_ms: int,
    *,
    for_request: bool = False,
) -> Mapping[str, bytes]:
    """Return those of a server's public keys that were valid at a moment, by key ID.

    `at_ms` is when the signature was made: now for a request (`for_request`), `origin_server_ts`
    for an event; 0 for an event of a room version in which keys do not expire.

    Raises:
        RuntimeError: a transaction is open and the server would have to be asked.

    Spec: server-server-api#publishing-keys
    """
    wanted = tuple(key_id for key_id in dict.fromkeys(key_ids) if is_key_id(key_id))[:KEY_IDS_MAX]
    name = parse_server_name(server_name)
    if name is None or not wanted:
        return {}
    if name == services.server_name:
        key = services.signing_key
        own = {old.key_id: old.key for old in services.retired_keys if old.is_valid_at(at_ms)}
        own[key.key_id] = key.public_key
        return {key_id: own[key_id] for key_id in wanted if key_id in own}
    known = await _known(services, name, Need(wanted, at_ms, for_request))
    if missing := tuple(key_id for key_id in wanted if key_id not in known):
        need = Need(missing, at_ms, for_request)
        await refresh(services, name, need)
        known |= await _known(services, name, need)
    return known


async def refresh(services: Services, server_name: ServerName, need: Need) -> None:
    """Ask a server for its keys, and notaries if that does not help; unless it is too soon."""
    ring = services.key_ring
    if not ring.is_paused(server_name):
        await ring.requests.run(server_name, lambda: _ask(services, server_name, need))


async def _known(services: Services, server_name: ServerName, need: Need) -> dict[str, bytes]:
    """Return those of the needed keys that are known, by key ID."""
    cache = services.key_ring.keys
    found = {key_id: cache.get((server_name, key_id)) for key_id in need.key_ids}
    if unmet := [key_id for key_id, key in found.items() if not need.is_met_by(key)]:
        # What is outdated in memory need not be in the database: another process may have asked.
        for key in await stored.list_server_keys(services.db, server_name, unmet):
            found[key.key_id] = key
            cache.put((server_name, key.key_id), key)
    return {
        key_id: key.key for key_id, key in found.items() if key is not None and need.is_met_by(key)
    }


async def _is_met(services: Services, server_name: ServerName, need: Need) -> bool:
    if not need.key_ids:
        published = await stored.fetch_key_object(services.db, server_name)
        return published is not None and published[1] >= need.at_ms
    return len(await _known(services, server_name, need)) == len(need.key_ids)


async def _ask(services: Services, server_name: ServerName, need: Need) -> None:
    """Ask the owner, then notaries while need be."""
    await _ask_owner(services, server_name)
    met = await _is_met(services, server_name, need)
    for notary in services.config.notaries:
        if not met and notary not in (server_name, services.server_name):
            await _ask_notary(services, server_name, ServerName(notary), need)
            met = await _is_met(services, server_name, need)
    services.key_ring.note(server_name, helped=met)


async def _ask_owner(services: Services, server_name: ServerName) -> None:
    answer = await services.remote.get_server_keys(server_name)
    if isinstance(answer, RemoteError):
        logger.info("no keys: %s", answer.describe())
        return
    try:
        published = read_server_keys(answer, server_name, services.clock.now_ms())
    except ServerKeysError as error:
        logger.warning("the keys that %s publishes are refused: %s", server_name, error)
        return
    await _remember(services, published, from_notary=False)


async def _ask_notary(
    services: Services, server_name: ServerName, notary: ServerName, need: Need
) -> None:
    ring = services.key_ring
    if ring.is_paused(notary):
        return
    now_ms = services.clock.now_ms()
    notary_keys = await _current_keys(services, notary, now_ms)
    if not notary_keys:
        ring.note(notary, helped=False)
        return
    minimum_ms = min(need.at_ms, now_ms)
    answer = await services.remote.query_server_keys(notary, server_name, need.key_ids, minimum_ms)
    if isinstance(answer, RemoteError):
        ring.note(notary, helped=False)
        logger.info("no keys of %s: %s", server_name, answer.describe())
        return
    for published in read_notary_answer(answer, server_name, notary, notary_keys, now_ms):
        await _remember(services, published, from_notary=True)


async def _current_keys(services: Services, notary: ServerName, now_ms: int) -> dict[str, bytes]:
    """Return the keys with which a notary signs now, from itself alone."""
    keys = await stored.list_current_server_keys(services.db, notary, now_ms)
    if not keys:
        await _ask_owner(services, notary)
        keys = await stored.list_current_server_keys(services.db, notary, now_ms)
    return {key.key_id: key.key for key in keys}


async def _remember(services: Services, published: ServerKeys, *, from_notary: bool) -> None:
    await stored.upsert_server_keys(services.db, published, from_notary=from_notary)
    for key in published.keys:  # The database decides what holds; memory is filled from it.
        services.key_ring.keys.discard((published.server_name, key.key_id))
