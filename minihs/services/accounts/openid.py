"""OpenID tokens: proof to a third party that somebody is a user of this server.

A token says whose it is and until when it holds, and is signed with the server's key, so that
nothing need be kept. It gives no access to anything.

Spec: client-server-api#openid, server-server-api#openid
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from minihs.base.errors import Forbidden, UnknownToken
from minihs.protocol.hashes import decode_base64, encode_base64
from minihs.storage import accounts

if TYPE_CHECKING:
    from minihs.services.context import Services

VALID_MS = 3_600_000
PURPOSE = b"minihs openid token\n"  # What is signed is no event, and no request.


def request_token(services: Services, requester_id: str, user_id: str) -> dict[str, object]:
    """Return a token by which a user can prove to somebody who they are.

    Raises:
        Forbidden: it would be somebody else's.

    Spec: client-server-api#post_matrixclientv3useruseridopenidrequest_token
    """
    if requester_id != user_id:
        raise Forbidden("You can only ask for a token of your own.")
    claim = f"{services.clock.now_ms() + VALID_MS} {user_id}".encode()
    signature = services.signing_key.sign(PURPOSE + claim)
    return {
        "access_token": _url_safe(f"{encode_base64(claim)}.{signature}"),
        "expires_in": VALID_MS // 1_000,
        "matrix_server_name": services.server_name,
        "token_type": "Bearer",
    }


def _url_safe(text: str) -> str:
    return text.replace("+", "-").replace("/", "_")


async def find_user(services: Services, token: str) -> dict[str, object]:
    """Return whose a token is (`sub`).

    Raises:
        UnknownToken: it is none of ours, or holds no more, or its user is deactivated.

    Spec: server-server-api#get_matrixfederationv1openiduserinfo
    """
    refusal = UnknownToken("Access token unknown or expired.")
    claim, signature = (decode_base64(part) for part in (token + ".").split(".")[:2])
    if claim is None or signature is None:
        raise refusal
    try:
        VerifyKey(services.signing_key.public_key).verify(PURPOSE + claim, signature)
    except (BadSignatureError, ValueError):
        raise refusal from None
    expires_ms, _, user_id = claim.decode().partition(" ")
    account = await accounts.fetch_account(services.db, user_id)
    left_ms = int(expires_ms) - services.clock.now_ms()
    if not 0 <= left_ms <= 2 * VALID_MS or account is None or account.deactivated:
        raise refusal  # One that holds for longer was given when the clock was wrong.
    return {"sub": user_id}
