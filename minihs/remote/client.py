"""What we ask of other servers: one method for each endpoint of the server-server API that we call.

Every request is signed by us and names its destination; every answer is either the JSON object of a
success, whose outermost keys have been checked to be there and of the right type, or a
`RemoteError`. What is *in* them is as untrusted as before: events must still be verified, templates
compared with what was asked.

Spec: server-server-api#authentication
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from minihs.base.limits import REMOTE_QUERY_TIMEOUT_MS
from minihs.remote.signed_requests import (
    HANDSHAKE,
    KEYS,
    PDUS,
    PLAIN,
    QUERY,
    SEND,
    STATE,
    Limits,
    is_missing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minihs.remote.signed_requests import Answer, SignedRequests

V1: Final = "/_matrix/federation/v1"
V2: Final = "/_matrix/federation/v2"
KEY: Final = "/_matrix/key/v2"


class Remote:
    """The other servers, as we see them."""

    def __init__(self, requests: SignedRequests) -> None:
        self.requests = requests

    # --- transactions ---------------------------------------------------------------------------

    async def send_transaction(
        self, destination: str, transaction_id: str, content: Mapping[str, object] | bytes
    ) -> Answer:
        """PUT …/send/{txnId}: return what it says of each PDU, under `pdus` if it says anything.

        Made whether or not the server is known to be down: this is how that is found out.

        Spec: server-server-api#transactions
        """
        return await self.requests.request(
            destination,
            "PUT",
            f"{V1}/send/{_quoted(transaction_id)}",
            content=content,
            limits=SEND,
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
        return await self.requests.get(destination, path, query, HANDSHAKE, event=dict)

    async def send_join(
        self, destination: str, room_id: str, event_id: str, pdu: Mapping[str, object]
    ) -> Answer:
        """PUT …/send_join: return `state` and `auth_chain`, and perhaps `event`.

        A server that knows only version 1 of the endpoint is asked by that.

        Spec: server-server-api#joining-rooms
        """
        path = f"/send_join/{_quoted(room_id)}/{_quoted(event_id)}"
        answer = await self.requests.put(
            destination, V2 + path, pdu, STATE, state=list, auth_chain=list
        )
        if not is_missing(answer):
            return answer
        return await self.requests.put_v1(
            destination, V1 + path, pdu, STATE, state=list, auth_chain=list
        )

    async def make_leave(self, destination: str, room_id: str, user_id: str) -> Answer:
        """GET …/make_leave: return `event`, a template, and perhaps `room_version`.

        Spec: server-server-api#leaving-rooms-rejecting-invites
        """
        path = f"{V1}/make_leave/{_quoted(room_id)}/{_quoted(user_id)}"
        return await self.requests.get(destination, path, (), HANDSHAKE, event=dict)

    async def send_leave(
        self, destination: str, room_id: str, event_id: str, pdu: Mapping[str, object]
    ) -> Answer:
        """PUT …/send_leave: return an empty object; older servers are asked by version 1.

        Spec: server-server-api#leaving-rooms-rejecting-invites
        """
        path = f"/send_leave/{_quoted(room_id)}/{_quoted(event_id)}"
        answer = await self.requests.put(destination, V2 + path, pdu, QUERY)
        if not is_missing(answer):
            return answer
        return await self.requests.put_v1(destination, V1 + path, pdu, QUERY)

    async def make_knock(
        self, destination: str, room_id: str, user_id: str, room_versions: Sequence[str]
    ) -> Answer:
        """GET …/make_knock: return `event`, a template, and `room_version`.

        Spec: server-server-api#knocking-rooms
        """
        path = f"{V1}/make_knock/{_quoted(room_id)}/{_quoted(user_id)}"
        query = [("ver", version) for version in room_versions]
        return await self.requests.get(
            destination, path, query, HANDSHAKE, event=dict, room_version=str
        )

    async def send_knock(
        self, destination: str, room_id: str, event_id: str, pdu: Mapping[str, object]
    ) -> Answer:
        """PUT …/send_knock: return `knock_room_state`, stripped.

        Spec: server-server-api#knocking-rooms
        """
        path = f"{V1}/send_knock/{_quoted(room_id)}/{_quoted(event_id)}"
        return await self.requests.put(destination, path, pdu, HANDSHAKE, knock_room_state=list)

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
        answer = await self.requests.put(destination, V2 + path, content, PDUS, event=dict)
        if room_version not in ("1", "2") or not is_missing(answer):
            return answer
        older = {**pdu, "unsigned": {"invite_room_state": list(invite_room_state)}}
        return await self.requests.put_v1(destination, V1 + path, older, PDUS, event=dict)

    # --- events and state -----------------------------------------------------------------------

    async def get_event(self, destination: str, event_id: str) -> Answer:
        """GET …/event/{eventId}: return `pdus`, a list of one.

        Spec: server-server-api#retrieving-events
        """
        return await self.requests.get(
            destination, f"{V1}/event/{_quoted(event_id)}", (), PDUS, pdus=list
        )

    async def get_state(self, destination: str, room_id: str, event_id: str) -> Answer:
        """GET …/state: return `pdus`, the state before the event, and `auth_chain`.

        Spec: server-server-api#retrieving-events
        """
        query = [("event_id", event_id)]
        path = f"{V1}/state/{_quoted(room_id)}"
        return await self.requests.get(destination, path, query, STATE, pdus=list, auth_chain=list)

    async def get_state_ids(self, destination: str, room_id: str, event_id: str) -> Answer:
        """GET …/state_ids: return `pdu_ids`, the state before the event, and `auth_chain_ids`.

        Spec: server-server-api#retrieving-events
        """
        query = [("event_id", event_id)]
        path = f"{V1}/state_ids/{_quoted(room_id)}"
        return await self.requests.get(
            destination, path, query, STATE, pdu_ids=list, auth_chain_ids=list
        )

    async def get_event_auth(self, destination: str, room_id: str, event_id: str) -> Answer:
        """GET …/event_auth: return `auth_chain`, events.

        Spec: server-server-api#retrieving-event-authorisation-information
        """
        path = f"{V1}/event_auth/{_quoted(room_id)}/{_quoted(event_id)}"
        return await self.requests.get(destination, path, (), STATE, auth_chain=list)

    async def backfill(
        self, destination: str, room_id: str, event_ids: Sequence[str], limit: int
    ) -> Answer:
        """GET …/backfill: return `pdus`, the given events and what came before them.

        Spec: server-server-api#backfilling-and-retrieving-missing-events
        """
        query = [*(("v", event_id) for event_id in event_ids), ("limit", str(limit))]
        path = f"{V1}/backfill/{_quoted(room_id)}"
        return await self.requests.get(destination, path, query, STATE, pdus=list)

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
        return await self.requests.post(destination, path, content, PDUS, events=list)

    async def timestamp_to_event(
        self, destination: str, room_id: str, timestamp_ms: int, direction: str
    ) -> Answer:
        """GET …/timestamp_to_event: return `event_id` and `origin_server_ts`.

        Spec: server-server-api#retrieving-events
        """
        query = [("ts", str(timestamp_ms)), ("dir", direction)]
        path = f"{V1}/timestamp_to_event/{_quoted(room_id)}"
        return await self.requests.get(
            destination, path, query, QUERY, event_id=str, origin_server_ts=int
        )

    # --- questions ------------------------------------------------------------------------------

    async def query_profile(self, destination: str, user_id: str) -> Answer:
        """GET …/query/profile: return the fields of a profile.

        Spec: server-server-api#querying-for-information
        """
        query = [("user_id", user_id)]
        return await self.requests.get(destination, f"{V1}/query/profile", query, QUERY)

    async def query_directory(self, destination: str, room_alias: str) -> Answer:
        """GET …/query/directory: return `room_id` and `servers`.

        Spec: server-server-api#querying-for-information
        """
        query = [("room_alias", room_alias)]
        path = f"{V1}/query/directory"
        return await self.requests.get(destination, path, query, QUERY, room_id=str, servers=list)

    async def get_public_rooms(self, destination: str, content: Mapping[str, object]) -> Answer:
        """POST …/publicRooms, or GET for a server that knows only that: return `chunk` and tokens.

        `content` is the search: `limit`, `since`, `filter`, `include_all_networks`,
        `third_party_instance_id`. The GET cannot carry a filter, so it is not tried for one.

        Spec: server-server-api#published-room-directory
        """
        path = f"{V1}/publicRooms"
        answer = await self.requests.post(destination, path, content, PLAIN, chunk=list)
        if "filter" in content or not is_missing(answer):
            return answer
        query = [
            (name, str(value).lower() if isinstance(value, bool) else str(value))
            for name, value in content.items()
        ]
        return await self.requests.get(destination, path, query, PLAIN, chunk=list)

    async def get_room_hierarchy(
        self, destination: str, room_id: str, *, suggested_only: bool = False,
        timeout_ms: int = REMOTE_QUERY_TIMEOUT_MS,
    ) -> Answer:  # fmt: skip
        """GET …/hierarchy: return `room`, `children` and `inaccessible_children`.

        Spec: server-server-api#spaces
        """
        query = [("suggested_only", "true" if suggested_only else "false")]
        path = f"{V1}/hierarchy/{_quoted(room_id)}"
        limits = Limits(timeout_ms=timeout_ms)
        return await self.requests.get(destination, path, query, limits, room=dict, children=list)

    # --- servers --------------------------------------------------------------------------------

    async def get_server_keys(self, destination: str) -> Answer:
        """GET /_matrix/key/v2/server: return the keys as the server publishes them, unverified.

        Asked also of servers that are backing off: what they send us must be verified.

        Spec: server-server-api#publishing-keys
        """
        return await self.requests.request(
            destination, "GET", f"{KEY}/server", limits=KEYS, ignore_back_off=True
        )

    async def query_server_keys(
        self, notary: str, server_name: str, key_ids: Sequence[str], minimum_valid_until_ms: int
    ) -> Answer:
        """POST /_matrix/key/v2/query: return `server_keys`, a list of key objects, unverified.

        Spec: server-server-api#querying-keys-through-another-server
        """
        criteria = {key: {"minimum_valid_until_ts": minimum_valid_until_ms} for key in key_ids}
        content = {"server_keys": {server_name: criteria}}
        return await self.requests.post(notary, f"{KEY}/query", content, KEYS, server_keys=list)


def _quoted(segment: str) -> str:
    return quote(segment, safe="")
