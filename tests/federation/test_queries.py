"""What servers ask each other beside graphs: aliases, profiles, directories, spaces, devices."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.services.accounts.openid import VALID_MS
from tests.federation.test_events import let_in, refusal, told
from tests.federation.test_joins import enter, two
from tests.helpers.network import raw

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.network import EvilServer, Federation

QUERY_PROFILE = "/_matrix/federation/v1/query/profile"


@pytest.fixture
async def hs1(federation: Federation) -> Homeserver:
    return await federation.start("hs1", default_room_version="11")


async def test_profiles_are_asked_of_their_servers_and_not_kept(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    path = f"/profile/{quote(bob.user_id)}"
    for name in ("Bob", "Robert"):
        await bob.call("PUT", f"{path}/displayname", {"displayname": name})

        assert await alice.call("GET", path) == {"displayname": name}
        assert await alice.call("GET", f"{path}/displayname") == {"displayname": name}
    assert (await alice.request("GET", f"{path}/avatar_url")).status == 404
    assert (await alice.request("GET", "/profile/@nobody:hs2")).status == 404
    assert (await alice.request("GET", "/profile/@bob:nowhere")).status == 404


async def test_f20_we_tell_of_our_own_users_only(hs1: Homeserver, alice: User, evil: EvilServer):
    """What we may know of others is not ours to tell, nor do we ask on behalf of servers."""
    await alice.call("PUT", f"/profile/{alice.user_id}/displayname", {"displayname": "Alice"})
    evil.on("GET", QUERY_PROFILE, {"displayname": "Bob"})
    answer = await told(evil, "/query/profile", ("user_id", alice.user_id))
    one = await told(evil, "/query/profile", ("user_id", alice.user_id), ("field", "displayname"))
    none = await told(evil, "/query/profile", ("user_id", alice.user_id), ("field", "m.tz"))

    assert answer == one == {"displayname": "Alice"}
    assert none == {}
    for user_id, status in (("@no:hs1", 404), ("@bob:hs2", 404), ("@m:evil", 404), ("x", 400)):
        assert (await refusal(evil, "/query/profile", ("user_id", user_id)))[0] == status, user_id
        assert (await refusal(evil, f"/user/devices/{quote(user_id)}"))[0] == status, user_id
    assert not evil.asked("/query/profile")


async def test_aliases_are_told_by_their_server(hs1: Homeserver, alice: User, evil: EvilServer):
    room_id = await alice.create_room(room_alias_name="tea")
    await let_in(evil, room_id)

    answer = await told(evil, "/query/directory", ("room_alias", "#tea:hs1"))

    assert answer == {"room_id": room_id, "servers": ["hs1", "evil"]}
    for alias in ("#coffee:hs1", "#tea:evil"):
        missing = await refusal(evil, "/query/directory", ("room_alias", alias))
        assert missing == (404, "M_NOT_FOUND")


async def test_an_alias_may_point_to_nonsense(hs1: Homeserver, alice: User, evil: EvilServer):
    for answer in ({"room_id": "x", "servers": []}, {"room_id": 7}, raw({}, 500), raw(b"{", 200)):
        evil.on("GET", "/_matrix/federation/v1/query/directory", answer)
        response = await alice.request("GET", "/directory/room/%23tea%3Aevil")
        assert response.status == 404


async def test_directories_of_other_servers_are_read(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(name="Tea", visibility="public")
    await bob.create_room(name="Coffee", visibility="public")

    page = await bob.call("GET", "/publicRooms", server="hs1")
    found = await bob.call(
        "POST", "/publicRooms?server=hs1", {"filter": {"generic_search_term": "tea"}}
    )
    nothing = await bob.call(
        "POST", "/publicRooms?server=hs1", {"filter": {"generic_search_term": "x"}}
    )

    assert [room["room_id"] for room in page["chunk"]] == [room_id]
    assert [room["name"] for room in found["chunk"]] == ["Tea"]
    assert nothing["chunk"] == []
    assert (await bob.request("GET", "/publicRooms", server="nowhere")).status == 404
    assert (await bob.request("GET", "/publicRooms", server="no where")).status == 400


@pytest.mark.spec("server-server-api#get_matrixfederationv1publicrooms")
async def test_the_limit_0_is_none(hs1: Homeserver, alice: User, evil: EvilServer):
    for name in ("Coffee", "Tea"):
        hs1.clock.advance_ms(1)  # type: ignore[attr-defined]  # a manual one
        await alice.create_room(name=name, visibility="public")
    for limit, count in (("0", 2), ("1", 1), ("2", 2)):
        page = await told(evil, "/publicRooms", ("limit", limit))
        assert len(page["chunk"]) == count, limit
    assert await refusal(evil, "/publicRooms", ("limit", "-1")) == (400, "M_INVALID_PARAM")


async def space(alice: User, *children: str, suggested: str = "") -> str:
    """Make a space with children."""
    room_id = await alice.create_room(
        name="Space", creation_content={"type": "m.space"}, room_version="11"
    )
    for child in children:
        content = {"via": ["hs1"], "suggested": child == suggested}
        await alice.put_state(room_id, "m.space.child", content, child)
    return room_id


@pytest.mark.spec("server-server-api#spaces")
async def test_a_space_is_told_with_those_children_that_a_server_may_look_into(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    public = await alice.create_room(name="Public")
    closed = await alice.create_room(preset="private_chat")
    top = await space(alice, public, closed, "!unknown:hs9", suggested=public)
    path = f"/hierarchy/{quote(top)}"

    answer = await told(evil, path)
    suggested = await told(evil, path, ("suggested_only", "true"))

    assert answer["room"]["room_type"] == "m.space"
    assert answer["room"]["room_version"] == "11"
    links = answer["room"]["children_state"]
    assert {link["state_key"] for link in links} == {public, closed, "!unknown:hs9"}
    assert set(links[0]) == {"type", "state_key", "sender", "content", "origin_server_ts"}
    assert [child["name"] for child in answer["children"]] == ["Public"]
    assert answer["inaccessible_children"] == [closed]
    assert [link["state_key"] for link in suggested["room"]["children_state"]] == [public]
    assert await refusal(evil, f"/hierarchy/{quote(closed)}") == (404, "M_NOT_FOUND")
    assert await refusal(evil, "/hierarchy/!no:hs1") == (404, "M_NOT_FOUND")


async def test_rooms_for_the_members_of_others_are_told_to_their_servers(
    hs1: Homeserver, alice: User, evil: EvilServer
):
    club = await alice.create_room()
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
    room_id = await alice.create_room(
        initial_state=[{"type": "m.room.join_rules", "state_key": "", "content": rule}]
    )
    path = f"/hierarchy/{quote(room_id)}"

    assert await refusal(evil, path) == (404, "M_NOT_FOUND")
    await let_in(evil, club)
    assert (await told(evil, path))["room"]["allowed_room_ids"] == [club]


async def test_nobody_here_has_keys(hs1: Homeserver, alice: User, evil: EvilServer):
    devices = await told(evil, f"/user/devices/{alice.user_id}")
    assert devices == {"user_id": alice.user_id, "stream_id": 0, "devices": []}
    for kind, key in (("query", "device_keys"), ("claim", "one_time_keys")):
        answer = await evil.request(
            "hs1", "POST", f"/_matrix/federation/v1/user/keys/{kind}", {key: {}}
        )
        assert answer == {key: {}}


async def test_openid_tokens_prove_who_somebody_is_for_an_hour(
    hs1: Homeserver, alice: User, clock: ManualClock
):
    path = f"/user/{quote(alice.user_id)}/openid/request_token"
    userinfo = "/_matrix/federation/v1/openid/userinfo"
    answer = await alice.call("POST", path, {})
    token = answer["access_token"]
    stranger = hs1.stranger()

    assert answer["matrix_server_name"] == "hs1"
    assert answer["expires_in"] == VALID_MS // 1_000
    assert await stranger.call("GET", userinfo, access_token=token) == {"sub": alice.user_id}
    for wrong in (token[:-6] + "AAAAAA", token.split(".")[0], "", ".", "x.y", "ä.ö", alice.token):
        response = await stranger.request("GET", userinfo, access_token=str(wrong))
        assert (response.status, response.json["errcode"]) == (401, "M_UNKNOWN_TOKEN"), wrong
    assert (await stranger.request("GET", userinfo)).status == 400
    for body, errcode in ((b"[]", "M_BAD_JSON"), (b"{", "M_NOT_JSON")):
        response = await alice.request("POST", path, body)
        assert (response.status, response.json["errcode"]) == (400, errcode)
    bob = await hs1.register("bob")
    assert (await bob.request("POST", path, {})).status == 403
    clock.advance_ms(VALID_MS + 1)
    assert (await stranger.request("GET", userinfo, access_token=token)).status == 401


async def test_what_is_not_there_is_said_so(hs1: Homeserver, evil: EvilServer):
    answer = await evil.request(
        "hs1", "PUT", "/_matrix/federation/v1/exchange_third_party_invite/!x:hs1", {}
    )
    assert not isinstance(answer, dict)
    assert (answer.status, answer.errcode) == (404, "M_UNRECOGNIZED")
    assert await refusal(evil, "/query/nothing") == (404, "M_UNRECOGNIZED")


async def test_bob_finds_the_room_in_alices_directory_and_joins(federation: Federation):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(visibility="public", room_alias_name="tea")

    page = await bob.call("GET", "/publicRooms", server="hs1")

    assert await enter(bob, page["chunk"][0]["canonical_alias"]) == room_id


async def test_a_moment_before_we_came_is_found_through_others(
    federation: Federation, clock: ManualClock
):
    hs1, hs2 = await two(federation)
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room()
    said, times = [], []
    for n in range(3):
        clock.advance_ms(1_000)
        times.append(clock.now_ms())
        said.append(await alice.say(room_id, str(n)))
    clock.advance_ms(1_000)
    await enter(bob, room_id, "hs1")
    path = f"/_matrix/client/v1/rooms/{quote(room_id)}/timestamp_to_event"

    async def at(ts_ms: int, direction: str) -> str:
        answer = await bob.call("GET", path, ts=str(ts_ms), dir=direction)
        return answer["event_id"]

    assert await at(times[1] + 1, "b") == said[1]
    assert await at(times[1] + 1, "f") == said[2]
    page = await bob.call("GET", f"/rooms/{quote(room_id)}/context/{quote(said[1])}")
    assert page["event"]["content"]["body"] == "1"
    nothing = await bob.request("GET", path, ts="5", dir="b")
    assert nothing.status == 404
    assert (await bob.request("GET", path, ts=str(clock.now_ms() + 9), dir="f")).status == 404
