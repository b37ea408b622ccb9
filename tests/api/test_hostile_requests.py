"""Requests that no client makes: too large, too slow, too deep, too odd.

J01, J02, J04, J08, C21 and F16 of the list of attacks, for the client's side of the server. They
are made on a socket, byte by byte, where a library would not make them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import re
import tracemalloc
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson
import pytest

from minihs import app, processes
from minihs.api.routes import ROUTES
from minihs.base.limits import BODY_BYTES_MAX
from tests.fuzz.mutations import Mutator
from tests.helpers.homeserver import PASSWORD
from tests.helpers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.helpers.homeserver import Homeserver, User

CLIENT = "/_matrix/client/v3"
PIECE = b"x" * 65_536


@contextlib.asynccontextmanager
async def connection(
    homeserver: Homeserver,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection to the first process of the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", homeserver.client.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def ask(homeserver: Homeserver, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes; return the status, headers and body of the first answer."""
    async with connection(homeserver) as (reader, writer):
        writer.write(request)
        return await answer(reader)


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Return the next answer on a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split(" ")[1]), headers, body


def head(method: str, path: str, *headers: str, token: str | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: hs1", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.fixture
async def alice(homeserver: Homeserver) -> User:
    return await homeserver.register("alice")


# --- size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/login", "/createRoom", "/user/@alice:hs1/filter"])
async def test_J01_a_body_without_end_is_cut_and_fills_no_memory(
    homeserver: Homeserver, alice: User, path: str
):
    tracemalloc.start()
    try:
        async with connection(homeserver) as (reader, writer):
            writer.write(
                head(
                    "POST", CLIENT + path, "Transfer-Encoding: chunked",
                    "Content-Type: application/json", token=alice.token,
                )
            )  # fmt: skip
            reading = asyncio.ensure_future(answer(reader))
            sent = 0
            with contextlib.suppress(ConnectionError):
                while not reading.done() and sent < 64 * BODY_BYTES_MAX:
                    writer.write(f"{len(PIECE):x}\r\n".encode() + PIECE + b"\r\n")
                    await writer.drain()
                    sent += len(PIECE)
            status, _, body = await reading
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (status, orjson.loads(body)["errcode"]) == (413, "M_TOO_LARGE")
    assert sent < 16 * BODY_BYTES_MAX  # What the system's buffers take, and no more.
    assert peak < 8 * BODY_BYTES_MAX


async def test_J01_a_length_over_the_limit_is_refused_before_a_byte_is_read(
    homeserver: Homeserver, alice: User
):
    length = f"Content-Length: {BODY_BYTES_MAX + 1}"
    status, _, body = await ask(
        homeserver, head("POST", CLIENT + "/createRoom", length, token=alice.token)
    )
    assert (status, orjson.loads(body)["errcode"]) == (413, "M_TOO_LARGE")


async def test_J01_what_is_small_only_when_compressed_is_cut(homeserver: Homeserver, alice: User):
    bomb = gzip.compress(b'{"a": "' + b"x" * (64 * BODY_BYTES_MAX) + b'"}')
    assert len(bomb) < BODY_BYTES_MAX
    request = head(
        "POST", CLIENT + "/createRoom", f"Content-Length: {len(bomb)}", "Content-Encoding: gzip",
        token=alice.token,
    )  # fmt: skip
    tracemalloc.start()
    try:
        status, _, body = await ask(homeserver, request + bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (status, orjson.loads(body)["errcode"]) == (413, "M_TOO_LARGE")
    assert peak < 8 * BODY_BYTES_MAX


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "multipart/mixed", "Multipart/Form-Data"]
)
async def test_J02_forms_are_refused_before_they_are_read(
    homeserver: Homeserver, alice: User, kind: str
):
    """The body never comes: whoever waited for it would not answer."""
    for path in ("/login", "/createRoom"):
        headers = (f"Content-Type: {kind}", "Content-Length: 1000")
        request = head("POST", CLIENT + path, *headers, token=alice.token)
        status, _, body = await ask(homeserver, request)
        assert (status, orjson.loads(body)["errcode"]) == (400, "M_NOT_JSON")


async def test_J02_a_form_is_never_read_as_one(homeserver: Homeserver):
    """`curl -d` calls everything a form: what is JSON counts as JSON, what is a form as nothing."""
    for body, expected in ((b"type=m.login.password&user=alice", 400), (b"{}", 400)):
        request = head(
            "POST", CLIENT + "/login", "Content-Type: application/x-www-form-urlencoded",
            f"Content-Length: {len(body)}",
        )  # fmt: skip
        status, _, said = await ask(homeserver, request + body)
        assert status == expected
        assert orjson.loads(said)["errcode"] == ("M_NOT_JSON" if b"=" in body else "M_BAD_JSON")


# --- depth and odd values -----------------------------------------------------------------------


def deep(levels: int, kind: str) -> bytes:
    opening, closing = ("[", "]") if kind == "lists" else ('{"a":', "}")
    return f"{opening * levels}1{closing * levels}".encode()


@pytest.mark.parametrize("levels", [200, 254, 255, 1_000, 1_023, 1_024, 10_000, 100_000])
@pytest.mark.parametrize("kind", ["lists", "objects"])
async def test_J04_what_is_nested_deeply_is_refused_or_kept_but_breaks_nothing(
    homeserver: Homeserver, alice: User, levels: int, kind: str
):
    room = quote(await alice.create_room())
    value = deep(levels, kind)
    user = quote(alice.user_id)
    places = [
        ("PUT", f"/rooms/{room}/send/m.room.message/t", b'{"body":"x","deep":%b}'),
        ("PUT", f"/rooms/{room}/state/org.example/", b'{"deep":%b}'),
        ("PUT", f"/user/{user}/account_data/org.example", b'{"deep":%b}'),
        ("PUT", f"/profile/{user}/org.example", b'{"org.example":%b}'),
        ("POST", f"/user/{user}/filter", b'{"room":{"timeline":%b}}'),
        ("POST", "/createRoom", b'{"creation_content":{"deep":%b}}'),
        ("POST", "/login", b'{"type":"m.login.password","deep":%b}'),
        ("PUT", f"/rooms/{room}/send/m.room.message/u", b"%b"),
    ]
    for method, path, template in places:
        response = await alice.request(method, path, template % value)
        assert response.status in (200, 400, 403, 404, 413), (path, response.json)
        if levels >= 1_024:
            assert response.status == 400
            assert response.json["errcode"] in ("M_BAD_JSON", "M_NOT_JSON")
    # Whatever was kept can be read.
    for path in ("/sync", f"/rooms/{room}/messages?dir=b", f"/rooms/{room}/state"):
        assert (await alice.request("GET", path)).status == 200


@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800", "\\udfff\\ud800"])
async def test_J08_J09_a_nul_is_kept_or_refused_and_half_a_character_refused(
    homeserver: Homeserver, alice: User, text: str
):
    room = quote(await alice.create_room())
    user, device = quote(alice.user_id), alice.device_id
    members = f"/rooms/{room}/state/m.room.member/{user}"
    joined = '{"membership":"join","displayname":"%s"}'
    places = [
        ("PUT", f"/rooms/{room}/send/m.room.message/t", '{"body":"%s"}'),
        ("PUT", f"/rooms/{room}/state/org.example/", '{"a":"%s"}'),
        ("PUT", members, joined),
        ("PUT", f"/profile/{user}/displayname", '{"displayname":"%s"}'),
        ("PUT", f"/user/{user}/account_data/org.example", '{"a":"%s"}'),
        ("POST", f"/user/{user}/filter", '{"room":{"timeline":{"types":["%s"]}}}'),
        ("PUT", f"/devices/{device}", '{"display_name":"%s"}'),
        ("POST", f"/rooms/{room}/kick", '{"user_id":"@b:hs1","reason":"%s"}'),
        ("POST", "/createRoom", '{"name":"%s"}'),
        ("POST", "/createRoom", '{"room_alias_name":"%s"}'),
        ("POST", "/createRoom", '{"initial_state":[{"type":"%s","content":{}}]}'),
        ("POST", "/createRoom", '{"initial_state":[{"type":"a","state_key":"%s","content":{}}]}'),
        ("POST", "/createRoom", '{"invite":["@%s:hs1"]}'),
        ("POST", f"/rooms/{room}/invite", '{"user_id":"%s"}'),
        ("POST", f"/join/{room}", '{"reason":"%s"}'),
        ("PUT", "/directory/room/%23a:hs1", '{"room_id":"%s"}'),
        ("POST", "/login", '{"type":"m.login.password","identifier":{"type":"m.id.user",'
         '"user":"%s"},"password":"%s","device_id":"%s"}'),
        ("POST", "/register", '{"username":"%s","password":"p","device_id":"%s"}'),
        ("POST", f"/rooms/{room}/receipt/m.read/$e", '{"thread_id":"%s"}'),
        ("POST", f"/rooms/{room}/read_markers", '{"m.read":"%s"}'),
        ("POST", "/publicRooms", '{"third_party_instance_id":"%s"}'),
        ("POST", "/delete_devices", '{"devices":["%s"],"auth":{"type":"m.login.password",'
         f'"user":"{alice.user_id}","password":"{PASSWORD}"}}}}'),
    ]  # fmt: skip
    for method, path, template in places:
        body = template.replace("%s", text).encode()
        response = await alice.request(method, path, body)
        assert response.status < 500, (path, response.json)
        if "\\ud" in text:
            assert response.status == 400, (path, response.json)
    answer = await alice.request("GET", "/sync")
    assert answer.status == 200
    if "0000" in text:
        assert b"a\\u0000b" in answer.body


PATHS = sorted({(route.method, route.path) for route in ROUTES if "/_matrix/client" in route.path})


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_a_client_asks_is_no_internal_error(
    homeserver: Homeserver, alice: User, seed: int
):
    """Every endpoint, with bodies, paths and queries that a seed has changed."""
    room = await alice.create_room()
    event = await alice.say(room)
    mutator = Mutator(Random(seed))
    mutator.words = [room, event, alice.user_id, alice.device_id, "m.room.message", "t1"]
    skipped = ("logout", "deactivate", "account/password", "delete_devices", "DELETE")
    for method, path in PATHS:
        if any(word in f"{method} {path}" for word in skipped):
            continue
        for _ in range(4):
            filled = fill(path, mutator)
            body = mutator.json(BODY) if method in ("PUT", "POST") else None
            try:
                data = None if body is None else orjson.dumps(body)
            except TypeError:
                continue
            query = {
                str(mutator.pick(("from", "limit", "dir", "filter", "since", "at", "ts"))): quote(
                    str(mutator.value())[:300]
                )
                for _ in range(mutator.chance.randrange(3))
            }
            response = await alice.request(method, filled, data, timeout="0", **query)
            assert response.status < 500 or response.status in (501, 502), (
                method, filled, data, query, response.json,
            )  # fmt: skip


BODY = {
    "type": "m.room.message", "user_id": "@bob:hs1", "reason": "so", "content": {"body": "x"},
    "filter": {"types": ["a"], "limit": 3}, "room_id": "!a:hs1", "event_id": "$e",
    "search_categories": {"room_events": {"search_term": "x", "filter": {}}},
    "lists": {"a": {"ranges": [[0, 5]], "timeline_limit": 1, "required_state": [["*", "*"]]}},
    "name": "n", "visibility": "public", "preset": "private_chat", "initial_state": [],
    "actions": ["notify"], "pattern": "p", "conditions": [], "messages": {"@a:hs1": {"*": {}}},
    "identifier": {"type": "m.id.user", "user": "alice"}, "password": "p", "auth": {"type": "x"},
    "limit": 5, "since": "s1", "typing": True, "timeout": 5, "tags": {}, "order": 0.5,
    "new_version": "12", "score": -1, "devices": [], "device_keys": {}, "one_time_keys": {},
}  # fmt: skip


def fill(path: str, mutator: Mutator) -> str:
    """Return a path whose parameters are something, mostly what exists."""
    parts = []
    for part in path.split("/"):
        if part.startswith("{"):
            value = mutator.pick(mutator.words) if mutator.often(800) else mutator.value()
            named = {"{roomId}": 0, "{userId}": 2, "{eventId}": 1}
            if part in named and mutator.often(800):
                value = mutator.words[named[part]]
            parts.append(quote(str(value)[:300], safe="") or "x")
        else:
            parts.append(part)
    return "/".join(parts)


# --- HTTP itself --------------------------------------------------------------------------------

LOGIN = CLIENT + "/login"


def requests_that_are_read_in_two_ways() -> Iterable[bytes]:
    """Yield what a proxy before us might take for another number of requests than we do."""
    tail = b"0\r\n\r\nGET /_matrix/client/versions HTTP/1.1\r\nHost: hs1\r\n\r\n"
    for headers in (
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 4"),
        ("Content-Length: 4", "Content-Length: 5"),
        ("Content-Length: 4, 5",),
        ("Content-Length: +4",),
        ("Content-Length: -4",),
        ("Content-Length: 0x4",),
        ("Content-Length: 4_0",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding:\x0bchunked",),
        (" Transfer-Encoding: chunked",),
        ("X: y\nTransfer-Encoding: chunked",),
        ("Content-Length : 4",),
        ("Content\x00-Length: 4",),
    ):
        yield head("POST", LOGIN, *headers) + tail
    yield head("POST", LOGIN, "Transfer-Encoding: chunked") + b"0_1\r\nx\r\n0\r\n\r\n"
    yield head("POST", LOGIN, "Transfer-Encoding: chunked") + b"-1\r\nx\r\n0\r\n\r\n"
    yield head("POST", LOGIN, "Transfer-Encoding: chunked") + b"1;a\nb\r\nx\r\n0\r\n\r\n"


READ_IN_TWO_WAYS = list(requests_that_are_read_in_two_ways())


@pytest.mark.parametrize("number", range(len(READ_IN_TWO_WAYS)))
async def test_C21_no_request_is_smuggled_in_another(homeserver: Homeserver, number: int):
    """There is one answer, a refusal, and the connection ends with it."""
    async with connection(homeserver) as (reader, writer):
        writer.write(READ_IN_TWO_WAYS[number])
        async with asyncio.timeout(PATIENCE_S):
            said = await reader.read(-1)
    assert re.match(rb"HTTP/1\.[01] 400 ", said), said
    assert b" 200 OK" not in said
    assert len(re.findall(rb"^HTTP/1", said, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    "headers",
    [
        [f"X-{n}: y" for n in range(50_000)],
        ["X: " + "y" * 1_000_000],
        ["Y" * 1_000_000 + ": x"],
    ],
    ids=["many", "long value", "long name"],
)
async def test_C21_headers_without_end_are_cut(homeserver: Homeserver, headers: list[str]):
    async with connection(homeserver) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(head("GET", CLIENT + "/login", *headers))
            writer.write_eof()
            await writer.drain()
            said = await reader.read(-1)
            assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")), said[:100]
    assert (await homeserver.stranger().request("GET", "/login")).status == 200


@pytest.mark.parametrize(
    "line",
    [b"Authorization: Bearer t0psecret\0", b"Content-Length: 1\r\nContent-Length: 2", b"x" * 9_000],
    ids=["character", "lengths", "long"],
)
async def test_C21_what_is_no_http_fills_no_log(
    homeserver: Homeserver, caplog: pytest.LogCaptureFixture, line: bytes
):
    """Anybody may send it, and it may be somebody's token that is quoted."""
    request = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n\r\n"
    status, _, _ = await ask(homeserver, request)
    assert status == 400
    assert not caplog.records


async def test_C21_a_path_without_end_is_cut(homeserver: Homeserver):
    status, _, _ = await ask(homeserver, head("GET", CLIENT + "/" + "x" * 100_000))
    assert status in (400, 414)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/_matrix/client/v3/login", 200),
        ("/_matrix/client/v3/login/", 200),
        ("//_matrix/client/v3/login", 404),
        ("/_matrix//client/v3/login", 404),
        ("/_matrix/client/v3//login", 404),
        ("/_matrix/client/v3/../v3/login", 404),
        ("/_matrix/client/v3/./login", 404),
        ("/_matrix/client/v3/x/../login", 404),
        ("/_matrix/client/v3/%2e%2e/v3/login", 404),
        ("/_matrix/client/v3%2Flogin", 404),
        ("/_matrix/client%2fv3/login", 404),
        ("/_matrix/client/v3/log%69n", 404),
        ("/_matrix/client/v3/login%00", 400),
        ("/_matrix/client/v3/login;x=y", 404),
        ("/_matrix/client/v3/login#x", 404),
        ("\\_matrix\\client\\v3\\login", 400),
        ("/_MATRIX/client/v3/login", 404),
        ("http://evil/_matrix/client/v3/login", 404),
        ("/_matrix/client/v3/%", 404),
        ("/_matrix/client/v3/%zz", 404),
        ("/_matrix/client/v3/%ff", 404),
        ("*", 404),
    ],
)
async def test_C21_a_path_is_what_it_is(homeserver: Homeserver, path: str, status: int):
    """Nothing is resolved, folded or decoded before the route is found."""
    found, _, body = await ask(homeserver, head("GET", path))
    if status == 404:
        assert found in (400, 404), body
    else:
        assert found == status


async def test_C21_an_encoded_slash_is_part_of_its_parameter(homeserver: Homeserver, alice: User):
    room = quote(await alice.create_room(), safe="")
    await alice.call("PUT", f"/rooms/{room}/state/org.example%2Fa/..%2F..%2Fb", {"a": 1})
    state = await alice.call("GET", f"/rooms/{room}/state")
    keys = {(event["type"], event["state_key"]) for event in state}
    assert ("org.example/a", "../../b") in keys


async def test_C21_the_host_is_nobodys_name_for_us(homeserver: Homeserver):
    """No answer is made of it, so two of them, or another's, change nothing."""
    for hosts in (["evil"], ["hs1", "evil"], ["evil", "hs1"], ["hs1:80\tevil"], [""]):
        lines = "".join(f"Host: {host}\r\n" for host in hosts)
        for path in ("/.well-known/matrix/client", "/_matrix/client/v3/login"):
            request = f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()
            status, headers, body = await ask(homeserver, request)
            assert status in (200, 400, 404)
            assert b"evil" not in body
            assert "evil" not in str(headers)


@pytest.mark.parametrize("is_first", [True, False])
async def test_F16_headers_that_drip_are_not_waited_for(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch, is_first: bool
):
    """Nor is a connection on which nothing comes: both last as long as one may lie idle."""
    monkeypatch.setattr(app, "KEEPALIVE_S", 1)
    listener = processes._bind("listen", "127.0.0.1:0")
    port = listener.getsockname()[1]
    async with app.serve(homeserver.services, [listener, None]):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if not is_first:
            writer.write(head("GET", LOGIN))
            assert (await answer(reader))[0] == 200
        writer.write(b"GET / HTTP/1.1\r\n")
        reading = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(PATIENCE_S):
            for number in itertools.count():
                writer.write(b"X-%d: y\r\n" % number)
                done, _ = await asyncio.wait([reading], timeout=0.05)
                if done:
                    break
        with contextlib.suppress(ConnectionResetError):  # It had not read the last of them.
            assert await reading == b""
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
