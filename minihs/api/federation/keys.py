"""Publishing keys: ours, and as a notary those of other servers.

Spec: server-server-api#retrieving-server-keys
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minihs.protocol import canonical_json
from minihs.services.federation import notary

if TYPE_CHECKING:
    from minihs.api.requests import Request


class KeyCriteria(msgspec.Struct):
    """What is asked of a key."""

    minimum_valid_until_ts: int | None = None


class KeyQuery(msgspec.Struct):
    """Server name -> key ID -> criteria."""

    server_keys: dict[str, dict[str, KeyCriteria]]


async def get_server_key(request: Request) -> object:
    """GET /_matrix/key/v2/server: our keys. A key ID in the path, as older servers add, is ignored.

    Spec: server-server-api#get_matrixkeyv2server
    """
    # Canonical JSON, so that the bytes without the signatures are the bytes that were signed.
    return canonical_json.encode(notary.own_keys(request.services))


async def perspectives_key_query(request: Request) -> object:
    """GET /_matrix/key/v2/query/{serverName}.

    Spec: server-server-api#get_matrixkeyv2queryservername
    """
    now_ms = request.services.clock.now_ms()
    needed_ms = request.query_integer("minimum_valid_until_ts", now_ms)
    criteria = {request.path["serverName"]: {"": needed_ms}}
    return {"server_keys": await notary.query_keys(request.services, criteria)}


async def bulk_perspectives_key_query(request: Request) -> object:
    """POST /_matrix/key/v2/query.

    Spec: server-server-api#post_matrixkeyv2query
    """
    query = await request.json(KeyQuery)
    now_ms = request.services.clock.now_ms()
    criteria = {
        server_name: {
            key_id: now_ms if (minimum := wanted.minimum_valid_until_ts) is None else minimum
            for key_id, wanted in keys.items()
        }
        for server_name, keys in query.server_keys.items()
    }
    return {"server_keys": await notary.query_keys(request.services, criteria)}
