"""Our keys, and those of others: published, asked for, passed on."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.protocol.identifiers import ServerName
from minihs.protocol.server_keys import read_server_keys
from minihs.protocol.signatures import SigningKey, sign_json, verify_json
from minihs.services.server_keys import PAUSE_MS_MAX, verify_keys
from tests.helpers.network import DAY_MS, EvilServer, Federation, raw

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver
    from tests.helpers.network import Received

pytestmark = pytest.mark.spec("server-server-api#retrieving-server-keys")

HS1, FRIEND = ServerName("hs1"), ServerName("friend")
SERVER = "/_matrix/key/v2/server"
QUERY = "/_matrix/key/v2/query"
HOUR_MS = 3_600_000


@pytest.fixture
async def hs1(federation: Federation) -> Homeserver:
    return await federation.start("hs1", trusted_key_servers="notary")


@pytest.fixture
def friend(federation: Federation) -> EvilServer:
    """A server that behaves."""
    return federation.evil("friend")


def own_keys(homeserver: Homeserver) -> dict[str, bytes]:
    key = homeserver.services.signing_key
    return {key.key_id: key.public_key}


# --- ours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SERVER, SERVER + "/ed25519:whatever", SERVER + "/"])
async def test_we_publish_our_key_to_everybody(
    hs1: Homeserver, clock: ManualClock, path: str
) -> None:
    answer = await hs1.request("GET", path)
    published = read_server_keys(answer.json, HS1, clock.now_ms())
    assert {key.key_id: key.key for key in published.keys} == own_keys(hs1)
    assert published.valid_until_ms > clock.now_ms() + HOUR_MS


async def test_version(hs1: Homeserver) -> None:
    answer = await hs1.request("GET", "/_matrix/federation/v1/version")
    assert answer.json["server"]["name"] == "minihs"


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", SERVER), ("PUT", QUERY), ("DELETE", QUERY + "/hs1"), ("POST", SERVER),
     ("PUT", "/_matrix/federation/v1/version")],
)  # fmt: skip
async def test_other_methods_are_not_known(hs1: Homeserver, method: str, path: str) -> None:
    answer = await hs1.request(method, path, {})
    assert (answer.status, answer.json["errcode"]) == (405, "M_UNRECOGNIZED")


@pytest.mark.parametrize("path", ["/_matrix/key/unknown", "/_matrix/federation/v1/unknown"])
async def test_other_paths_are_not_known(hs1: Homeserver, path: str) -> None:
    answer = await hs1.request("GET", path)
    assert (answer.status, answer.json["errcode"]) == (404, "M_UNRECOGNIZED")


# --- as a notary --------------------------------------------------------------------------------


async def query(homeserver: Homeserver, server_name: str, *key_ids: str) -> list[dict]:
    asked: dict[str, object] = {server_name: {key_id: {} for key_id in key_ids}}
    many = await homeserver.request("POST", QUERY, {"server_keys": asked})
    assert many.status == 200
    return many.json["server_keys"]


async def test_we_pass_on_what_a_server_publishes_and_sign_it(
    hs1: Homeserver, friend: EvilServer, clock: ManualClock
) -> None:
    one = await hs1.request("GET", f"{QUERY}/{quote(friend.name)}")
    for found in (one.json["server_keys"], await query(hs1, "friend", friend.key.key_id)):
        (published,) = found
        verify_json(published, HS1, own_keys(hs1))
        assert read_server_keys(published, FRIEND, clock.now_ms()).keys[0].key_id == (
            friend.key.key_id
        )
    assert len(friend.asked(SERVER)) == 1


async def test_we_pass_on_our_own_keys_too(hs1: Homeserver) -> None:
    (published,) = await query(hs1, "hs1")
    verify_json(published, HS1, own_keys(hs1))
    assert published["server_name"] == "hs1"


async def test_we_pass_on_the_last_word_of_a_server_that_is_away(
    federation: Federation, hs1: Homeserver, friend: EvilServer, clock: ManualClock
) -> None:
    first = await query(hs1, "friend")
    federation.network.remove("friend")
    clock.advance_ms(30 * DAY_MS)
    (published,) = await query(hs1, "friend")
    assert published["valid_until_ts"] == first[0]["valid_until_ts"]


async def test_we_ask_again_when_what_we_know_is_too_old(
    hs1: Homeserver, friend: EvilServer, clock: ManualClock
) -> None:
    await query(hs1, "friend")
    clock.advance_ms(DAY_MS)
    late = await hs1.request(
        "GET", f"{QUERY}/friend", query={"minimum_valid_until_ts": str(clock.now_ms() + 1)}
    )
    assert late.json["server_keys"][0]["valid_until_ts"] == clock.now_ms() + DAY_MS


async def test_a_server_that_nobody_knows_is_left_out(hs1: Homeserver) -> None:
    for name in ("nobody", "not a name", "..", "a" * 300):
        assert await query(hs1, name) == []


async def test_a_wish_that_nobody_can_fulfil_is_not_asked_for_each_time(
    hs1: Homeserver, friend: EvilServer
) -> None:
    for _ in range(5):
        await hs1.request("GET", f"{QUERY}/friend", query={"minimum_valid_until_ts": str(2**52)})
    assert len(friend.asked(SERVER)) == 1


@pytest.mark.parametrize("body", [{}, {"server_keys": []}, {"server_keys": {"a": 1}}, b"{"])
async def test_malformed_queries_are_refused(hs1: Homeserver, body: object) -> None:
    assert (await hs1.request("POST", QUERY, body)).status == 400


# --- others' ------------------------------------------------------------------------------------


async def keys_of_friend(homeserver: Homeserver, at_ms: int) -> list[str]:
    key_ids = ["ed25519:test", "ed25519:old"]
    return sorted(await verify_keys(homeserver.services, "friend", key_ids, at_ms))


async def test_s04_retired_keys_prove_events_of_their_time(
    hs1: Homeserver, friend: EvilServer, clock: ManualClock
) -> None:
    now_ms = clock.now_ms()
    old = SigningKey(bytes(32), "old")
    retired = {old.key_id: {"key": old.public_key_base64, "expired_ts": now_ms - HOUR_MS}}
    friend.on("GET", SERVER, friend.key_object(old_verify_keys=retired))
    assert await keys_of_friend(hs1, 0) == ["ed25519:old", "ed25519:test"]
    assert await keys_of_friend(hs1, now_ms - HOUR_MS) == ["ed25519:old", "ed25519:test"]
    assert await keys_of_friend(hs1, now_ms - HOUR_MS + 1) == ["ed25519:test"]
    assert await keys_of_friend(hs1, now_ms + DAY_MS) == ["ed25519:test"]
    assert await keys_of_friend(hs1, now_ms + DAY_MS + 1) == []


async def test_keys_that_expired_still_prove_events_of_their_time(
    federation: Federation, hs1: Homeserver, friend: EvilServer, clock: ManualClock
) -> None:
    then_ms = clock.now_ms()
    assert await keys_of_friend(hs1, then_ms) == ["ed25519:test"]
    federation.network.remove("friend")
    clock.advance_ms(365 * DAY_MS)
    assert await keys_of_friend(hs1, then_ms) == ["ed25519:test"]
    assert await keys_of_friend(hs1, clock.now_ms()) == []


async def test_keys_are_asked_for_again_when_they_expire(
    hs1: Homeserver, friend: EvilServer, clock: ManualClock
) -> None:
    for _ in range(3):
        assert await keys_of_friend(hs1, clock.now_ms()) == ["ed25519:test"]
        clock.advance_ms(DAY_MS + PAUSE_MS_MAX)
    assert len(friend.asked(SERVER)) == 3


async def test_no_request_is_made_in_a_transaction(hs1: Homeserver, friend: EvilServer) -> None:
    async with hs1.services.db.transaction():
        with pytest.raises(RuntimeError, match="transaction"):
            await keys_of_friend(hs1, 0)
    assert friend.received == []


# --- through a notary ---------------------------------------------------------------------------


async def test_a_notary_knows_servers_that_are_away(
    federation: Federation, hs1: Homeserver, friend: EvilServer, clock: ManualClock
) -> None:
    notary = federation.evil("notary")
    federation.network.remove("friend")
    vouched = sign_json(friend.key_object(), notary.name, notary.key)
    notary.on("POST", QUERY, {"server_keys": [vouched]})
    assert await keys_of_friend(hs1, clock.now_ms()) == ["ed25519:test"]
    (asked,) = notary.asked(QUERY)
    assert asked.origin == "hs1"


async def test_a_notary_is_not_asked_when_the_server_answers(
    federation: Federation, hs1: Homeserver, friend: EvilServer
) -> None:
    notary = federation.evil("notary")
    assert await verify_keys(hs1.services, "friend", [friend.key.key_id], 0)
    assert notary.received == []


async def test_s07_what_a_notary_does_not_prove_is_refused(
    federation: Federation, hs1: Homeserver, friend: EvilServer, clock: ManualClock
) -> None:
    notary, mallory = federation.evil("notary"), federation.evil("mallory")
    federation.network.remove("friend")
    good = friend.key_object()
    forged = {**good, "verify_keys": {"ed25519:test": {"key": mallory.key.public_key_base64}}}
    unsigned = {**forged, "signatures": {}}
    answers: list[object] = [
        good,  # not signed by the notary
        sign_json(good, mallory.name, mallory.key),
        sign_json(unsigned, notary.name, notary.key),  # not signed by its server
        sign_json(forged, notary.name, notary.key),
        sign_json(sign_json(unsigned, mallory.name, mallory.key), notary.name, notary.key),
        sign_json(mallory.key_object(), notary.name, notary.key),  # of another server
        {},
        [good],
        None,
    ]
    for answer in answers:
        notary.on("POST", QUERY, {"server_keys": [answer]})
        assert await keys_of_friend(hs1, 0) == []
        clock.advance_ms(PAUSE_MS_MAX)
    assert len(notary.asked(QUERY)) == len(answers)


async def test_a_notary_takes_nothing_back(
    federation: Federation, hs1: Homeserver, friend: EvilServer, clock: ManualClock
) -> None:
    """A notary's copy may be old: what the server said itself stays."""
    notary = federation.evil("notary")
    stale = friend.key_object(
        valid_until_ts=clock.now_ms() + HOUR_MS,
        old_verify_keys={},
    )
    new = SigningKey(bytes(32), "new")
    old = {friend.key.key_id: {"key": friend.key.public_key_base64, "expired_ts": clock.now_ms()}}
    friend.key = new
    friend.on("GET", SERVER, friend.key_object(old_verify_keys=old))
    assert await keys_of_friend(hs1, clock.now_ms()) == ["ed25519:test"]
    federation.network.remove("friend")
    notary.on("POST", QUERY, {"server_keys": [sign_json(stale, notary.name, notary.key)]})
    clock.advance_ms(PAUSE_MS_MAX)
    assert await keys_of_friend(hs1, clock.now_ms()) == []
    assert len(notary.asked(QUERY)) > 0


async def test_a_notary_that_is_away_is_not_asked_about_everybody(
    hs1: Homeserver, federation: Federation
) -> None:
    notary = federation.evil("notary")

    def fail(_received: Received) -> object:
        return raw({}, 500)

    notary.on("POST", QUERY, fail)
    for number in range(5):
        assert await verify_keys(hs1.services, f"away{number}", ["ed25519:a"], 0) == {}
    assert len(notary.asked(QUERY)) == 1
