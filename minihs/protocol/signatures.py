"""Signing keys, and signatures on JSON objects and on events.

Keys are made, read and written through signedjson, in its file format. Signing and verifying are on
the path of every event, so they go straight to libsodium through PyNaCl; property tests hold them
equal to signedjson.

Spec: appendices#signing-json, server-server-api#signing-events
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import signedjson.key
from nacl.bindings import crypto_sign, crypto_sign_open
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey as _NaclSigningKey

from minihs.protocol.canonical_json import encode_strict
from minihs.protocol.hashes import decode_base64, encode_base64, signed_bytes
from minihs.protocol.identifiers import ServerName, server_name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.protocol.events import Event

ALGORITHM = "ed25519"
"""The only signing algorithm of Matrix."""

_SIGNATURE_BYTES = 64
_PUBLIC_KEY_BYTES = 32


class SignatureError(ValueError):
    """A signature is missing, malformed or wrong."""


class SigningKey:
    """A server's own key: `key_id` is for instance `ed25519:a_Xy`."""

    __slots__ = ("_key", "_secret", "key_id")

    def __init__(self, seed: bytes, version: str) -> None:
        self.key_id = f"{ALGORITHM}:{version}"
        self._key = _NaclSigningKey(seed)
        self._secret = seed + bytes(self._key.verify_key)  # As libsodium wants it: 64 bytes.

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes."""
        return bytes(self._key)

    @property
    def version(self) -> str:
        """What follows the algorithm in the key ID."""
        return self.key_id.partition(":")[2]

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that others verify with."""
        return bytes(self._key.verify_key)

    @property
    def public_key_base64(self) -> str:
        """The public key as it is published. Spec: server-server-api#publishing-keys."""
        return encode_base64(self.public_key)

    def sign(self, message: bytes) -> str:
        """Return the signature of the bytes in unpadded base64."""
        return encode_base64(crypto_sign(message, self._secret)[:_SIGNATURE_BYTES])


def generate_signing_key(seed: bytes) -> SigningKey:
    """Return a new key of 32 random bytes. Its version is taken from its public key.

    So two keys of one server never share an ID, also when a backup is restored.
    """
    digest = encode_base64(bytes(_NaclSigningKey(seed).verify_key))
    return SigningKey(seed, "a_" + "".join(filter(str.isalnum, digest))[:6])


def read_signing_key(text: str) -> SigningKey:
    """Return the first key of a key file in signedjson's format (`ed25519 version seed`).

    Raises:
        ValueError: If there is none.
    """
    try:
        keys = signedjson.key.read_signing_keys(text.splitlines())
    except ValueError:  # A line that is no key, base64 that is none, a seed of another length.
        keys = []
    if not keys:
        raise ValueError("it holds no signing key (ed25519, version, seed in base64)")
    return SigningKey(bytes(keys[0]), keys[0].version)


def write_signing_key(key: SigningKey) -> str:
    """Return the text of a key file in signedjson's format that holds this key."""
    file = io.StringIO()
    named = signedjson.key.decode_signing_key_base64(
        ALGORITHM, key.version, encode_base64(key.seed)
    )
    signedjson.key.write_signing_keys(file, [named])
    return file.getvalue()


def decode_verify_key(base64_key: object) -> bytes | None:
    """Return the 32 bytes of a public key as published, or None if it is not one."""
    key = decode_base64(base64_key) if isinstance(base64_key, str) else None
    return key if key is not None and len(key) == _PUBLIC_KEY_BYTES else None


def sign_json(
    value: Mapping[str, object], server_name: ServerName, key: SigningKey
) -> dict[str, object]:
    """Return the object with our signature added to `signatures`; the argument is left alone.

    Raises:
        CanonicalJsonError: If the object has no Canonical JSON.

    Spec: appendices#signing-details
    """
    signature = key.sign(_json_signed_bytes(value))
    return with_signature(value, server_name, key.key_id, signature)


def with_signature(
    value: Mapping[str, object], server_name: ServerName, key_id: str, signature: str
) -> dict[str, object]:
    """Return the object with one signature more beside those that it has."""
    signatures = value.get("signatures")
    others = dict(signatures) if isinstance(signatures, dict) else {}
    own = others.get(server_name)
    others[server_name] = {**(own if isinstance(own, dict) else {}), key_id: signature}
    return {**value, "signatures": others}


def with_signatures_of(
    value: Mapping[str, object], signed: Mapping[str, object], server_name: ServerName
) -> dict[str, object]:
    """Return the object with the signatures that a server put on a copy of it, as they are."""
    signatures = signed.get("signatures")
    given = signatures.get(server_name) if isinstance(signatures, dict) else None
    result = dict(value)
    for key_id, signature in given.items() if isinstance(given, dict) else ():
        if isinstance(signature, str):
            result = with_signature(result, server_name, key_id, signature)
    return result


def verify_json(
    value: Mapping[str, object], server_name: ServerName, verify_keys: Mapping[str, bytes]
) -> None:
    """Check that the server signed the object. `verify_keys`: public keys by key ID.

    One signature by a known key is enough; signatures by keys that we do not know say nothing.

    Raises:
        SignatureError: If there is none, or one is wrong.
        CanonicalJsonError: If the object has no Canonical JSON.

    Spec: appendices#checking-for-a-signature
    """
    _verify(value.get("signatures"), _json_signed_bytes(value), server_name, verify_keys)


def verify_event_signature(
    event: Event, server_name: ServerName, verify_keys: Mapping[str, bytes]
) -> None:
    """Check that the server signed the event; which servers must have: `required_signers`.

    Raises:
        SignatureError: If it did not.

    Spec: server-server-api#validating-hashes-and-signatures-on-received-events
    """
    message = signed_bytes(event.pdu, event.room_version)
    _verify(event.pdu.get("signatures"), message, server_name, verify_keys)


def signing_key_ids(value: Mapping[str, object], server_name: ServerName) -> list[str]:
    """Return the key IDs of the algorithm we know with which the server claims to have signed."""
    signatures = value.get("signatures")
    own = signatures.get(server_name) if isinstance(signatures, dict) else None
    if not isinstance(own, dict):
        return []
    return [key_id for key_id in own if key_id.startswith(ALGORITHM + ":")]


def required_signers(event: Event) -> set[ServerName]:
    """Return the servers that must have signed the event.

    Spec: server-server-api#validating-hashes-and-signatures-on-received-events
    """
    signers = set()
    content = event.content
    is_member = event.type == "m.room.member"
    membership = content.get("membership") if is_member else None
    # A third-party invite is made into an event by the server of whoever accepts it; that its
    # sender made the offer is proved by the authorization rules.
    if not (membership == "invite" and "third_party_invite" in content):
        signers.add(server_name_of(event.sender))
    if event.room_version.event_id_source == "server":  # v1, v2: whoever named the event.
        signers.add(server_name_of(event.event_id))
    if event.room_version.knows_restricted_joins and membership == "join":  # Since v8.
        authorising_user = content.get("join_authorised_via_users_server")
        if isinstance(authorising_user, str):
            signers.add(server_name_of(authorising_user))
    return signers


def _json_signed_bytes(value: Mapping[str, object]) -> bytes:
    signed = {key: item for key, item in value.items() if key not in ("signatures", "unsigned")}
    return encode_strict(signed)


def _verify(
    signatures: object, message: bytes, server_name: str, verify_keys: Mapping[str, bytes]
) -> None:
    own = signatures.get(server_name) if isinstance(signatures, dict) else None
    if not isinstance(own, dict):
        raise SignatureError(f"no signature of {server_name}")
    known = [key_id for key_id in own if key_id in verify_keys]
    if not known:
        raise SignatureError(f"no signature of {server_name} with a known key")
    for key_id in known:
        signature = decode_base64(own[key_id]) if isinstance(own[key_id], str) else None
        if signature is None or len(signature) != _SIGNATURE_BYTES:
            raise SignatureError(f"malformed signature of {server_name} with {key_id}")
        try:
            crypto_sign_open(signature + message, verify_keys[key_id])
        except (CryptoError, ValueError) as error:
            raise SignatureError(f"wrong signature of {server_name} with {key_id}") from error
