"""What application services may do: acting as their users, and keeping others from their names."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.base.clock import ManualClock
from minihs.base.config import ConfigError
from minihs.services.appservices.registration import REGEX_CHARS_MAX, load_registrations
from tests.helpers.appservices import (
    AS_TOKEN,
    HS_TOKEN,
    Asked,
    Bridge,
    BridgeUser,
    make_ghost,
    running_bridge,
    sender,
)
from tests.helpers.homeserver import PASSWORD, Homeserver, Response, User, running_homeserver
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

APPLICATION_SERVICE = "m.login.application_service"


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    async with running_bridge(tmp_path) as service:
        yield service


@pytest.fixture
async def homeserver(
    database_url: str, tmp_path: Path, bridge: Bridge
) -> AsyncIterator[Homeserver]:
    """A homeserver that has the bridge."""
    async with running_homeserver(
        database_url, tmp_path, appservice_files=str(bridge.file)
    ) as server:
        yield server


# --- registration files --------------------------------------------------------------------------


@pytest.mark.spec("application-service-api#registration")
def test_the_specifications_example_is_a_registration(tmp_path: Path):
    file = tmp_path / "irc.yaml"
    file.write_text(
        """
        id: "IRC Bridge"
        url: "http://127.0.0.1:1234"
        as_token: "30c05ae90a248a4188e620216fa72e349803310ec83e2a77b34fe90be6081f46"
        hs_token: "312df522183efd404ec1cd22d2ffa4bbc76a8c1ccf541dd692eef281356bb74e"
        sender_localpart: "_irc_bot" # Will result in @_irc_bot:example.org
        namespaces:
          users:
            - exclusive: true
              regex: "@_irc_bridge_.*"
          aliases:
            - exclusive: false
              regex: "#_irc_bridge_.*"
          rooms: []
        """
    )
    (service,) = load_registrations([file], "example.org")
    assert (service.id, service.url) == ("IRC Bridge", "http://127.0.0.1:1234")
    assert service.sender == "@_irc_bot:example.org"
    assert service.has_user("@_irc_bridge_alice:example.org")
    assert not service.has_user("@_irc_bridge_alice:elsewhere.org"), "only local users"
    assert not service.has_user("@x_irc_bridge_alice:example.org"), "matched from the start"
    assert service.owns_user("@_irc_bot:example.org")
    assert service.has_alias("#_irc_bridge_x:example.org")
    assert not service.owns_alias("#_irc_bridge_x:example.org")
    assert service.rate_limited
    assert not service.receive_ephemeral
    assert "30c05ae" not in repr(service)


@pytest.mark.parametrize("url", [None, ""])
def test_a_service_without_a_url_is_sent_nothing(tmp_path: Path, url: str | None):
    file = Bridge(tmp_path / "a.yaml").register(url=url)
    assert load_registrations([file], "hs1")[0].url is None


@pytest.mark.parametrize(
    "name", ["receive_ephemeral", "push_ephemeral", "de.sorunome.msc2409.push_ephemeral"]
)
def test_ephemeral_data_is_asked_for_by_any_of_its_names(tmp_path: Path, name: str):
    file = Bridge(tmp_path / "a.yaml").register(**{name: True})
    assert load_registrations([file], "hs1")[0].receive_ephemeral


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": ""}, "id is empty"),
        ({"id": 5}, "Expected `str`, got `int` - at `$.id`"),
        ({"as_token": "two words"}, "as_token has characters"),
        ({"sender_localpart": ""}, "sender_localpart"),
        ({"sender_localpart": "x" * 300}, "sender_localpart"),
        ({"url": "ftp://somewhere"}, "url 'ftp://somewhere'"),
        ({"url": "http://x:99999"}, "url"),
        ({"url": "http://x?y"}, "has a query"),
        ({"namespaces": None}, "`$.namespaces`"),
        ({"namespaces": {"users": [{"regex": "x"}]}}, "required field `exclusive`"),
        ({"namespaces": {"users": [{"regex": "(", "exclusive": True}]}}, "namespaces.users[0]"),
        (
            {"namespaces": {"rooms": [{"regex": "x" * (REGEX_CHARS_MAX + 1), "exclusive": True}]}},
            "longer than",
        ),
    ],
)
def test_a_bad_registration_says_where_it_is_bad(tmp_path: Path, changes: dict, said: str):
    file = Bridge(tmp_path / "bad.yaml").register(**changes)
    with pytest.raises(ConfigError) as failure:
        load_registrations([file], "hs1")
    assert said in str(failure.value)
    assert "bad.yaml" in str(failure.value)


def test_what_is_no_yaml_or_not_there_says_so(tmp_path: Path):
    file = tmp_path / "a.yaml"
    with pytest.raises(ConfigError, match=r"a\.yaml cannot be read: No such file or directory$"):
        load_registrations([file], "hs1")
    file.write_text("regex: @x")
    with pytest.raises(ConfigError, match="cannot start any token"):
        load_registrations([file], "hs1")


@pytest.mark.parametrize(
    ("changes", "said"), [({"as_token": "b"}, "has the id"), ({"id": "b"}, "same as_token")]
)
def test_ids_and_tokens_are_unique(tmp_path: Path, changes: dict, said: str):
    one = Bridge(tmp_path / "a.yaml").register()
    other = Bridge(tmp_path / "b.yaml").register(**changes)
    with pytest.raises(ConfigError, match=said):
        load_registrations([one, other], "hs1")


# --- acting as somebody --------------------------------------------------------------------------


@pytest.mark.spec("application-service-api#identity-assertion")
async def test_a_service_acts_as_its_sender_and_as_its_users(homeserver: Homeserver):
    bot = sender(homeserver)
    assert await bot.call("GET", "/account/whoami") == {"user_id": "@_bridge:hs1"}
    ghost = await make_ghost(homeserver, "_bridge_ghost")
    assert await ghost.call("GET", "/account/whoami") == {"user_id": "@_bridge_ghost:hs1"}
    room_id = await ghost.create_room()
    event_id = await ghost.say(room_id, "boo")
    assert (await ghost.call("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id)}"))[
        "sender"
    ] == ghost.user_id
    assert (await ghost.sync())["rooms"]["join"].keys() == {room_id}


@pytest.mark.spec("application-service-api#identity-assertion")
async def test_a_service_acts_as_nobody_else(homeserver: Homeserver):
    await homeserver.register("alice")
    for user_id in ("@alice:hs1", "@_bridge_unborn:hs1", "@_bridge_x:elsewhere", "nonsense"):
        refused = await BridgeUser(homeserver, user_id).request("GET", "/account/whoami")
        assert (refused.status, refused.json["errcode"]) == (403, "M_FORBIDDEN"), user_id


async def test_only_the_services_own_token_is_its(homeserver: Homeserver):
    for token in (HS_TOKEN, AS_TOKEN[:-1], AS_TOKEN + "x", ""):
        refused = await BridgeUser(homeserver, "@_bridge:hs1", token).request(
            "GET", "/account/whoami"
        )
        assert (refused.status, refused.json["errcode"]) == (401, "M_UNKNOWN_TOKEN"), token


async def test_a_users_own_token_makes_nobody_else_of_them(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    await make_ghost(homeserver, "_bridge_ghost")
    who = await alice.call("GET", "/account/whoami", user_id="@_bridge_ghost:hs1")
    assert who["user_id"] == alice.user_id


@pytest.mark.spec("application-service-api#identity-assertion")
async def test_a_service_acts_with_a_device_of_the_user(homeserver: Homeserver):
    ghost = await make_ghost(homeserver, "_bridge_ghost")
    made = await ghost.request("PUT", "/devices/PHONE", {"display_name": "A phone"})
    assert made.status == 201
    changed = await ghost.request("PUT", "/devices/PHONE", {"display_name": "The phone"})
    assert changed.status == 200
    who = await ghost.call("GET", "/account/whoami", device_id="PHONE")
    assert who["device_id"] == "PHONE"
    older = {"org.matrix.msc3202.device_id": "PHONE"}
    assert (await ghost.call("GET", "/account/whoami", **older))["device_id"] == "PHONE"
    refused = await ghost.request("GET", "/account/whoami", device_id="CAR")
    assert (refused.status, refused.json["errcode"]) == (400, "M_UNKNOWN_DEVICE")


@pytest.mark.spec("application-service-api#device-management")
async def test_a_service_deletes_devices_without_proving_more(homeserver: Homeserver):
    ghost = await make_ghost(homeserver, "_bridge_ghost")
    for device_id in ("A", "B", "C"):
        await ghost.request("PUT", f"/devices/{device_id}", {})
    await ghost.call("DELETE", "/devices/A", {})
    await ghost.call("POST", "/delete_devices", {"devices": ["B"]})
    devices = (await ghost.call("GET", "/devices"))["devices"]
    assert [device["device_id"] for device in devices] == ["C"]


@pytest.mark.spec("application-service-api#identity-assertion")
async def test_what_a_device_does_takes_one(homeserver: Homeserver):
    ghost = await make_ghost(homeserver, "_bridge_ghost")
    refused = await ghost.request("POST", "/_matrix/client/v4/sync", {})
    assert (refused.status, refused.json["errcode"]) == (400, "M_MISSING_PARAM")
    await ghost.request("PUT", "/devices/PHONE", {})
    answer = await ghost.request("POST", "/_matrix/client/v4/sync", {}, device_id="PHONE")
    assert answer.status == 200
    await ghost.call("POST", "/logout", {})
    assert len((await ghost.call("GET", "/devices"))["devices"]) == 1


async def test_users_cannot_make_devices(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    assert (await alice.request("PUT", "/devices/PHONE", {})).status == 404


async def test_transaction_ids_are_of_each_user_of_a_service(homeserver: Homeserver):
    one = await make_ghost(homeserver, "_bridge_one")
    two = await make_ghost(homeserver, "_bridge_two")
    room_id = await one.create_room()
    await two.join(room_id)
    path, body = f"/rooms/{quote(room_id)}/send/m.room.message/t1", {"body": "x"}
    first = await one.call("PUT", path, body)
    assert await one.call("PUT", path, body) == first
    assert await two.call("PUT", path, body) != first


async def test_a_deactivated_user_is_acted_as_no_more(homeserver: Homeserver):
    ghost = await make_ghost(homeserver, "_bridge_ghost")
    room_id = await ghost.create_room()
    await ghost.call("POST", "/account/deactivate", {})
    assert (await ghost.request("GET", "/joined_rooms")).status == 403
    alice = await homeserver.register("alice")
    await alice.join(room_id)


async def test_people_are_not_a_services_to_deactivate(
    database_url: str, tmp_path: Path, bridge: Bridge
):
    bridge.register(namespaces={"users": [{"regex": "@alice", "exclusive": False}]})
    async with running_homeserver(
        database_url, tmp_path, appservice_files=str(bridge.file)
    ) as server:
        alice = await server.register("alice")
        masked = BridgeUser(server, alice.user_id)
        assert (await masked.call("GET", "/account/whoami"))["user_id"] == alice.user_id
        assert (await masked.request("POST", "/account/deactivate", {})).status == 401
        await alice.call("GET", "/account/whoami")


# --- making users and aliases --------------------------------------------------------------------


@pytest.mark.spec("application-service-api#server-admin-style-permissions")
async def test_a_service_makes_users_in_its_namespaces_only(homeserver: Homeserver):
    bot = sender(homeserver)
    body = {"type": APPLICATION_SERVICE, "username": "_bridge_a"}
    made = await bot.call("POST", "/register", body)
    assert made["user_id"] == "@_bridge_a:hs1"
    own = User(homeserver, made["user_id"], made["access_token"])
    assert (await own.call("GET", "/account/whoami"))["device_id"] == made["device_id"]
    named = await own.call("GET", f"/profile/{own.user_id}/displayname")
    assert named == {"displayname": "_bridge_a"}, "bridges ask before they name somebody"
    taken = await bot.request("POST", "/register", body)
    assert taken.json["errcode"] == "M_USER_IN_USE"
    outside = await bot.request("POST", "/register", body | {"username": "alice"})
    assert (outside.status, outside.json["errcode"]) == (400, "M_EXCLUSIVE")
    assert (await bot.request("POST", "/register", {"type": APPLICATION_SERVICE})).status == 400


@pytest.mark.shapes_events  # The schema of this 401 knows nothing of application services.
@pytest.mark.spec("application-service-api#server-admin-style-permissions")
async def test_nobody_else_makes_users_like_a_service(homeserver: Homeserver):
    body = {"type": APPLICATION_SERVICE, "username": "_bridge_a"}
    nobody = await homeserver.stranger().request("POST", "/register", body)
    assert (nobody.status, nobody.json["errcode"]) == (401, "M_MISSING_TOKEN")
    alice = await homeserver.register("alice")
    user = await alice.request("POST", "/register", body)
    assert (user.status, user.json["errcode"]) == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.spec("application-service-api#server-admin-style-permissions")
async def test_people_cannot_have_names_of_a_service(homeserver: Homeserver):
    auth = {"type": "m.login.dummy"}
    for name in ("_bridge_me", "_bridge"):
        refused = await homeserver.stranger().request(
            "POST", "/register", {"username": name, "password": PASSWORD, "auth": auth}
        )
        assert refused.status == 400
        assert refused.json["errcode"] in ("M_EXCLUSIVE", "M_USER_IN_USE")
    free = await homeserver.stranger().request("GET", "/register/available", username="_bridge_me")
    assert (free.status, free.json["errcode"]) == (400, "M_EXCLUSIVE")


@pytest.mark.spec("client-server-api#appservice-login")
async def test_a_service_logs_its_users_in(homeserver: Homeserver):
    flows = (await homeserver.stranger().call("GET", "/login"))["flows"]
    assert {"type": APPLICATION_SERVICE} in flows
    await make_ghost(homeserver, "_bridge_ghost")
    await homeserver.register("alice")
    bot = sender(homeserver)

    def login(user: str) -> dict:
        return {"type": APPLICATION_SERVICE, "identifier": {"type": "m.id.user", "user": user}}

    session = await bot.call("POST", "/login", login("_bridge_ghost"))
    own = User(homeserver, session["user_id"], session["access_token"])
    assert (await own.call("GET", "/account/whoami"))["user_id"] == "@_bridge_ghost:hs1"
    outside = await bot.request("POST", "/login", login("alice"))
    assert (outside.status, outside.json["errcode"]) == (400, "M_EXCLUSIVE")
    assert (await bot.request("POST", "/login", login("_bridge_unborn"))).status == 403
    stranger = await homeserver.stranger().request("POST", "/login", login("_bridge_ghost"))
    assert (stranger.status, stranger.json["errcode"]) == (401, "M_MISSING_TOKEN")


@pytest.mark.spec("application-service-api#server-admin-style-permissions")
async def test_aliases_of_a_service_are_its(homeserver: Homeserver):
    alice, bot = await homeserver.register("alice"), sender(homeserver)
    room_id = await alice.create_room()
    own = "/directory/room/" + quote("#_bridge_x:hs1")
    refused = await alice.request("PUT", own, {"room_id": room_id})
    assert (refused.status, refused.json["errcode"]) == (400, "M_EXCLUSIVE")
    refused = await alice.request("POST", "/createRoom", {"room_alias_name": "_bridge_x"})
    assert (refused.status, refused.json["errcode"]) == (400, "M_EXCLUSIVE")
    await bot.call("PUT", own, {"room_id": room_id})  # It need not be in the room.
    refused = await alice.request("DELETE", own)
    assert (refused.status, refused.json["errcode"]) == (400, "M_EXCLUSIVE")
    await bot.call("DELETE", own)
    for path, body in (
        ("/directory/room/" + quote("#x:hs1"), {"room_id": room_id}),
        ("/createRoom", {"room_alias_name": "x"}),
    ):
        method = "POST" if path == "/createRoom" else "PUT"
        refused = await bot.request(method, path, body)
        assert (refused.status, refused.json["errcode"]) == (400, "M_EXCLUSIVE")
    await bot.call("POST", "/createRoom", {"room_alias_name": "_bridge_y"})


# --- timestamps ----------------------------------------------------------------------------------


@pytest.mark.spec("application-service-api#timestamp-massaging")
async def test_a_service_says_when_events_were_sent(homeserver: Homeserver):
    ghost = await make_ghost(homeserver, "_bridge_ghost")
    room_id = await ghost.create_room()
    room = f"/rooms/{quote(room_id)}"
    sent = [
        await ghost.call("PUT", f"{room}/send/m.room.message/t1", {"body": "x"}, ts="1000"),
        await ghost.call("PUT", f"{room}/state/m.room.topic", {"topic": "x"}, ts="2000"),
        await ghost.call(
            "PUT",
            f"{room}/state/m.room.member/{quote(ghost.user_id)}",
            {"membership": "join", "displayname": "Ghost"},
            ts="3000",
        ),
    ]
    sent.append(
        await ghost.call(
            "PUT",
            f"{room}/send/m.room.redaction/t2",
            {"redacts": sent[0]["event_id"]},
            ts="4000",
        )
    )
    times = [
        (await ghost.call("GET", f"{room}/event/{quote(one['event_id'])}"))["origin_server_ts"]
        for one in sent
    ]
    assert times == [1000, 2000, 3000, 4000]
    page = await ghost.call("GET", f"{room}/messages", dir="b", limit="1")
    assert page["chunk"][0]["event_id"] == sent[3]["event_id"], "the order is that of arrival"


@pytest.mark.parametrize("ts", ["-1", "1.5", "soon", str(2**53), "٣", ""])
async def test_a_timestamp_that_no_event_can_have_is_refused(homeserver: Homeserver, ts: str):
    bot = sender(homeserver)
    room_id = await bot.create_room()
    path = f"/rooms/{quote(room_id)}/send/m.room.message/t1"
    refused = await bot.request("PUT", path, {"body": "x"}, ts=ts)
    assert (refused.status, refused.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_people_cannot_say_when_events_were_sent(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    room = f"/rooms/{quote(room_id)}"
    sent = await alice.call("PUT", f"{room}/send/m.room.message/t1", {"body": "x"}, ts="1000")
    event = await alice.call("GET", f"{room}/event/{quote(sent['event_id'])}")
    assert event["origin_server_ts"] > 1_000_000


# --- rate limits ---------------------------------------------------------------------------------


@pytest.mark.spec("application-service-api#registration")
@pytest.mark.parametrize("rate_limited", [True, False])
async def test_users_of_a_service_are_limited_unless_it_says_otherwise(
    database_url: str,
    tmp_path: Path,
    bridge: Bridge,
    rate_limited: bool,
):
    bridge.register(rate_limited=rate_limited)
    async with running_homeserver(
        database_url,
        tmp_path,
        appservice_files=str(bridge.file),
        rate_limits="on",
        clock=ManualClock(),
    ) as server:
        bot = sender(server)
        for number in range(30):  # More than a stranger may.
            await make_ghost(server, f"_bridge_{number}")
        for _ in range(60):
            assert (await bot.request("PUT", "/devices/X", {})).status < 300
        ghost = BridgeUser(server, "@_bridge_0:hs1")
        answers = [await ghost.request("PUT", "/devices/X", {}) for _ in range(60)]
        assert (429 in [answer.status for answer in answers]) == rate_limited


# --- asking the service --------------------------------------------------------------------------


@pytest.mark.spec("application-service-api#querying")
async def test_an_alias_that_is_not_there_may_be_made_by_its_service(
    homeserver: Homeserver, bridge: Bridge
):
    alice, bot = await homeserver.register("alice"), sender(homeserver)

    async def make(asked: Asked) -> tuple[int, dict]:
        if asked.path != "/_matrix/app/v1/rooms/#_bridge_new:hs1":
            return 404, {"errcode": "COM.EXAMPLE.NOT_FOUND"}
        await bot.create_room(room_alias_name="_bridge_new")
        return 200, {}

    bridge.answer = make
    joined = await alice.call("POST", "/join/" + quote("#_bridge_new:hs1"), {})
    assert joined["room_id"].startswith("!")
    assert bridge.asked[0].headers["Authorization"] == f"Bearer {HS_TOKEN}"
    asked = len(bridge.asked)
    await alice.call("GET", "/directory/room/" + quote("#_bridge_new:hs1"))
    assert len(bridge.asked) == asked, "it is there now"
    assert (await alice.request("GET", "/directory/room/" + quote("#_bridge_no:hs1"))).status == 404
    assert (await alice.request("GET", "/directory/room/" + quote("#other:hs1"))).status == 404
    assert len(bridge.asked) == asked + 1, "nobody is asked about others' names"


@pytest.fixture
async def timed(
    database_url: str, tmp_path: Path, bridge: Bridge
) -> AsyncIterator[tuple[Homeserver, ManualClock]]:
    """The same with a clock that the test moves."""
    clock = ManualClock()
    async with running_homeserver(
        database_url, tmp_path, appservice_files=str(bridge.file), clock=clock
    ) as server:
        yield server, clock


async def asked_in_time(
    clock: ManualClock, user: User, alias: str, *, is_served: Callable[[], bool] = lambda: False
) -> Response:
    """Ask for an alias while time passes, unless a service is at work; return the answer."""
    path = "/directory/room/" + quote(alias)
    asking = asyncio.ensure_future(user.request("GET", path))

    def time_passes_until_it_is_answered() -> bool:
        if not is_served():
            clock.advance_ms(250)
        return asking.done()

    await until(time_passes_until_it_is_answered)
    return await asking


@pytest.mark.spec("application-service-api#querying")
async def test_a_service_that_does_not_answer_is_asked_again(
    timed: tuple[Homeserver, ManualClock], bridge: Bridge
):
    server, clock = timed
    alice, bot = await server.register("alice"), sender(server)

    async def make(_asked: Asked) -> tuple[int, dict]:
        if len(bridge.asked) == 1:
            await asyncio.Event().wait()
        await bot.create_room(room_alias_name="_bridge_new")
        return 200, {}

    bridge.answer = make
    answer = await asked_in_time(
        clock, alice, "#_bridge_new:hs1", is_served=lambda: len(bridge.asked) == 2
    )
    assert answer.status == 200
    assert len(bridge.asked) == 2


@pytest.mark.spec("application-service-api#querying")
async def test_whoever_asks_for_what_a_silent_service_has_gets_408(
    timed: tuple[Homeserver, ManualClock], bridge: Bridge
):
    server, clock = timed
    alice = await server.register("alice")
    bridge.answer = lambda _: asyncio.Event().wait()
    assert (await asked_in_time(clock, alice, "#_bridge_x:hs1")).status == 408
    assert len(bridge.asked) == 3
    bridge.answer = lambda _: (500, {})
    assert (await asked_in_time(clock, alice, "#_bridge_x:hs1")).status == 404
    assert len(bridge.asked) == 4, "that is an answer"


@pytest.mark.spec("application-service-api#querying")
async def test_whoever_asks_for_what_a_service_has_that_is_away_gets_408(
    database_url: str, tmp_path: Path, bridge: Bridge
):
    bridge.register(url="http://127.0.0.1:1")
    clock, files = ManualClock(), str(bridge.file)
    async with running_homeserver(
        database_url, tmp_path, appservice_files=files, clock=clock
    ) as server:
        alice = await server.register("alice")
        assert (await asked_in_time(clock, alice, "#_bridge_x:hs1")).status == 408


@pytest.mark.spec("application-service-api#legacy-routes")
async def test_a_service_that_knows_no_versions_is_asked_as_of_old(
    homeserver: Homeserver, bridge: Bridge
):
    bridge.answer = lambda asked: (404, {}) if asked.path.startswith("/_matrix") else (200, {})
    alice = await homeserver.register("alice")
    await alice.request("GET", "/directory/room/" + quote("#_bridge_x:hs1"))
    old = bridge.asked[-1]
    assert (old.path, old.query) == ("/rooms/#_bridge_x:hs1", {"access_token": HS_TOKEN})


# --- pings ---------------------------------------------------------------------------------------

PING = "/_matrix/client/v1/appservice/bridge/ping"


@pytest.mark.spec("application-service-api#pinging")
async def test_a_service_pings_itself(homeserver: Homeserver, bridge: Bridge):
    answer = await sender(homeserver).call("POST", PING, {"transaction_id": "meow"})
    assert answer["duration_ms"] >= 0
    asked = bridge.asked[-1]
    assert (asked.path, asked.body) == ("/_matrix/app/v1/ping", {"transaction_id": "meow"})
    assert asked.headers["Authorization"] == f"Bearer {HS_TOKEN}"


@pytest.mark.spec("application-service-api#pinging")
async def test_a_ping_that_fails_says_how(homeserver: Homeserver, bridge: Bridge):
    bridge.answer = lambda _: (403, {"errcode": "M_FORBIDDEN"})
    refused = await sender(homeserver).request("POST", PING, {})
    assert refused.status == 502
    assert refused.json["errcode"] == "M_BAD_STATUS"
    assert refused.json["status"] == 403
    assert refused.json["body"] == '{"errcode":"M_FORBIDDEN"}'


@pytest.mark.spec("application-service-api#pinging")
async def test_nobody_else_has_a_service_pinged(homeserver: Homeserver, bridge: Bridge):
    alice = await homeserver.register("alice")
    other = "/_matrix/client/v1/appservice/other/ping"
    for user, path in ((alice, PING), (sender(homeserver), other)):
        refused = await user.request("POST", path, {})
        assert (refused.status, refused.json["errcode"]) == (403, "M_FORBIDDEN")
    assert bridge.asked == []


@pytest.mark.parametrize(
    ("url", "status", "errcode"),
    [(None, 400, "M_URL_NOT_SET"), ("http://127.0.0.1:9", 502, "M_CONNECTION_FAILED")],
)
async def test_a_service_that_is_not_there_cannot_be_pinged(
    database_url: str, tmp_path: Path, url: str | None, status: int, errcode: str
):
    file = Bridge(tmp_path / "a.yaml").register(url=url)
    async with running_homeserver(database_url, tmp_path, appservice_files=str(file)) as server:
        refused = await sender(server).request("POST", PING, {})
        assert (refused.status, refused.json["errcode"]) == (status, errcode)


# --- networks ------------------------------------------------------------------------------------

INSTANCE = {"desc": "Libera", "fields": {"network": "libera"}, "network_id": "libera"}
PROTOCOL = {
    "user_fields": ["network", "nickname"],
    "location_fields": ["network", "channel"],
    "icon": "mxc://hs1/icon",
    "field_types": {},
    "instances": [INSTANCE],
}


@pytest.fixture
async def with_networks(
    database_url: str, tmp_path: Path, bridge: Bridge
) -> AsyncIterator[Homeserver]:
    bridge.register(protocols=["irc", "silent"])
    async with running_homeserver(
        database_url, tmp_path, appservice_files=str(bridge.file)
    ) as server:
        yield server


@pytest.mark.spec("application-service-api#third-party-networks")
async def test_networks_are_told_as_their_services_tell_them(
    with_networks: Homeserver, bridge: Bridge
):
    def tell(asked: Asked) -> tuple[int, object]:
        match asked.path.removeprefix("/_matrix/app/v1/thirdparty"):
            case "/protocol/irc":
                return 200, PROTOCOL
            case "/location/irc" | "/location":
                return 200, [{"alias": "#_bridge_x:hs1", "protocol": "irc", "fields": asked.query}]
            case "/user/irc" | "/user":
                return 200, [{"userid": "@_bridge_x:hs1", "protocol": "irc", "fields": asked.query}]
            case _:
                return 404, {"errcode": "COM.EXAMPLE.NOT_FOUND"}

    bridge.answer = tell
    alice = await with_networks.register("alice")
    told = PROTOCOL | {"instances": [INSTANCE | {"instance_id": "bridge|libera"}]}
    assert await alice.call("GET", "/thirdparty/protocols") == {"irc": told}
    assert await alice.call("GET", "/thirdparty/protocol/irc") == told
    assert (await alice.request("GET", "/thirdparty/protocol/silent")).status == 404
    assert (await alice.request("GET", "/thirdparty/user/icq")).status == 404
    for path, query, found in (
        ("/location/irc", {"channel": "#x"}, "#_bridge_x:hs1"),
        ("/user/irc", {"nickname": "x"}, "@_bridge_x:hs1"),
        ("/location", {"alias": "#_bridge_x:hs1"}, "#_bridge_x:hs1"),
        ("/user", {"userid": "@_bridge_x:hs1"}, "@_bridge_x:hs1"),
    ):
        (one,) = await alice.call("GET", "/thirdparty" + path, **query)
        assert found in (one.get("alias"), one.get("userid"))
        assert one["fields"] == query
    bridge.answer = lambda _: (200, [17, {"alias": 5}, "x"])
    nothing = await alice.request("GET", "/thirdparty/location/irc")
    assert nothing.json == []
    bridge.answer = lambda _: (500, {})
    assert await alice.call("GET", "/thirdparty/protocols") == {}


@pytest.mark.spec("application-service-api#published-room-directories")
async def test_services_keep_directories_of_their_own(homeserver: Homeserver):
    alice, bot = await homeserver.register("alice"), sender(homeserver)
    listed, bridged = await alice.create_room(visibility="public"), await alice.create_room()
    path = f"/directory/list/appservice/libera/{quote(bridged)}"
    refused = await alice.request("PUT", path, {"visibility": "public"})
    assert (refused.status, refused.json["errcode"]) == (403, "M_FORBIDDEN")
    await bot.call("PUT", path, {"visibility": "public"})

    async def rooms(**search: object) -> set[str]:
        answer = await alice.call("POST", "/publicRooms", search)
        return {room["room_id"] for room in answer["chunk"]}

    assert await rooms() == {listed}
    assert await rooms(third_party_instance_id="bridge|libera") == {bridged}
    assert await rooms(third_party_instance_id="bridge|other") == set()
    assert await rooms(include_all_networks=True) == {listed, bridged}
    await bot.call("PUT", path, {"visibility": "private"})
    assert await rooms(include_all_networks=True) == {listed}
    unknown = await bot.request(
        "PUT", "/directory/list/appservice/libera/!no:hs1", {"visibility": "public"}
    )
    assert unknown.status == 404


async def test_without_services_nothing_is_theirs(database_url: str, tmp_path: Path):
    async with running_homeserver(database_url, tmp_path) as server:
        refused = await sender(server).request("GET", "/account/whoami")
        assert refused.status == 401
        assert {"type": APPLICATION_SERVICE} not in (await server.stranger().call("GET", "/login"))[
            "flows"
        ]
        await server.register("_bridge_alice")
