"""Which server makes a request: the signature of its `Authorization` header, verified.

In two steps, so that a body is read only for a server whose key we have.

Spec: server-server-api#request-authentication
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.base.errors import Unauthorized
from minihs.protocol.request_auth import (
    RequestAuthError,
    XMatrix,
    check_destination,
    parse_authorization,
    verify_request,
)
from minihs.services.server_keys import verify_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.protocol.identifiers import ServerName
    from minihs.services.context import Services


@dataclass(frozen=True, slots=True)
class Claim:
    """Who a request says that it is from, and the key that would prove it."""

    header: XMatrix
    key: bytes


async def read_claim(services: Services, headers: Sequence[str]) -> Claim:
    """Return what the `Authorization` headers claim; there must be exactly one.

    Raises:
        Unauthorized: it is malformed, not for us, or names no key that is valid now.

    Spec: server-server-api#request-authentication
    """
    if len(headers) != 1:
        raise Unauthorized("There must be one Authorization header.")
    try:
        header = parse_authorization(headers[0])
        check_destination(header, services.server_name)
    except RequestAuthError as error:
        raise Unauthorized(str(error)) from error
    now_ms = services.clock.now_ms()
    keys = await verify_keys(services, header.origin, [header.key_id], now_ms, for_request=True)
    if header.key_id not in keys:
        raise Unauthorized(f"{header.origin} has no such key that is valid now.")
    return Claim(header, keys[header.key_id])


def verify_claim(
    services: Services, claim: Claim, method: str, uri: str, *content: object
) -> ServerName:
    """Return the server that signed the request; if it was believed to be down, it no longer is.

    `uri` is the target as it came; `content` the parsed body, left out when there was none.

    Raises:
        Unauthorized: it signed another request.

    Spec: server-server-api#request-authentication
    """
    body = {"content": content[0]} if content else {}
    try:
        verify_request(
            claim.header,
            claim.key,
            method=method,
            uri=uri,
            server_name=services.server_name,
            **body,
        )
    except RequestAuthError as error:
        raise Unauthorized(str(error)) from error
    services.delivery.note_alive(services, claim.header.origin)
    return claim.header.origin
