"""Reading what a server publishes as its keys, or what a notary says that it published.

A key object is believed only if it names the server that was asked about and is signed by one of
the keys that it lists. Through a notary it must carry the notary's signature besides. Nothing here
asks anybody: see `services.federation.server_keys`.

A key of `verify_keys` is valid until `valid_until_ts`, at most seven days after it was fetched; a
key of `old_verify_keys` was until `expired_ts`, at most the moment when it was fetched.

Spec: server-server-api#publishing-keys
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeGuard

from minihs.protocol.canonical_json import INTEGER_MAX, CanonicalJsonError, encode
from minihs.protocol.hashes import decode_base64
from minihs.protocol.signatures import SignatureError, decode_verify_key, verify_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.identifiers import ServerName

VALIDITY_MS_MAX: Final = 7 * 86_400_000
KEYS_MAX: Final = 100
KEY_OBJECT_BYTES_MAX: Final = 65_536

_KEY_ID = re.compile(r"ed25519:[A-Za-z0-9_]{1,247}")  # 255 bytes, as other identifiers.


def _published(base64: str) -> bytes:
    key = decode_base64(base64)
    if key is None:
        raise ValueError("not base64")
    return key


LEAKED_KEYS: Final[frozenset[bytes]] = frozenset(
    {
        # CVE-2026-24044: made by an installer that always made the same key.
        _published("l/O9hxMVKB6Lg+3Hqf0FQQZhVESQcMzbPN1Cz2nM3og"),
    }
)
"""Public keys whose secret half everybody can know: whatever they sign proves nothing."""


class ServerKeysError(ValueError):
    """A key object is not to be believed."""


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public key: what a server's `key_id` stood for until `valid_until_ms`.

    `is_old`: the server no longer uses it, so it proves no request.
    """

    server_name: ServerName
    key_id: str
    key: bytes
    valid_until_ms: int
    is_old: bool

    def is_valid_at(self, at_ms: int) -> bool:
        """Return whether what it signed at that moment is signed."""
        return at_ms <= self.valid_until_ms


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """What a server published: its keys, current and old, and until when to believe it.

    `json` is the key object in Canonical JSON, with the server's own signatures only.
    """

    server_name: ServerName
    keys: tuple[VerifyKey, ...]
    valid_until_ms: int
    json: bytes


def is_key_id(text: object) -> bool:
    """Return whether this can be the ID of a key that we know how to use."""
    return isinstance(text, str) and _KEY_ID.fullmatch(text) is not None


def read_server_keys(answer: object, server_name: ServerName, now_ms: int) -> ServerKeys:
    """Return what a key object says, `now_ms` being when it was fetched. Leaked keys are left out.

    Raises:
        ServerKeysError: it is another server's, or is not signed by it, or has another form.

    Spec: server-server-api#publishing-keys
    """
    if not isinstance(answer, dict) or answer.get("server_name") != server_name:
        raise ServerKeysError(f"the keys are not those of {server_name}")
    valid_until_ms = answer.get("valid_until_ts")
    if not _is_time(valid_until_ms):
        raise ServerKeysError("valid_until_ts is not a time")
    valid_until_ms = min(valid_until_ms, now_ms + VALIDITY_MS_MAX)
    current = _read_keys(answer.get("verify_keys"))
    try:
        verify_json(answer, server_name, {key_id: key for key_id, (key, _) in current.items()})
    except (SignatureError, CanonicalJsonError) as error:
        raise ServerKeysError(str(error)) from error
    keys = [
        VerifyKey(server_name, key_id, key, valid_until_ms, is_old=False)
        for key_id, (key, _) in current.items()
    ]
    for key_id, (key, expired_ms) in _read_keys(answer.get("old_verify_keys", {})).items():
        if key_id not in current and _is_time(expired_ms):
            keys.append(VerifyKey(server_name, key_id, key, min(expired_ms, now_ms), is_old=True))
    trusted = tuple(key for key in keys if key.key not in LEAKED_KEYS)
    return ServerKeys(server_name, trusted, valid_until_ms, _own_text(answer, server_name))


def read_notary_answer(
    answer: Mapping[str, object],
    server_name: ServerName,
    notary: ServerName,
    notary_keys: Mapping[str, bytes],
    now_ms: int,
) -> list[ServerKeys]:
    """Return what a notary's answer proves of a server's keys; objects that prove nothing are left.

    `notary_keys`: the notary's own public keys by ID, from the notary itself.

    Spec: server-server-api#querying-keys-through-another-server
    """
    objects = answer.get("server_keys")
    proven: list[ServerKeys] = []
    for item in objects[:KEYS_MAX] if isinstance(objects, list) else ():
        if not isinstance(item, dict):
            continue
        try:
            verify_json(item, notary, notary_keys)
            proven.append(read_server_keys(item, server_name, now_ms))
        except (SignatureError, CanonicalJsonError, ServerKeysError):
            continue
    return proven


def _read_keys(keys: object) -> dict[str, tuple[bytes, object]]:
    """Return the keys of an algorithm that we know: ID -> (public key, when it expired if it says).

    Raises:
        ServerKeysError: that is not a collection of keys.
    """
    if not isinstance(keys, dict) or len(keys) > KEYS_MAX:
        raise ServerKeysError("not a collection of keys")
    found: dict[str, tuple[bytes, object]] = {}
    for key_id, entry in keys.items():
        key = decode_verify_key(entry.get("key")) if isinstance(entry, dict) else None
        if key is not None and is_key_id(key_id):
            found[key_id] = (key, entry.get("expired_ts"))
    return found


def _own_text(answer: Mapping[str, object], server_name: ServerName) -> bytes:
    """Return the object with no signatures but its own: a notary's is for that notary's askers."""
    signatures = answer["signatures"]
    own = signatures[server_name] if isinstance(signatures, dict) else {}
    text = encode({**answer, "signatures": {server_name: own}})
    if len(text) > KEY_OBJECT_BYTES_MAX:
        raise ServerKeysError("the key object is too large")
    return text


def _is_time(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= INTEGER_MAX
