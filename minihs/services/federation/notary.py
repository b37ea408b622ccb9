"""The keys that we publish: our own, and as a notary those of other servers, signed by us too.

Spec: server-server-api#retrieving-server-keys
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from minihs.protocol.canonical_json import decode
from minihs.protocol.hashes import encode_base64
from minihs.protocol.identifiers import parse_server_name
from minihs.protocol.server_keys import is_key_id
from minihs.protocol.signatures import sign_json
from minihs.services.server_keys import KEY_IDS_MAX, Need, refresh
from minihs.storage.server_keys import fetch_key_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.identifiers import ServerName
    from minihs.services.context import Services

VALIDITY_MS: Final = 86_400_000
SERVERS_MAX: Final = 50


def own_keys(services: Services) -> dict[str, object]:
    """Return our key object, good for a day, with the keys that we used before.

    Spec: server-server-api#publishing-keys
    """
    key = services.signing_key
    published = {
        "server_name": services.server_name,
        "valid_until_ts": services.clock.now_ms() + VALIDITY_MS,
        "verify_keys": {key.key_id: {"key": key.public_key_base64}},
        "old_verify_keys": {
            old.key_id: {"key": encode_base64(old.key), "expired_ts": old.valid_until_ms}
            for old in services.retired_keys
            if old.key_id != key.key_id
        },
    }
    return sign_json(published, services.server_name, key)


async def query_keys(
    services: Services, criteria: Mapping[str, Mapping[str, int]]
) -> list[dict[str, object]]:
    """Return key objects of servers, each signed by its server and by us; none for unknown ones.

    `criteria`: server name -> key ID -> the moment (ms) that its keys should be valid at. Without
    key IDs it is all keys, now. A server that does not answer is answered for by what it said last.

    Spec: server-server-api#querying-keys-through-another-server
    """
    names = [name for text in list(criteria)[:SERVERS_MAX] if (name := parse_server_name(text))]
    objects = await asyncio.gather(*(_key_object(services, name, criteria[name]) for name in names))
    return [found for found in objects if found is not None]


async def _key_object(
    services: Services, server_name: ServerName, moments: Mapping[str, int]
) -> dict[str, object] | None:
    if server_name == services.server_name:
        return own_keys(services)
    now_ms = services.clock.now_ms()
    needed_ms = max(moments.values(), default=now_ms)
    key_ids = tuple(key_id for key_id in moments if is_key_id(key_id))[:KEY_IDS_MAX]
    known = await fetch_key_object(services.db, server_name)
    if known is None or known[1] < needed_ms or not _names(known[0], key_ids):
        await refresh(services, server_name, Need(key_ids, needed_ms))
        known = await fetch_key_object(services.db, server_name)
    if known is None:
        return None
    published = decode(known[0])
    if not isinstance(published, dict):
        return None
    return sign_json(published, services.server_name, services.signing_key)


def _names(key_object: bytes, key_ids: tuple[str, ...]) -> bool:
    """Return whether a key object has all of these keys."""
    published = decode(key_object)
    if not isinstance(published, dict):
        return False
    keys: set[object] = set()
    for part in ("verify_keys", "old_verify_keys"):
        keys.update(published.get(part) or ())
    return keys.issuperset(key_ids)
