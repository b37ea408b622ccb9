"""Who may speak to us as a server: who signed exactly this request, for us, with a key of use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from multidict import CIMultiDict

from minihs.api import server
from minihs.api.routes import ROUTES, Route
from minihs.protocol.canonical_json import decode, encode, encode_lenient
from minihs.protocol.request_auth import sign_request
from minihs.protocol.server_keys import LEAKED_KEYS, VALIDITY_MS_MAX
from minihs.protocol.signatures import SigningKey, sign_json
from minihs.services import server_keys
from tests.helpers.network import DAY_MS, EvilServer, Federation

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.base.clock import ManualClock
    from minihs.remote.transport import RawAnswer

pytestmark = pytest.mark.spec("server-server-api#request-authentication")

PATH = "/_matrix/test/echo"
CONTENT: dict[str, object] = {"pdus": [], "number": 1}
BODY = encode(CONTENT)


async def echo(request: Request) -> object:
    """Answer who asks, and what."""
    content = await request.json_object()
    return {"origin": request.origin, "text": encode_lenient(content).decode()}


@pytest.fixture(autouse=True)
def echo_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add an endpoint for servers that tells them what we understood."""
    routes = [Route(method, PATH, echo, None, "server") for method in ("GET", "PUT", "POST")]
    monkeypatch.setattr(server, "ROUTES", [*ROUTES, *routes])


@pytest.fixture
async def evil(federation: Federation) -> EvilServer:
    """Somebody else's server, and hs1 to speak to."""
    await federation.start("hs1")
    return federation.evil()


def signed(evil: EvilServer, **changes: object) -> str:
    parts: dict[str, object] = {
        "method": "PUT",
        "uri": PATH,
        "origin": evil.name,
        "destination": "hs1",
        "content": BODY,
    }
    return sign_request(evil.key, **(parts | changes))  # type: ignore[arg-type]


async def put(evil: EvilServer, *authorizations: str, body: bytes = BODY) -> RawAnswer:
    headers = CIMultiDict([("Authorization", value) for value in authorizations])
    return await evil.send_raw("hs1", "PUT", PATH, headers, body)


def assert_refused(answer: RawAnswer) -> None:
    body = decode(answer.body)
    assert isinstance(body, dict)
    assert (answer.status, body["errcode"]) == (401, "M_UNAUTHORIZED")


async def test_a_signed_request_is_its_origins(evil: EvilServer) -> None:
    answer = await evil.request("hs1", "PUT", PATH, CONTENT)
    assert answer == {"origin": "evil", "text": BODY.decode()}


async def test_a_request_without_body_is_signed_too(evil: EvilServer) -> None:
    answer = await evil.request("hs1", "GET", PATH, query=[("a", "b c"), ("ü", "%")])
    assert answer == {"origin": "evil", "text": "{}"}


async def test_numbers_of_old_rooms_are_verified_as_they_came(evil: EvilServer) -> None:
    content = {"depth": 10**30, "float": 1.5}
    answer = await evil.request("hs1", "PUT", PATH, content)
    assert isinstance(answer, dict)
    assert answer["text"] == encode_lenient(content).decode()


async def test_older_servers_name_no_destination(evil: EvilServer) -> None:
    message = {"content": CONTENT, "method": "PUT", "origin": "evil", "uri": PATH}
    signature = evil.key.sign(encode(message))
    header = f'X-Matrix origin=evil,key="{evil.key.key_id}",sig="{signature}"'
    assert (await put(evil, header)).status == 200


async def test_s10_requests_that_are_signed_otherwise_are_refused(evil: EvilServer) -> None:
    good = signed(evil)
    assert (await put(evil, good)).status == 200
    stranger = SigningKey(bytes(32), evil.key.version)
    forgery = sign_request(
        stranger, method="PUT", uri=PATH, origin="evil", destination="hs1", content=BODY
    )
    refused = [
        (),  # not signed
        ("Bearer abc",),
        (good, good),  # two headers
        (good, "Bearer abc"),
        (signed(evil, destination="hs2"),),  # for somebody else
        (good.replace('destination="hs1"', 'destination="hs2"'),),
        (good.replace('destination="hs1",', ""),),
        (good.replace('origin="evil"', 'origin="hs1"'),),
        (good.replace('origin="evil"', 'origin="e\\vil",origin="hs1"'),),
        (good.replace('origin="evil"', 'origin="evil\\""'),),
        (good.replace("sig=", "sig=x,sig="),),
        (good.replace(evil.key.key_id, "ed25519:other"),),
        (signed(evil, uri=PATH + "?"),),  # signed for another target
        (signed(evil, uri=PATH + "/"),),
        (signed(evil, method="POST"),),
        (signed(evil, content=None),),
        (signed(evil, content=encode({**CONTENT, "number": 2})),),
        (forgery,),
    ]
    for headers in refused:
        assert_refused(await put(evil, *headers))


async def test_s10_a_request_is_not_replayed_elsewhere(evil: EvilServer) -> None:
    good = {"Authorization": signed(evil)}
    for method, target, body in [
        ("POST", PATH, BODY),
        ("PUT", PATH + "?a=b", BODY),
        ("PUT", PATH.replace("echo", "%65cho"), BODY),
        ("PUT", PATH, encode({**CONTENT, "number": 2})),
        ("PUT", PATH, b""),
        ("GET", PATH, None),
    ]:
        answer = await evil.send_raw("hs1", method, target, good, body)
        assert answer.status in (401, 404), (method, target)


async def test_a_body_that_is_no_json_is_said_to_be_none(evil: EvilServer) -> None:
    answer = await put(evil, signed(evil), body=b"{")
    assert (answer.status, b"M_NOT_JSON" in answer.body) == (400, True)


async def test_a_body_that_is_too_large_is_not_read(evil: EvilServer) -> None:
    answer = await put(evil, signed(evil), body=b" " * 20_000_000)
    assert (answer.status, b"M_TOO_LARGE" in answer.body) == (413, True)


async def test_J02_a_form_is_refused(evil: EvilServer) -> None:
    authorization = sign_request(
        evil.key, method="PUT", uri=PATH, origin="evil", destination="hs1", content=b"{}"
    )
    kind = "multipart/form-data; boundary=x"
    headers = {"Authorization": authorization, "Content-Type": kind}
    answer = await evil.send_raw("hs1", "PUT", PATH, headers, b"--x--")
    assert (answer.status, b"M_NOT_JSON" in answer.body) == (400, True)


# --- keys ---------------------------------------------------------------------------------------


async def test_keys_are_fetched_once_by_all_who_want_them(evil: EvilServer) -> None:
    answers = await asyncio.gather(*(evil.request("hs1", "PUT", PATH, CONTENT) for _ in range(20)))
    assert all(isinstance(answer, dict) for answer in answers)
    assert len(evil.asked("/key/v2/server")) == 1


async def test_a_server_with_a_new_key_is_known_at_once(
    federation: Federation, evil: EvilServer
) -> None:
    await evil.request("hs1", "PUT", PATH, CONTENT)
    reborn = EvilServer(federation.network, "evil", SigningKey(bytes(32), "reborn"))
    assert isinstance(await reborn.request("hs1", "PUT", PATH, CONTENT), dict)


async def test_a_server_that_gives_no_keys_is_left_alone_for_a_while(
    evil: EvilServer, clock: ManualClock
) -> None:
    evil.on("GET", "/_matrix/key/v2/server", b"nonsense")
    asked = []
    for _ in range(3):
        for _ in range(5):
            assert_refused(await put(evil, signed(evil)))
        asked.append(len(evil.asked("/key/v2/server")))
        clock.advance_ms(server_keys.PAUSE_MS_MAX)
    assert asked == [1, 2, 3]
    evil.on("GET", "/_matrix/key/v2/server", evil.key_object())
    assert (await put(evil, signed(evil))).status == 200


async def test_keys_outlive_the_process_that_fetched_them(
    federation: Federation, evil: EvilServer
) -> None:
    await evil.request("hs1", "PUT", PATH, CONTENT)
    services = federation.servers["hs1"].services
    services.key_ring.keys.discard(("evil", evil.key.key_id))
    evil.on("GET", "/_matrix/key/v2/server", b"nonsense")
    assert isinstance(await evil.request("hs1", "PUT", PATH, CONTENT), dict)


async def test_s04_keys_that_do_not_hold_now_prove_no_request(
    evil: EvilServer, clock: ManualClock
) -> None:
    now_ms = clock.now_ms()
    published = {evil.key.key_id: {"key": evil.key.public_key_base64}}
    retired = {evil.key.key_id: {"key": evil.key.public_key_base64, "expired_ts": now_ms + DAY_MS}}
    new_key = SigningKey(bytes(32), "new")
    now_used = {new_key.key_id: {"key": new_key.public_key_base64}}
    objects = [
        evil.key_object(valid_until_ts=now_ms - 1),
        evil.key_object(server_name="hs2"),
        {**evil.key_object(), "valid_until_ts": now_ms + 2 * DAY_MS},  # changed after signing
        sign_json({**evil.key_object(), "signatures": {}}, evil.name, new_key),
        sign_json({**evil.key_object(), "signatures": {}}, "hs2", evil.key),  # type: ignore[arg-type]
        sign_json(
            {**evil.key_object(verify_keys=now_used, old_verify_keys=retired), "signatures": {}},
            evil.name,
            new_key,
        ),
        {**evil.key_object(), "verify_keys": published, "signatures": {}},
    ]
    for key_object in objects:
        evil.on("GET", "/_matrix/key/v2/server", key_object)
        answer = await put(evil, signed(evil))
        assert answer.status == 401
        assert_refused(answer)
        clock.advance_ms(server_keys.PAUSE_MS_MAX)


async def test_s05_no_key_holds_longer_than_a_week(evil: EvilServer, clock: ManualClock) -> None:
    evil.on("GET", "/_matrix/key/v2/server", evil.key_object(valid_until_ts=253_402_300_799_000))
    assert isinstance(await evil.request("hs1", "PUT", PATH, CONTENT), dict)
    evil.on("GET", "/_matrix/key/v2/server", b"nonsense")
    clock.advance_ms(VALIDITY_MS_MAX)
    assert isinstance(await evil.request("hs1", "PUT", PATH, CONTENT), dict)
    clock.advance_ms(1)
    assert_refused(await put(evil, signed(evil)))


async def test_s06_leaked_keys_prove_nothing(
    evil: EvilServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(len(key) == 32 for key in LEAKED_KEYS)
    leaked = frozenset({evil.key.public_key})
    monkeypatch.setattr("minihs.protocol.server_keys.LEAKED_KEYS", leaked)
    assert_refused(await put(evil, signed(evil)))


async def test_s11_odd_names_are_refused_before_they_are_used(evil: EvilServer) -> None:
    good = signed(evil)
    for origin in ("evil/..", "evil?", "evil\n", "évil", "evil:99999999", "[evil]", ""):
        assert_refused(await put(evil, good.replace('origin="evil"', f'origin="{origin}"')))
    for key_id in ("ed25519:", "ed25519:a b", "ed25519:../x", "ed25519:%00", "rsa:a", "x" * 300):
        assert_refused(await put(evil, good.replace(evil.key.key_id, key_id)))
    assert evil.received == []
