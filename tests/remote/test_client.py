"""What we ask of servers: the right endpoint, well signed; and what we make of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import orjson
import pytest

from minihs.protocol.identifiers import ServerName
from minihs.protocol.request_auth import parse_authorization, verify_request
from minihs.remote.client import Remote
from minihs.remote.signed_requests import Answer, SignedRequests
from minihs.remote.transport import OutgoingRequest, RawAnswer, RemoteError
from tests.helpers.rooms import signing_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HS1 = ServerName("hs1")
KEY = signing_key(HS1)
ROOM, EVENT, USER = "!a/b:hs2", "$c/d", "@é:hs1"
PDU: dict[str, object] = {"type": "m.room.member"}


class Recorder:
    """A transport that answers from a list, and keeps the requests."""

    def __init__(self, *answers: object) -> None:
        self.requests: list[OutgoingRequest] = []
        self._answers = list(answers)

    async def send(self, request: OutgoingRequest) -> RawAnswer | RemoteError:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, RawAnswer | RemoteError):
            return answer
        return RawAnswer(200, answer if isinstance(answer, bytes) else orjson.dumps(answer))

    async def close(self) -> None:
        pass


def error(status: int, errcode: str | None = None, **fields: object) -> RawAnswer:
    body = {"error": "no", **fields} | ({} if errcode is None else {"errcode": errcode})
    return RawAnswer(status, orjson.dumps(body))


def remote(transport: Recorder, *, is_transaction_open: bool = False) -> Remote:
    return Remote(
        SignedRequests(HS1, KEY, transport, is_transaction_open=lambda: is_transaction_open)
    )


def assert_well_signed(request: OutgoingRequest) -> None:
    header = parse_authorization(request.headers["Authorization"])
    assert (header.origin, header.destination) == ("hs1", request.destination)
    content = {} if request.body is None else {"content": orjson.loads(request.body)}
    verify_request(
        header, KEY.public_key, method=request.method, uri=request.target,
        server_name=request.destination, **content,
    )  # fmt: skip


FED = "/_matrix/federation"
R, E, U = "%21a%2Fb%3Ahs2", "%24c%2Fd", "%40%C3%A9%3Ahs1"
Call = "Callable[[Remote], Awaitable[Answer]]"

# What is called; method, path and query; the smallest answer that is taken.
ENDPOINTS: list[tuple[Call, str, dict[str, object]]] = [  # type: ignore[valid-type]
    (lambda r: r.send_transaction("hs2", "a/b", {"pdus": []}), f"PUT {FED}/v1/send/a%2Fb", {}),
    (lambda r: r.make_join("hs2", ROOM, USER, ["11", "12"]),
     f"GET {FED}/v1/make_join/{R}/{U}?ver=11&ver=12", {"event": {}}),
    (lambda r: r.send_join("hs2", ROOM, EVENT, PDU), f"PUT {FED}/v2/send_join/{R}/{E}",
     {"state": [], "auth_chain": []}),
    (lambda r: r.make_leave("hs2", ROOM, USER), f"GET {FED}/v1/make_leave/{R}/{U}", {"event": {}}),
    (lambda r: r.send_leave("hs2", ROOM, EVENT, PDU), f"PUT {FED}/v2/send_leave/{R}/{E}", {}),
    (lambda r: r.make_knock("hs2", ROOM, USER, ["12"]), f"GET {FED}/v1/make_knock/{R}/{U}?ver=12",
     {"event": {}, "room_version": "12"}),
    (lambda r: r.send_knock("hs2", ROOM, EVENT, PDU), f"PUT {FED}/v1/send_knock/{R}/{E}",
     {"knock_room_state": []}),
    (lambda r: r.invite("hs2", ROOM, EVENT, PDU, "12", [PDU]), f"PUT {FED}/v2/invite/{R}/{E}",
     {"event": {}}),
    (lambda r: r.get_event("hs2", EVENT), f"GET {FED}/v1/event/{E}", {"pdus": []}),
    (lambda r: r.get_state("hs2", ROOM, EVENT), f"GET {FED}/v1/state/{R}?event_id={E}",
     {"pdus": [], "auth_chain": []}),
    (lambda r: r.get_state_ids("hs2", ROOM, EVENT), f"GET {FED}/v1/state_ids/{R}?event_id={E}",
     {"pdu_ids": [], "auth_chain_ids": []}),
    (lambda r: r.get_event_auth("hs2", ROOM, EVENT), f"GET {FED}/v1/event_auth/{R}/{E}",
     {"auth_chain": []}),
    (lambda r: r.backfill("hs2", ROOM, [EVENT, "$2"], 7),
     f"GET {FED}/v1/backfill/{R}?v={E}&v=%242&limit=7", {"pdus": []}),
    (lambda r: r.get_missing_events("hs2", ROOM, earliest=["$1"], latest=["$2"], limit=9),
     f"POST {FED}/v1/get_missing_events/{R}", {"events": []}),
    (lambda r: r.timestamp_to_event("hs2", ROOM, 5, "b"),
     f"GET {FED}/v1/timestamp_to_event/{R}?ts=5&dir=b", {"event_id": "$1", "origin_server_ts": 1}),
    (lambda r: r.query_profile("hs2", USER),
     f"GET {FED}/v1/query/profile?user_id={U}", {}),
    (lambda r: r.query_directory("hs2", "#a:hs2"),
     f"GET {FED}/v1/query/directory?room_alias=%23a%3Ahs2", {"room_id": ROOM, "servers": []}),
    (lambda r: r.get_public_rooms("hs2", {"limit": 3}), f"POST {FED}/v1/publicRooms",
     {"chunk": []}),
    (lambda r: r.get_room_hierarchy("hs2", ROOM),
     f"GET {FED}/v1/hierarchy/{R}?suggested_only=false", {"room": {}, "children": []}),
    (lambda r: r.get_server_keys("hs2"), "GET /_matrix/key/v2/server", {}),
    (lambda r: r.query_server_keys("hs2", "hs3", ["ed25519:a"], 5), "POST /_matrix/key/v2/query",
     {"server_keys": []}),
]  # fmt: skip


@pytest.mark.parametrize(("call", "asked", "smallest"), ENDPOINTS, ids=[e[1] for e in ENDPOINTS])
async def test_endpoints(
    call: Callable[[Remote], Awaitable[Answer]], asked: str, smallest: dict[str, object]
) -> None:
    transport = Recorder(smallest)
    assert await call(remote(transport)) == smallest
    (request,) = transport.requests
    assert f"{request.method} {request.target}" == asked
    assert (request.body is None) == (request.method == "GET")
    assert_well_signed(request)
    wrong: object
    of_wrong_type = [{**smallest, name: wrong} for name in smallest for wrong in (None, True)]
    for wrong in [[], None, "x", *of_wrong_type]:
        answer = await call(remote(Recorder(wrong)))
        assert isinstance(answer, RemoteError)
        assert answer.kind == "bad_answer"


# --- older servers ------------------------------------------------------------------------------

MISSING = [error(404, "M_UNRECOGNIZED"), error(400, "M_UNRECOGNIZED"), error(405), error(404),
           RawAnswer(404, b"404 page not found", "text/plain")]  # fmt: skip


@pytest.mark.parametrize("missing", MISSING)
async def test_servers_that_know_only_version_1(missing: RawAnswer) -> None:
    joined: dict[str, object] = {"state": [], "auth_chain": []}
    transport = Recorder(missing, [200, joined], missing, [200, {}], missing, [200, {"event": {}}])
    asking = remote(transport)
    assert await asking.send_join("hs2", ROOM, EVENT, PDU) == joined
    assert await asking.send_leave("hs2", ROOM, EVENT, PDU) == {}
    assert await asking.invite("hs2", ROOM, EVENT, PDU, "2", [PDU]) == {"event": {}}
    assert [request.target.split("/")[3] for request in transport.requests] == ["v2", "v1"] * 3
    assert orjson.loads(transport.requests[5].body or b"") == {
        **PDU,
        "unsigned": {"invite_room_state": [PDU]},
    }


@pytest.mark.parametrize(
    "refusal", [error(404, "M_NOT_FOUND"), error(403, "M_FORBIDDEN"), error(500), error(400)]
)
async def test_a_refusal_is_not_asked_for_again(refusal: RawAnswer) -> None:
    transport = Recorder(refusal, refusal, refusal)
    asking = remote(transport)
    assert isinstance(await asking.send_join("hs2", ROOM, EVENT, PDU), RemoteError)
    assert isinstance(await asking.send_leave("hs2", ROOM, EVENT, PDU), RemoteError)
    assert isinstance(await asking.invite("hs2", ROOM, EVENT, PDU, "1", []), RemoteError)
    assert len(transport.requests) == 3


async def test_newer_rooms_have_no_old_invites() -> None:
    transport = Recorder(MISSING[0])
    answer = await remote(transport).invite("hs2", ROOM, EVENT, PDU, "3", [])
    assert isinstance(answer, RemoteError)


async def test_public_rooms_of_a_server_that_cannot_search() -> None:
    transport = Recorder(MISSING[0], {"chunk": []}, MISSING[0])
    asking = remote(transport)
    assert await asking.get_public_rooms("hs2", {"limit": 3, "include_all_networks": True}) == {
        "chunk": []
    }
    query = parse_qs(transport.requests[1].target.partition("?")[2])
    assert query == {"limit": ["3"], "include_all_networks": ["true"]}
    assert isinstance(await asking.get_public_rooms("hs2", {"filter": {}}), RemoteError)


# --- failures -----------------------------------------------------------------------------------


async def test_what_a_refusal_says() -> None:
    refusal = error(429, "M_LIMIT_EXCEEDED", retry_after_ms=7, other=1)
    answer = await remote(Recorder(refusal)).get_event("hs2", EVENT)
    assert isinstance(answer, RemoteError)
    assert (answer.kind, answer.status, answer.errcode) == ("refused", 429, "M_LIMIT_EXCEEDED")
    assert (answer.retry_after_ms, answer.body["other"]) == (7, 1)
    assert not answer.server_is_up


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"errcode": 1, "error": []}'])
async def test_refusals_of_any_form(body: bytes) -> None:
    answer = await remote(Recorder(RawAnswer(403, body))).get_event("hs2", EVENT)
    assert isinstance(answer, RemoteError)
    assert (answer.kind, answer.status, answer.errcode, answer.message) == ("refused", 403, "", "")
    assert answer.server_is_up


async def test_redirects_and_nonsense_are_no_answers() -> None:
    for raw, kind in [
        (RawAnswer(302, b"{}"), "refused"),
        (RawAnswer(200, b"{"), "bad_answer"),
        (RawAnswer(200, b"\xff"), "bad_answer"),
        (RawAnswer(200, b"[" * 100_000), "bad_answer"),
    ]:
        answer = await remote(Recorder(raw)).get_event("hs2", EVENT)
        assert isinstance(answer, RemoteError)
        assert answer.kind == kind


async def test_numbers_of_old_rooms_are_kept() -> None:
    body = b'{"pdus":[{"depth":1000000000000000000000000,"content":{"a":1e3}}]}'
    answer = await remote(Recorder(body)).get_event("hs2", EVENT)
    assert answer == {"pdus": [{"depth": 10**24, "content": {"a": 1000.0}}]}


async def test_nothing_is_asked_in_a_transaction() -> None:
    with pytest.raises(RuntimeError, match="transaction"):
        await remote(Recorder(), is_transaction_open=True).get_event("hs2", EVENT)


@pytest.mark.parametrize("name", ["hs1", "", "not a name", "a/b", "[::", "x" * 300, "é.example"])
async def test_s11_names_that_are_no_other_server_are_not_asked(name: str) -> None:
    transport = Recorder()
    answer = await remote(transport).get_event(name, EVENT)
    assert isinstance(answer, RemoteError)
    assert (answer.kind, transport.requests) == ("unreachable", [])
    assert "\n" not in answer.describe()


async def test_servers_that_are_down_fail_fast_but_are_still_tried_by_transactions() -> None:
    transport = Recorder({}, {})
    asking = remote(transport)
    asking.requests.is_backing_off = lambda name: name == "hs2"
    assert isinstance(await asking.query_profile("hs2", USER), RemoteError)
    assert transport.requests == []
    assert await asking.send_transaction("hs2", "1", b"{}") == {}
    assert await asking.get_server_keys("hs2") == {}
