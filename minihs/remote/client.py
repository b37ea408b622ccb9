"""What we ask of other servers: one method for each endpoint of the server-server API that we call.

Every request is signed by us and names its destination; every answer is either the JSON object of a
success, whose outermost keys have been checked to be there and of the right type, or a
`RemoteError`. What is *in* them is as untrusted as before: events must still be verified, templates
compared with what was asked.

No request is made while the calling task has a database transaction open: a slow peer must not hold
our rows.

Spec: server-server-api#authentication
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote, urlencode

from minihs.base.limits import (
    REMOTE_ANSWER_BYTES_MAX,
    REMOTE_KEYS_BYTES_MAX,
    REMOTE_KEYS_TIMEOUT_MS,
    REMOTE_STATE_BYTES_MAX,
    REMOTE_STATE_TIMEOUT_MS,
    REMOTE_TIMEOUT_MS,
)
from minihs.protocol.canonical_json import (
    CanonicalJsonError,
    decode,
    decode_lenient,
    encode_lenient,
    encode_strict,
)
from minihs.protocol.identifiers import parse_server_name
from minihs.protocol.request_auth import sign_request
from minihs.remote.transport import OutgoingRequest, RawAnswer, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from minihs.protocol.identifiers import ServerName
    from minihs.protocol.signatures import SigningKey
    from minihs.remote.transport import Transport

Answer: TypeAlias = "dict[str, object] | RemoteError"
Query: TypeAlias = "Sequence[tuple[str, str]]"

V1: Final = "/_matrix/federation/v1"
V2: Final = "/_matrix/federation/v2"
KEY: Final = "/_matrix/key/v2"

_SUCCESS = range(200, 300)
_NO_SUCH_ENDPOINT = (400, 404, 405)


@dataclass(frozen=True, slots=True)
class _Limits:
    """How long an answer may take and how large it may be; whether it may hold PDUs."""

    timeout_ms: int = REMOTE_TIMEOUT_MS
    answer_bytes_max: int = REMOTE_ANSWER_BYTES_MAX
    holds_pdus: bool = False


_PLAIN = _Limits()
_PDUS = _Limits(holds_pdus=True)
_STATE = _Limits(REMOTE_STATE_TIMEOUT_MS, REMOTE_STATE_BYTES_MAX, holds_pdus=True)
_KEYS = _Limits(REMOTE_KEYS_TIMEOUT_MS, REMOTE_KEYS_BYTES_MAX)


def _never(_destination: str) -> bool:
    return False


class Remote:
    """The other servers, as we see them.

    `is_transaction_open` says whether the calling task holds a transaction. `is_backing_off` says
    whether a server is known to be down: requests then fail at once, unless they are made to find
    out (`ignore_back_off`).
    """

    def __init__(
        self,
        server_name: ServerName,
        signing_key: SigningKey,
        transport: Transport,
        *,
        is_transaction_open: Callable[[], bool],
    ) -> None:
        self._server_name = server_name
        self._signing_key = signing_key
        self._transport = transport
        self._is_transaction_open = is_transaction_open
        self.is_backing_off: Callable[[str], bool] = _never

    # --- any request ----------------------------------------------------------------------------

    async def request(
        self,
        destination: str,
        method: str,
        path: str,
        *,
        query: Query = (),
        content: Mapping[str, object] | bytes | None = None,
        timeout_ms: int = REMOTE_TIMEOUT_MS,
        answer_bytes_max: int = REMOTE_ANSWER_BYTES_MAX,
        holds_pdus: bool = False,
        ignore_back_off: bool = False,
    ) -> Answer:
        """Make a signed request; return the object of a successful answer.

        `path` is percent-encoded. `content` as bytes must be Canonical JSON. Answers that hold PDUs
        are read so that the numbers of old rooms stay as they were signed.

        Raises:
            RuntimeError: a database transaction is open.

        Spec: server-server-api#request-authentication
        """
        limits = _Limits(timeout_ms, answer_bytes_max, holds_pdus)
        answer = await self._json(
            destination, method, path, query, content, limits, ignore_back_off=ignore_back_off
        )
        return _object(answer, destination)

    async def _json(
        self,
        destination: str,
        method: str,
        path: str,
        query: Query,
        content: Mapping[str, object] | bytes | None,
        limits: _Limits,
        *,
        ignore_back_off: bool = False,
    ) -> object:
        """Return the JSON of a successful answer, or a `RemoteError`."""
        if self._is_transaction_open():
            raise RuntimeError(f"a request to {destination!r} while a transaction is open")
        if parse_server_name(destination) is None:
            return RemoteError("unreachable", "?", "not a server name")
        if destination == self._server_name:
            return RemoteError("unreachable", destination, "that is this server")
        if self.is_backing_off(destination) and not ignore_back_off:
            return RemoteError("unreachable", destination, "it was down a moment ago")
        target = f"{path}?{urlencode(query)}" if query else path
        body = content if isinstance(content, bytes) or content is None else _encode(content)
        authorization = sign_request(
            self._signing_key,
            method=method,
            uri=target,
            origin=self._server_name,
            destination=destination,
            content=body,
        )
        headers = {"Authorization": authorization}
        if body is not None:
            headers["Content-Type"] = "application/json"
        answer = await self._transport.send(
            OutgoingRequest(
                destination,
                method,
                target,
                headers,
                body,
                limits.timeout_ms,
                limits.answer_bytes_max,
            )
        )
        if isinstance(answer, RemoteError):
            return answer
        if answer.status not in _SUCCESS:
            return _refusal(destination, answer)
        try:
            return decode_lenient(answer.body) if limits.holds_pdus else decode(answer.body)
        except ValueError as error:
            return RemoteError("bad_answer", destination, f"not JSON: {error}", answer.status)

    async def _get(
        self, destination: str, path: str, query: Query, limits: _Limits, **shape: type
    ) -> Answer:
        answer = await self._json(destination, "GET", path, query, None, limits)
        return _checked(answer, destination, shape)

    async def _put(
        self, destination: str, path: str, content: Mapping[str, object], limits: _Limits,
        *, query: Query = (), **shape: type,
    ) -> Answer:  # fmt: skip
        answer = await self._json(destination, "PUT", path, query, content, limits)
        return _checked(answer, destination, shape)

    async def _post(
        self, destination: str, path: str, content: Mapping[str, object], limits: _Limits,
        **shape: type,
    ) -> Answer:  # fmt: skip
        answer = await self._json(destination, "POST", path, (), content, limits)
        return _checked(answer, destination, shape)

    # --- transactions ---------------------------------------------------------------------------

    async def send_transaction(
        self, destination: str, transaction_id: str, content: Mapping[str, object] | bytes
    ) -> Answer:
        """PUT …/send/{txnId}: return what it says of each PDU, under `pdus` if it says anything.

        Made whether or not the server is known to be down: this is how that is found out.

        Spec: server-server-api#transactions
        """
        return await self.request(
            destination,
            "PUT",
            f"{V1}/send/{_quoted(transaction_id)}",
            content=content,
            timeout_ms=REMOTE_STATE_TIMEOUT_MS,
            ignore_back_off=True,
        )

    # --- joining, leaving, knocking, inviting ---------------------------------------------------

    async def make_join(
        self, destination: str, room_id: str, user_id: str, room_versions: Sequence[str]
    ) -> Answer:
        """GET …/make_join: return `event`, a template, and perhaps `room_version`.

        Spec: server-server-api#joining-rooms
        """
        path = f"{V1}/make_join/{_quoted(room_id)}/{_quoted(user_id)}"
        query = [("ver", version) for version in room_versions]
        return await self._get(destination, path, query, _PDUS, event=dict)

    async def send_join(
        self, destination: str, room_id: str, event_id: str, pdu: Mapping[str, object],
        *, omit_members: bool = False,
    ) -> Answer:  # fmt: skip
        """PUT …/send_join: return `state` and `auth_chain`, and perhaps `event`.

        A server that knows only version 1 of the endpoint is asked by that.

        Spec: server-server-api#joining-rooms
        """
        path = f"/send_join/{_quoted(room_id)}/{_quoted(event_id)}"
        query = [("omit_members", "true")] if omit_members else []
        answer = await self._put(
            destination, V2 + path, pdu, _STATE, query=query, state=list, auth_chain=list
        )
        if not _is_missing(answer):
            return answer
        older = await self._json(destination, "PUT", V1 + path, (), pdu, _STATE)
        return _checked(_second(older), destination, {"state": list, "auth_chain": list})

    async def make_leave(self, destination: str, room_id: str, user_id: str) -> Answer:
        """GET …/make_leave: return `event`, a template, and perhaps `room_version`.

        Spec: server-server-api#leaving-rooms-rejecting-invites
        """
        path = f"{V1}/make_leave/{_quoted(room_id)}/{_quoted(user_id)}"
        return await self._get(destination, path, (), _PDUS, event=dict)

    async def send_leave(
        self, destination: str, room_id: str, event_id: str, pdu: Mapping[str, object]
    ) -> Answer:
        """PUT …/send_leave: return an empty object; older servers are asked by version 1.

        Spec: server-server-api#leaving-rooms-rejecting-invites
        """
        path = f"/send_leave/{_quoted(room_id)}/{_quoted(event_id)}"
        answer = await self._put(destination, V2 + path, pdu, _PLAIN)
        if not _is_missing(answer):
            return answer
        older = await self._json(destination, "PUT", V1 + path, (), pdu, _PLAIN)
        return _object(_second(older), destination)

    async def make_knock(
        self, destination: str, room_id: str, user_id: str, room_versions: Sequence[str]
    ) -> Answer:
        """GET …/make_knock: return `event`, a template, and `room_version`.

        Spec: server-server-api#knocking-rooms
        """
        path = f"{V1}/make_knock/{_quoted(room_id)}/{_quoted(user_id)}"
        query = [("ver", version) for version in room_versions]
        return await self._get(destination, path, query, _PDUS, event=dict, room_version=str)

    async def send_knock(
        self, destination: str, room_id: str, event_id: str, pdu: Mapping[str, object]
    ) -> Answer:
        """PUT …/send_knock: return `knock_room_state`, stripped.

        Spec: server-server-api#knocking-rooms
        """
        path = f"{V1}/send_knock/{_quoted(room_id)}/{_quoted(event_id)}"
        return await self._put(destination, path, pdu, _PDUS, knock_room_state=list)

    async def invite(
        self, destination: str, room_id: str, event_id: str, pdu: Mapping[str, object],
        room_version: str, invite_room_state: Sequence[object],
    ) -> Answer:  # fmt: skip
        """PUT …/invite: return `event`, the invite with the invited server's signature added.

        A server that knows only version 1 is asked by that, in rooms that it can know.

        Spec: server-server-api#inviting-to-a-room
        """
        path = f"/invite/{_quoted(room_id)}/{_quoted(event_id)}"
        content = {
            "event": pdu,
            "room_version": room_version,
            "invite_room_state": list(invite_room_state),
        }
        answer = await self._put(destination, V2 + path, content, _PDUS, event=dict)
        if room_version not in ("1", "2") or not _is_missing(answer):
            return answer
        older = {**pdu, "unsigned": {"invite_room_state": list(invite_room_state)}}
        answered = await self._json(destination, "PUT", V1 + path, (), older, _PDUS)
        return _checked(_second(answered), destination, {"event": dict})

    # --- events and state -----------------------------------------------------------------------

    async def get_event(self, destination: str, event_id: str) -> Answer:
        """GET …/event/{eventId}: return `pdus`, a list of one.

        Spec: server-server-api#retrieving-events
        """
        return await self._get(destination, f"{V1}/event/{_quoted(event_id)}", (), _PDUS, pdus=list)

    async def get_state(self, destination: str, room_id: str, event_id: str) -> Answer:
        """GET …/state: return `pdus`, the state before the event, and `auth_chain`.

        Spec: server-server-api#retrieving-events
        """
        query = [("event_id", event_id)]
        path = f"{V1}/state/{_quoted(room_id)}"
        return await self._get(destination, path, query, _STATE, pdus=list, auth_chain=list)

    async def get_state_ids(self, destination: str, room_id: str, event_id: str) -> Answer:
        """GET …/state_ids: return `pdu_ids`, the state before the event, and `auth_chain_ids`.

        Spec: server-server-api#retrieving-events
        """
        query = [("event_id", event_id)]
        path = f"{V1}/state_ids/{_quoted(room_id)}"
        return await self._get(destination, path, query, _STATE, pdu_ids=list, auth_chain_ids=list)

    async def get_event_auth(self, destination: str, room_id: str, event_id: str) -> Answer:
        """GET …/event_auth: return `auth_chain`, events.

        Spec: server-server-api#retrieving-event-authorisation-information
        """
        path = f"{V1}/event_auth/{_quoted(room_id)}/{_quoted(event_id)}"
        return await self._get(destination, path, (), _STATE, auth_chain=list)

    async def backfill(
        self, destination: str, room_id: str, event_ids: Sequence[str], limit: int
    ) -> Answer:
        """GET …/backfill: return `pdus`, the given events and what came before them.

        Spec: server-server-api#backfilling-and-retrieving-missing-events
        """
        query = [*(("v", event_id) for event_id in event_ids), ("limit", str(limit))]
        path = f"{V1}/backfill/{_quoted(room_id)}"
        return await self._get(destination, path, query, _STATE, pdus=list)

    async def get_missing_events(
        self, destination: str, room_id: str, *, earliest: Sequence[str], latest: Sequence[str],
        limit: int, min_depth: int = 0,
    ) -> Answer:  # fmt: skip
        """POST …/get_missing_events: return `events` between what we have and what we got.

        Spec: server-server-api#backfilling-and-retrieving-missing-events
        """
        content = {
            "earliest_events": list(earliest),
            "latest_events": list(latest),
            "limit": limit,
            "min_depth": min_depth,
        }
        path = f"{V1}/get_missing_events/{_quoted(room_id)}"
        return await self._post(destination, path, content, _PDUS, events=list)

    async def timestamp_to_event(
        self, destination: str, room_id: str, timestamp_ms: int, direction: str
    ) -> Answer:
        """GET …/timestamp_to_event: return `event_id` and `origin_server_ts`.

        Spec: server-server-api#retrieving-events
        """
        query = [("ts", str(timestamp_ms)), ("dir", direction)]
        path = f"{V1}/timestamp_to_event/{_quoted(room_id)}"
        return await self._get(destination, path, query, _PLAIN, event_id=str, origin_server_ts=int)

    # --- questions ------------------------------------------------------------------------------

    async def query_profile(
        self, destination: str, user_id: str, field: str | None = None
    ) -> Answer:
        """GET …/query/profile: return the fields of a profile.

        Spec: server-server-api#querying-for-information
        """
        query = [("user_id", user_id)] + ([("field", field)] if field is not None else [])
        return await self._get(destination, f"{V1}/query/profile", query, _PLAIN)

    async def query_directory(self, destination: str, room_alias: str) -> Answer:
        """GET …/query/directory: return `room_id` and `servers`.

        Spec: server-server-api#querying-for-information
        """
        query = [("room_alias", room_alias)]
        path = f"{V1}/query/directory"
        return await self._get(destination, path, query, _PLAIN, room_id=str, servers=list)

    async def get_public_rooms(self, destination: str, content: Mapping[str, object]) -> Answer:
        """POST …/publicRooms, or GET for a server that knows only that: return `chunk` and tokens.

        `content` is the search: `limit`, `since`, `filter`, `include_all_networks`,
        `third_party_instance_id`. The GET cannot carry a filter, so it is not tried for one.

        Spec: server-server-api#published-room-directory
        """
        path = f"{V1}/publicRooms"
        answer = await self._post(destination, path, content, _PLAIN, chunk=list)
        if "filter" in content or not _is_missing(answer):
            return answer
        query = [
            (name, str(value).lower() if isinstance(value, bool) else str(value))
            for name, value in content.items()
        ]
        return await self._get(destination, path, query, _PLAIN, chunk=list)

    async def get_room_hierarchy(
        self, destination: str, room_id: str, *, suggested_only: bool = False,
        timeout_ms: int = REMOTE_TIMEOUT_MS,
    ) -> Answer:  # fmt: skip
        """GET …/hierarchy: return `room`, `children` and `inaccessible_children`.

        Spec: server-server-api#spaces
        """
        query = [("suggested_only", "true" if suggested_only else "false")]
        path = f"{V1}/hierarchy/{_quoted(room_id)}"
        limits = _Limits(timeout_ms=timeout_ms)
        return await self._get(destination, path, query, limits, room=dict, children=list)

    # --- servers --------------------------------------------------------------------------------

    async def get_version(self, destination: str) -> Answer:
        """GET …/version: return `server` with name and version.

        Spec: server-server-api#server-implementation
        """
        return await self._get(destination, f"{V1}/version", (), _KEYS, server=dict)

    async def get_server_keys(self, destination: str) -> Answer:
        """GET /_matrix/key/v2/server: return the keys as the server publishes them, unverified.

        Asked also of servers that are backing off: what they send us must be verified.

        Spec: server-server-api#publishing-keys
        """
        answer = await self._json(
            destination, "GET", f"{KEY}/server", (), None, _KEYS, ignore_back_off=True
        )
        return _object(answer, destination)

    async def query_server_keys(
        self, notary: str, server_name: str, key_ids: Sequence[str], minimum_valid_until_ms: int
    ) -> Answer:
        """POST /_matrix/key/v2/query: return `server_keys`, a list of key objects, unverified.

        Spec: server-server-api#querying-keys-through-another-server
        """
        criteria = {key: {"minimum_valid_until_ts": minimum_valid_until_ms} for key in key_ids}
        content = {"server_keys": {server_name: criteria}}
        return await self._post(notary, f"{KEY}/query", content, _KEYS, server_keys=list)


def _quoted(segment: str) -> str:
    return quote(segment, safe="")


def _encode(content: Mapping[str, object]) -> bytes:
    """Return the Canonical JSON of a body, which may hold an event with an old room's numbers."""
    try:
        return encode_strict(content)
    except CanonicalJsonError:
        return encode_lenient(content)


def _refusal(destination: str, answer: RawAnswer) -> RemoteError:
    try:
        body = decode(answer.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}
    errcode, message = body.get("errcode"), body.get("error")
    retry_after_ms = body.get("retry_after_ms")
    return RemoteError(
        "refused",
        destination,
        message if isinstance(message, str) else "",
        answer.status,
        errcode if isinstance(errcode, str) else "",
        retry_after_ms if isinstance(retry_after_ms, int) else None,
        body,
    )


def _object(answer: object, destination: str) -> Answer:
    return _checked(answer, destination, {})


def _checked(answer: object, destination: str, shape: Mapping[str, type]) -> Answer:
    """Return the answer if it is an object with these keys of these types."""
    if isinstance(answer, RemoteError):
        return answer
    if not isinstance(answer, dict):
        return RemoteError("bad_answer", destination, "not a JSON object", 200)
    for name, kind in shape.items():
        if type(answer.get(name)) is not kind:  # In Python, true is an integer.
            return RemoteError("bad_answer", destination, f"{name} is missing or wrong", 200)
    return answer


def _second(answer: object) -> object:
    """Return the object of an answer in the form of version 1: `[200, {…}]`."""
    match answer:
        case [int(), dict() as body]:
            return body
        case _:
            return answer


def _is_missing(answer: Answer) -> bool:
    """Return whether an answer says that there is no such endpoint."""
    if not isinstance(answer, RemoteError) or answer.kind != "refused":
        return False
    if answer.errcode == "M_UNRECOGNIZED":
        return answer.status in _NO_SUCH_ENDPOINT
    return not answer.errcode and answer.status in (404, 405)
