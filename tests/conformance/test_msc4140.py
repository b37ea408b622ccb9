"""MSC4140, delayed events: stories on one server. MSC4140#proposal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.api.rate_limits import LIMITS
from minihs.base import logs
from minihs.base.clock import ManualClock
from minihs.base.errors import DatabaseAway, Unavailable
from minihs.protocol import unstable
from minihs.services.rooms import delayed_events, delayed_sending
from minihs.services.rooms.heads import building
from minihs.storage import delayed_events as rows
from minihs.workers import delayed_events as worker
from tests.helpers.appservices import make_ghost, running_bridge
from tests.helpers.homeserver import PASSWORD, User, running_homeserver
from tests.helpers.messages import send_at
from tests.helpers.servers import pass_time, quiet
from tests.helpers.servers import start as start_servers
from tests.helpers.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, Response
    from tests.helpers.network import Federation

MERGED, UNSTABLE = unstable.PATH_DELAYED_EVENTS.stable, unstable.PATH_DELAYED_EVENTS.unstable
SCHEDULE = [unstable.PATH_DELAYED_EVENT.stable, unstable.PATH_DELAYED_EVENT.unstable]
PARAMETER = unstable.DELAY_PARAMETER
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
DELAY_IDS = unstable.DELAY_ID.spellings
DAY_MS = 86_400_000
EVENT = "org.example.event"
_txn = iter(range(1_000_000))


@pytest.fixture
async def homeserver(database_url: str, tmp_path: Path) -> AsyncIterator[Homeserver]:
    """A homeserver whose clock the test moves."""
    async with running_homeserver(database_url, tmp_path, clock=ManualClock()) as server:
        yield server


def advance_ms(homeserver: Homeserver, duration_ms: int) -> None:
    clock = homeserver.clock
    assert isinstance(clock, ManualClock)
    clock.advance_ms(duration_ms)


async def fire(homeserver: Homeserver, after_ms: int = 0) -> None:
    """Let time pass, and send what is due then."""
    advance_ms(homeserver, after_ms)
    sender = worker.Sender(homeserver.services)
    await sender.begin()
    await sender.finish()


async def put(
    user: User, room_id: str, body: object, path: str = SCHEDULE[0], **options: str
) -> Response:
    """Ask the merged endpoint to schedule an event."""
    txn_id = options.pop("txn_id", f"d{next(_txn)}")
    for name, value in {
        "roomId": room_id,
        "eventType": options.pop("event_type", EVENT),
        "txnId": txn_id,
    }.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    return await user.request("PUT", path, body, **options)


async def delay(
    user: User, room_id: str, delay_ms: int, content: object = None, **options: object
) -> str:
    """Schedule an event; return its delay id."""
    body = {"delay_ms": delay_ms, "content": {"n": 1} if content is None else content}
    if "state_key" in options:
        body["state_key"] = options.pop("state_key")
    response = await put(user, room_id, body, **options)  # type: ignore[arg-type]
    assert response.status == 200, response.json
    return response.json["delay_id"]


async def manage(user: User, delay_id: str, action: str, base: str = MERGED) -> Response:
    return await user.request("POST", f"{base}/{delay_id}/{action}", {})


async def look_up(user: User, delay_id: str, base: str = MERGED) -> dict:
    return await user.call("GET", f"{base}/{delay_id}")


async def outcome(user: User, delay_id: str) -> dict | None:
    return (await look_up(user, delay_id)).get("finalised")


async def sent(user: User, room_id: str, event_type: str = EVENT) -> list[dict]:
    """Return a room's events of one type, oldest first."""
    page = await user.call("GET", f"/rooms/{quote(room_id)}/messages", dir="f", limit="1000")
    return [event for event in page["chunk"] if event["type"] == event_type]


async def state(user: User, room_id: str, event_type: str, state_key: str = "") -> Response:
    return await user.request(
        "GET", f"/rooms/{quote(room_id)}/state/{event_type}/{quote(state_key)}"
    )


async def room_of_two(homeserver: Homeserver, **options: object) -> tuple[User, User, str]:
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await alice.create_room(**options)
    await bob.join(room_id)
    return alice, bob, room_id


# --- scheduling --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCHEDULE)
async def test_d_1_a_message_is_sent_after_its_delay(homeserver: Homeserver, path: str) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    response = await put(alice, room_id, {"delay_ms": 1_000, "content": {"a": [1]}}, path)
    assert response.status == 200
    assert list(response.json) == ["delay_id"]
    assert await sent(bob, room_id) == []
    await fire(homeserver, 1_000)
    (event,) = await sent(bob, room_id)
    assert (event["sender"], event["content"]) == (alice.user_id, {"a": [1]})
    assert "state_key" not in event


@pytest.mark.parametrize("state_key", ["", "key/with?slashes", "@alice:hs1"])
async def test_d_1_a_state_key_makes_it_state(homeserver: Homeserver, state_key: str) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await delay(alice, room_id, 1_000, {"set": True}, state_key=state_key)
    await fire(homeserver, 1_000)
    (event,) = await sent(bob, room_id)
    assert (event["state_key"], event["content"]) == (state_key, {"set": True})


async def test_d_1_a_repeated_request_gets_the_same_id_even_without_a_body(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    body = {"delay_ms": 1_000, "content": {}}
    first = await put(alice, room_id, body, txn_id="one")
    again = await asyncio.gather(*(put(alice, room_id, body, txn_id="one") for _ in range(4)))
    empty = await put(alice, room_id, None, txn_id="one")
    assert {r.json["delay_id"] for r in (first, *again, empty)} == {first.json["delay_id"]}
    await fire(homeserver, 1_000)
    assert (await put(alice, room_id, None, txn_id="one")).json == first.json
    others = [
        await put(alice, room_id, body, txn_id="two"),
        await put(alice, room_id, body, txn_id="one", event_type="org.example.other"),
        await put(bob, room_id, body, txn_id="one"),
    ]
    assert len({r.json["delay_id"] for r in (first, *others)}) == 4
    assert len(await sent(alice, room_id)) == 1


async def test_d_1_a_transaction_id_of_a_plain_event_is_another(homeserver: Homeserver) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    path = f"/rooms/{quote(room_id)}/send/{EVENT}/same"
    event_id = (await alice.call("PUT", path, {"n": 0}))["event_id"]
    await put(alice, room_id, {"delay_ms": 10, "content": {"n": 1}}, txn_id="same")
    await fire(homeserver, 10)
    assert (await alice.call("PUT", path, {"n": 0}))["event_id"] == event_id
    assert [event["content"]["n"] for event in await sent(alice, room_id)] == [0, 1]


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({}, "M_BAD_JSON"),
        ({"delay_ms": 10}, "M_BAD_JSON"),
        ({"content": {}}, "M_BAD_JSON"),
        ({"delay_ms": 0, "content": {}}, "M_INVALID_PARAM"),
        ({"delay_ms": -5, "content": {}}, "M_INVALID_PARAM"),
        ({"delay_ms": "10", "content": {}}, "M_BAD_JSON"),
        ({"delay_ms": True, "content": {}}, "M_BAD_JSON"),
        ({"delay_ms": 1.5, "content": {}}, "M_BAD_JSON"),
        ({"delay_ms": 10, "content": []}, "M_BAD_JSON"),
        ({"delay_ms": 10, "content": {"x": 1.5}}, "M_BAD_JSON"),
        ({"delay_ms": 10, "content": {}, "state_key": 1}, "M_BAD_JSON"),
        ({"delay_ms": 10, "content": {}, "state_key": None}, "M_BAD_JSON"),
        ({"delay_ms": 10, "content": {}, "state_key": "\0"}, "M_BAD_JSON"),
        ({"delay_ms": 10, "content": {}, "state_key": "k" * 256}, "M_TOO_LARGE"),
        ({"delay_ms": 10, "content": {"x": "x" * 65_536}}, "M_TOO_LARGE"),
        (b"no json", "M_NOT_JSON"),
    ],
)
async def test_d_1_what_can_never_be_sent_is_refused_at_once(
    homeserver: Homeserver, body: object, errcode: str
) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    response = await put(alice, room_id, body)
    assert response.json["errcode"] == errcode
    assert (await alice.call("GET", UNSTABLE))["delayed_events"] == []


@pytest.mark.parametrize(
    ("event_type", "body"),
    [
        ("m.room.create", {"state_key": ""}),
        ("m.room.member", {"state_key": "nobody", "content": {"membership": "join"}}),
        ("m.room.member", {"state_key": "@alice:hs1", "content": {"membership": ["join"]}}),
        ("m.room.redaction", {"content": {"redacts": 1}}),
    ],
)
async def test_d_1_so_are_events_of_a_form_that_their_type_forbids(
    homeserver: Homeserver, event_type: str, body: dict
) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    body = {"delay_ms": 10, "content": {}, **body}
    assert (await put(alice, room_id, body, event_type=event_type)).json["errcode"] == "M_BAD_JSON"
    response = await put(alice, "nowhere", {"delay_ms": 10, "content": {}})
    assert (response.status, response.json["errcode"]) == (404, "M_NOT_FOUND")


async def test_d_1_the_delay_may_have_its_former_name_at_the_unstable_path(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    body = {"delay": 10, "content": {"n": 1}}
    response = await put(alice, room_id, body, SCHEDULE[0])
    assert (response.status, response.json["errcode"]) == (400, "M_BAD_JSON")
    response = await put(alice, room_id, {**body, "delay_ms": 11}, SCHEDULE[1])
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert (await put(alice, room_id, {**body, "delay_ms": 10}, SCHEDULE[1])).status == 200
    response = await put(alice, room_id, body, SCHEDULE[1])
    assert (await look_up(alice, response.json["delay_id"]))["delay_ms"] == 10
    await fire(homeserver, 10)
    assert len(await sent(bob, room_id)) == 2


async def test_d_2_the_parameter_of_send_and_state_delays_too(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    path = f"/rooms/{quote(room_id)}"
    first = await alice.call("PUT", f"{path}/send/{EVENT}/a", {"n": 1}, **{PARAMETER: "1000"})
    assert list(first) == ["delay_id"]
    again = await alice.call("PUT", f"{path}/send/{EVENT}/a", None, **{PARAMETER: "1000"})
    assert again == first
    second = await alice.call("PUT", f"{path}/state/{EVENT}/key", {"n": 2}, **{PARAMETER: "1001"})
    third = await alice.call("PUT", f"{path}/state/{EVENT}", {"n": 3}, **{PARAMETER: "1002"})
    assert len({first["delay_id"], second["delay_id"], third["delay_id"]}) == 3
    assert await sent(bob, room_id) == []
    await fire(homeserver, 1_002)
    events = await sent(bob, room_id)
    assert [event["content"]["n"] for event in events] == [1, 2, 3]
    assert [event.get("state_key") for event in events] == [None, "key", ""]


@pytest.mark.parametrize("value", ["0", "-1", "", "1.5", "soon", "9" * 30, "１"])
async def test_d_2_a_delay_that_is_none_is_refused_and_nothing_is_sent(
    homeserver: Homeserver, value: str
) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    path = f"/rooms/{quote(room_id)}/send/{EVENT}/x"
    response = await alice.request("PUT", path, {}, **{PARAMETER: value})
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")
    await fire(homeserver, DAY_MS)
    assert await sent(alice, room_id) == []


# --- when it is sent ---------------------------------------------------------------------------


async def test_d_3_never_early_and_with_the_time_of_sending(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await delay(alice, room_id, 1_000)
    await fire(homeserver, 999)
    assert await sent(bob, room_id) == []
    await fire(homeserver, 1)
    (event,) = await sent(bob, room_id)
    assert event["origin_server_ts"] == homeserver.clock.now_ms()


async def test_d_3_the_worker_sleeps_exactly_until_the_next_is_due(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    begun_ms = homeserver.clock.now_ms()
    await delay(alice, room_id, 1_234)
    worker.start(homeserver.services)

    async def is_there() -> bool:
        advance_ms(homeserver, 5)
        return bool(await sent(bob, room_id))

    await until(is_there)
    (event,) = await sent(bob, room_id)
    assert event["origin_server_ts"] - begun_ms >= 1_234
    assert event["origin_server_ts"] - begun_ms < 1_234 + 250


async def test_d_3_one_that_is_scheduled_while_the_worker_sleeps_is_not_late(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    worker.start(homeserver.services)
    await delay(alice, room_id, 3_600_000, {"n": 2})
    soon_ms = homeserver.clock.now_ms() + 50
    await delay(alice, room_id, 50)

    async def is_there() -> bool:
        advance_ms(homeserver, 1)
        return bool(await sent(bob, room_id))

    await until(is_there)
    (event,) = await sent(bob, room_id)
    assert soon_ms <= event["origin_server_ts"] <= soon_ms + 250


async def test_d_3_a_clock_that_is_set_forward_sends_nothing_early(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    sender = worker.Sender(homeserver.services)
    clock = homeserver.clock
    assert isinstance(clock, ManualClock)

    async def bodies_after(duration_ms: int) -> list[int]:
        clock.advance_ms(duration_ms)
        await sender.begin()
        await sender.finish()
        return [event["content"]["n"] for event in await sent(bob, room_id)]

    await delay(alice, room_id, 1_000, {"n": 1})
    assert await bodies_after(400) == []
    clock.step_ms(3_600_000)
    assert await bodies_after(0) == []
    await delay(alice, room_id, 300, {"n": 2})
    assert await bodies_after(300) == [2], "by the new time"
    assert await bodies_after(299) == [2]
    assert await bodies_after(1) == [2, 1]
    clock.step_ms(-7_200_000)
    await delay(alice, room_id, 500, {"n": 3})
    assert await bodies_after(499) == [2, 1]
    assert await bodies_after(1) == [2, 1, 3]


async def test_d_3_after_a_restart_it_goes_by_the_clock(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await delay(alice, room_id, 3_600_000)
    homeserver.clock.step_ms(3_600_000)  # type: ignore[attr-defined]  # a ManualClock
    await fire(homeserver)
    assert len(await sent(bob, room_id)) == 1


async def test_d_4_a_restart_loses_nothing_and_sends_what_is_overdue_in_order(
    database_url: str, tmp_path: Path
) -> None:
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, clock=clock) as homeserver:
        alice = await homeserver.register("alice")
        room_id = await alice.create_room()
        for n in (30, 10, 20, 99_999):
            await delay(alice, room_id, n, {"n": n})
        token = alice.token
    clock.advance_ms(60_000)
    async with running_homeserver(database_url, tmp_path, clock=clock, seed=7) as homeserver:
        alice = User(homeserver, "@alice:hs1", token)
        assert len((await alice.call("GET", UNSTABLE))["delayed_events"]) == 4
        await fire(homeserver)
        assert [event["content"]["n"] for event in await sent(alice, room_id)] == [10, 20, 30]
        await fire(homeserver, 39_999)
        assert len(await sent(alice, room_id)) == 4


async def test_d_4_nobody_takes_over_while_the_lease_holds(
    database_url: str, tmp_path: Path
) -> None:
    clock = ManualClock()
    async with running_homeserver(database_url, tmp_path, clock=clock, workers=2) as homeserver:
        alice, bob, room_id = await room_of_two(homeserver)
        for services in homeserver.workers:
            worker.start(services)
        for n in range(20):
            await delay(alice, room_id, 500 + n, {"n": n})

        async def all_there() -> bool:
            clock.advance_ms(20)
            return len(await sent(bob, room_id)) == 20

        await until(all_there)
        assert [event["content"]["n"] for event in await sent(bob, room_id)] == [*range(20)]


# --- limits ------------------------------------------------------------------------------------


async def test_d_5_a_delay_beyond_the_limit_is_forbidden(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    room_id = await alice.create_room()
    await delay(alice, room_id, DAY_MS)
    response = await put(alice, room_id, {"delay_ms": DAY_MS + 1, "content": {}})
    assert (response.status, response.json["errcode"]) == (403, "M_FORBIDDEN")
    path = f"/rooms/{quote(room_id)}/send/{EVENT}/x"
    response = await alice.request("PUT", path, {}, **{PARAMETER: str(DAY_MS + 1)})
    assert (response.status, response.json["errcode"]) == (400, "M_UNKNOWN")
    assert response.json[unstable.DELAY_ERRCODE] == "M_MAX_DELAY_EXCEEDED"
    assert response.json[unstable.DELAY_MAX] == DAY_MS


async def test_d_6_only_so_many_may_be_scheduled_however_fast_one_asks(
    database_url: str, tmp_path: Path
) -> None:
    async with running_homeserver(
        database_url, tmp_path, clock=ManualClock(), workers=2, delayed_events_max_scheduled=3
    ) as homeserver:
        alice, bob, room_id = await room_of_two(homeserver)
        body = {"delay_ms": 61_500, "content": {}}
        answers = await asyncio.gather(*(put(alice, room_id, body) for _ in range(10)))
        assert sorted(r.status for r in answers) == [200] * 3 + [429] * 7
        assert (await put(bob, room_id, body)).status == 200
        advance_ms(homeserver, 1_000)
        refused = await put(alice, room_id, body)
        assert refused.json["errcode"] == "M_LIMIT_EXCEEDED"
        assert refused.headers["Retry-After"] == "61"
        known = next(r.json["delay_id"] for r in answers if r.status == 200)
        assert (await manage(alice, known, "cancel")).status == 200
        assert (await put(alice, room_id, body)).status == 200
        assert (await put(alice, room_id, body)).status == 429
        await fire(homeserver, 61_500)
        assert (await put(alice, room_id, body)).status == 200


async def test_d_6_a_limit_of_nothing_switches_it_off(database_url: str, tmp_path: Path) -> None:
    async with running_homeserver(
        database_url, tmp_path, delayed_events_max_scheduled=0
    ) as homeserver:
        alice = await homeserver.register("alice")
        room_id = await alice.create_room()
        response = await put(alice, room_id, {"delay_ms": 10, "content": {}})
        assert (response.status, response.json["errcode"]) == (403, "M_FORBIDDEN")


async def test_d_7_the_limits_are_a_capability(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    capabilities = (await alice.call("GET", "/capabilities"))["capabilities"]
    for name in unstable.DELAYED_EVENTS_CAPABILITY.spellings:
        assert capabilities[name] == {"max_delay_ms": DAY_MS, "max_scheduled": 100}


# --- managing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [MERGED, UNSTABLE])
async def test_d_8_send_cancel_restart(homeserver: Homeserver, base: str) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    one, two, three = [await delay(alice, room_id, 1_000, {"n": n}) for n in (1, 2, 3)]
    advance_ms(homeserver, 600)
    for delay_id, action in ((one, "send"), (two, "cancel"), (three, "restart")):
        response = await manage(alice, delay_id, action, base)
        assert (response.status, response.json) == (200, {})
    assert [event["content"]["n"] for event in await sent(bob, room_id)] == [1]
    await fire(homeserver, 999)
    assert len(await sent(bob, room_id)) == 1
    await fire(homeserver, 1)
    assert [event["content"]["n"] for event in await sent(bob, room_id)] == [1, 3]
    for action in ("send", "cancel", "restart"):
        response = await manage(alice, "unknown", action, base)
        assert (response.status, response.json["errcode"]) == (404, "M_NOT_FOUND")
    assert (await manage(alice, one, "explode", base)).status == 404


async def test_d_8_the_action_may_be_in_the_body_of_the_unstable_path(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(alice, room_id, 1_000)
    await alice.call("POST", f"{UNSTABLE}/{delay_id}", {"action": "send"})
    assert len(await sent(bob, room_id)) == 1
    for body, errcode in (
        ({}, "M_MISSING_PARAM"),
        ({"action": 1}, "M_MISSING_PARAM"),
        ({"action": "explode"}, "M_INVALID_PARAM"),
    ):
        answer = await alice.request("POST", f"{UNSTABLE}/{delay_id}", body)
        assert (answer.status, answer.json["errcode"]) == (400, errcode)
    assert (await alice.request("POST", f"{MERGED}/{delay_id}", {"action": "send"})).status == 405


@pytest.mark.parametrize("base", [MERGED, UNSTABLE])
async def test_d_9_nobody_else_manages_or_sees_it(homeserver: Homeserver, base: str) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(alice, room_id, 1_000)
    for who, status, errcode in (
        (bob, 404, "M_NOT_FOUND"),
        (homeserver.stranger(), 401, "M_MISSING_TOKEN"),
    ):
        for action in ("send", "cancel", "restart"):
            response = await manage(who, delay_id, action, base)
            assert (response.status, response.json["errcode"]) == (status, errcode)
        response = await who.request("GET", f"{base}/{delay_id}")
        assert (response.status, response.json["errcode"]) == (status, errcode)
    assert await outcome(alice, delay_id) is None
    assert (await homeserver.stranger().request("GET", UNSTABLE)).status == 401
    assert (await bob.call("GET", UNSTABLE))["delayed_events"] == []
    response = await put(homeserver.stranger(), room_id, {"delay_ms": 1, "content": {}})
    assert response.status == 401


async def test_d_9_an_operator_may_let_whoever_knows_the_id_manage_it(
    database_url: str, tmp_path: Path
) -> None:
    async with running_homeserver(
        database_url,
        tmp_path,
        clock=ManualClock(),
        delayed_events_unauthenticated_management=True,
    ) as homeserver:
        alice, bob, room_id = await room_of_two(homeserver)
        stranger = homeserver.stranger()
        delay_id = await delay(alice, room_id, 1_000)
        assert (await manage(stranger, delay_id, "restart", UNSTABLE)).status == 200
        assert (await manage(stranger, delay_id, "send", UNSTABLE)).status == 200
        assert len(await sent(bob, room_id)) == 1
        assert (await manage(stranger, delay_id, "send", MERGED)).status == 401
        assert (await stranger.request("GET", f"{UNSTABLE}/{delay_id}")).status == 401
        assert (await manage(bob, delay_id, "send", UNSTABLE)).status == 404
        assert (await manage(stranger, "abc", "send", UNSTABLE)).status == 404
        assert len(delay_id) >= 22, "128 bits"


async def test_d_9_who_manages_by_the_id_is_limited_for_each_id(
    database_url: str, tmp_path: Path
) -> None:
    """And no log tells an id to anybody."""
    async with running_homeserver(
        database_url,
        tmp_path,
        clock=ManualClock(),
        rate_limits="on",
        delayed_events_unauthenticated_management=True,
    ) as homeserver:
        alice, _, room_id = await room_of_two(homeserver)
        one, two = [await delay(alice, room_id, 1_000_000) for _ in range(2)]
        stranger = homeserver.stranger()
        burst = LIMITS["write"].burst
        statuses = [
            (await manage(stranger, one, "restart", UNSTABLE)).status for _ in range(burst + 1)
        ]
        assert statuses == [200] * burst + [429]
        assert (await manage(stranger, two, "restart", UNSTABLE)).status == 200
        assert (await manage(alice, one, "restart", UNSTABLE)).status == 200
    text = logs.redacted(f"POST {UNSTABLE}/{one}/restart")
    assert one not in text
    assert "/restart" in text


@pytest.mark.parametrize(
    ("end", "repeatable", "conflicting"),
    [
        ("sent", ["send"], ["cancel", "restart"]),
        ("cancelled", ["cancel"], ["send", "restart"]),
        ("failed", ["cancel"], ["send", "restart"]),
    ],
)
async def test_d_10_requests_may_be_repeated_but_not_contradicted(
    homeserver: Homeserver, end: str, repeatable: list[str], conflicting: list[str]
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(bob, room_id, 1_000)
    if end == "failed":
        await bob.leave(room_id)
        await fire(homeserver, 1_000)
    else:
        assert (await manage(bob, delay_id, "send" if end == "sent" else "cancel")).status == 200
    before = await look_up(bob, delay_id)
    assert "finalised" in before
    for action in repeatable:
        for base in (MERGED, UNSTABLE):
            assert (await manage(bob, delay_id, action, base)).status == 200
    for action in conflicting:
        response = await manage(bob, delay_id, action)
        assert (response.status, response.json["errcode"]) == (409, "M_UNKNOWN")
        response = await manage(bob, delay_id, action, UNSTABLE)
        assert (response.status, response.json["errcode"]) == (409, "M_NOT_FOUND")
    assert await look_up(bob, delay_id) == before
    assert len(await sent(alice, room_id)) == (end == "sent")


async def test_d_10_what_is_done_to_one_leaves_the_others_alone(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    one, two, _ = [await delay(alice, room_id, 1_000 + n, {"n": n}) for n in (1, 2, 3)]
    for action in ("send", "send"):
        await manage(alice, one, action)
    for action in ("cancel", "cancel"):
        await manage(alice, two, action)
    await fire(homeserver, 1_003)
    assert [event["content"]["n"] for event in await sent(bob, room_id)] == [1, 3]


async def test_d_11_a_send_that_fails_says_why_and_leaves_it_scheduled(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(bob, room_id, 1_000, {"topic": "new"}, event_type="m.room.topic",
                           state_key="")  # fmt: skip
    response = await manage(bob, delay_id, "send")
    assert (response.status, response.json["errcode"]) == (403, "M_FORBIDDEN")
    assert await outcome(bob, delay_id) is None
    levels = (await state(alice, room_id, "m.room.power_levels")).json
    levels["users"][bob.user_id] = 50
    await alice.put_state(room_id, "m.room.power_levels", levels)
    assert (await manage(bob, delay_id, "send")).status == 200
    assert (await state(alice, room_id, "m.room.topic")).json == {"topic": "new"}


# --- looking up --------------------------------------------------------------------------------


async def test_d_12_what_the_owner_is_told(homeserver: Homeserver) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    since_ms = homeserver.clock.now_ms()
    one = await delay(alice, room_id, 1_000, {"n": 1})
    two = await delay(alice, room_id, 2_000, {"n": 2}, state_key="")
    merged = {
        "delay_id": one,
        "room_id": room_id,
        "type": EVENT,
        "delay_ms": 1_000,
        "delayed_since_ts": since_ms,
        "content": {"n": 1},
    }
    former = {"delay": 1_000, "running_since": since_ms, "scheduled_at": since_ms}
    assert await look_up(alice, one) == merged
    assert await look_up(alice, one, UNSTABLE) == merged | former
    assert (await look_up(alice, two))["state_key"] == ""
    advance_ms(homeserver, 300)
    await manage(alice, one, "restart")
    assert (await look_up(alice, one))["delayed_since_ts"] == since_ms + 300
    await fire(homeserver, 1_000)
    (event,) = await sent(alice, room_id)
    finalised = {"finalised_ts": since_ms + 1_300, "event_id": event["event_id"]}
    answer = await look_up(alice, one, UNSTABLE)
    assert answer["finalised"] == finalised
    assert {key: answer[key] for key in finalised} == finalised


async def test_d_13_the_outcome_tells_the_ends_apart(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    works, fails, ends, waits = [
        await delay(bob, room_id, 1_000, event_type=event_type, **more)
        for event_type, more in (
            (EVENT, {}),
            ("m.room.topic", {"state_key": ""}),
            (EVENT, {}),
            (EVENT, {}),
        )
    ]
    await manage(bob, ends, "cancel")
    advance_ms(homeserver, 500)
    await manage(bob, waits, "restart")
    await fire(homeserver, 500)
    now_ms = homeserver.clock.now_ms()
    (event,) = await sent(alice, room_id)
    assert await outcome(bob, works) == {"finalised_ts": now_ms, "event_id": event["event_id"]}
    failed = await outcome(bob, fails)
    assert failed is not None
    assert failed["error"]["errcode"] == "M_FORBIDDEN"
    assert failed.keys() == {"finalised_ts", "error"}
    assert await outcome(bob, ends) == {"finalised_ts": now_ms - 1_000}
    assert await outcome(bob, waits) is None


async def test_d_14_the_list_is_of_ones_own_scheduled_events_in_order(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    late = await delay(alice, room_id, 3_000)
    soon = await delay(alice, room_id, 1_000)
    middle = await delay(alice, room_id, 2_000)
    done = await delay(alice, room_id, 500)
    await delay(bob, room_id, 1_000)
    await fire(homeserver, 500)
    listed = (await alice.call("GET", UNSTABLE))["delayed_events"]
    assert [event["delay_id"] for event in listed] == [soon, middle, late]
    assert all("finalised" not in event for event in listed)
    assert listed[0] == await look_up(alice, soon, UNSTABLE)
    assert await outcome(alice, done) is not None
    await manage(alice, soon, "restart")
    await manage(alice, late, "cancel")
    listed = (await alice.call("GET", UNSTABLE))["delayed_events"]
    assert [event["delay_id"] for event in listed] == [soon, middle]


async def test_d_14_matrix_js_sdk_finds_what_is_scheduled_and_what_is_finalised_apart(
    homeserver: Homeserver,
) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    ids = {
        "sent when due": await delay(alice, room_id, 1_000),
        "failed": await delay(alice, "!nowhere:hs1", 1_000),
        "sent early": await delay(alice, room_id, 2_000),
        "cancelled": await delay(alice, room_id, 3_000),
        "waits": await delay(alice, room_id, 4_000),
    }
    await manage(alice, ids["sent early"], "send")
    await manage(alice, ids["cancelled"], "cancel")
    await fire(homeserver, 1_000)
    waiting = await look_up(alice, ids["waits"], UNSTABLE)
    for query in ({}, {"status": "scheduled"}):
        answer = await alice.call("GET", UNSTABLE, **query)
        assert (answer["scheduled"], answer["finalised"]) == ([waiting], [])
    answer = await alice.call("GET", UNSTABLE, status="finalised")
    assert answer["scheduled"] == []
    told = {item["delayed_event"]["delay_id"]: item for item in answer["finalised"]}
    assert {
        name: (told[i]["outcome"], told[i]["reason"]) for name, i in ids.items() if i in told
    } == {
        "sent when due": ("send", "delay"),
        "failed": ("cancel", "error"),
        "sent early": ("send", "action"),
        "cancelled": ("cancel", "action"),
    }
    events = {event["event_id"] for event in await sent(alice, room_id)}
    assert {item["event_id"] for item in told.values() if "event_id" in item} == events
    assert told[ids["failed"]]["error"]["errcode"] == "M_FORBIDDEN"
    assert (await alice.request("GET", MERGED, status="finalised")).status == 400


LISTS = [MERGED, UNSTABLE, unstable.PATH_DELAYED_EVENTS_LIST]


async def listed(user: User, path: str, **query: str) -> list[str]:
    """Return the ids of a list, page after page."""
    ids: list[str] = []
    while True:
        answer = await user.call("GET", path, **query)
        ids += [event["delay_id"] for event in answer["delayed_events"]]
        if "next_batch" not in answer:
            return ids
        assert answer["next_batch"] == answer["org.matrix.msc4486.next_batch"]
        query["from"] = answer["next_batch"]


@pytest.mark.parametrize("prefix", ["", "org.matrix.msc4486."])
@pytest.mark.parametrize("path", LISTS)
async def test_d_14_the_list_can_be_filtered(
    homeserver: Homeserver, path: str, prefix: str
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    other = await alice.create_room()
    start_ms = homeserver.clock.now_ms()
    was_sent = await delay(alice, room_id, 1_000)
    was_cancelled = await delay(alice, other, 2_000)
    has_failed = await delay(alice, "!nowhere:hs1", 1_500)
    await delay(bob, room_id, 1_000)
    await manage(alice, was_cancelled, "cancel")
    await fire(homeserver, 1_500)
    topic = await delay(
        alice, other, 3_000, {"topic": "x"}, event_type="m.room.topic", state_key=""
    )
    waits = await delay(alice, room_id, 5_000)
    every = [was_sent, has_failed, was_cancelled, topic, waits]
    for query, expected in (
        ({"status": "scheduled"}, [topic, waits]),
        ({"status": "sent"}, [was_sent]),
        ({"status": "cancelled"}, [was_cancelled]),
        ({"status": "failed"}, [has_failed]),
        ({"dir": "b"}, every[::-1]),
        ({"room_id": other}, [was_cancelled, topic]),
        ({"room_id": other, "status": "scheduled"}, [topic]),
        ({"type": "m.room.topic"}, [topic]),
        ({"from_ts": str(start_ms + 2_000)}, [was_cancelled, topic, waits]),
        ({"to_ts": str(start_ms + 2_000)}, [was_sent, has_failed, was_cancelled]),
        ({"from_ts": str(start_ms + 1_001), "to_ts": str(start_ms + 1_999)}, [has_failed]),
        ({"type": "m.room.topic", "status": "sent"}, []),
    ):
        named = {prefix + name: value for name, value in query.items()}
        assert await listed(alice, path, **named) == expected, named
    of_its_own = path == unstable.PATH_DELAYED_EVENTS_LIST
    assert await listed(alice, path) == (every if of_its_own else [topic, waits])
    for query in (
        {"status": "error"},
        {"dir": "sideways"},
        {"from_ts": "yesterday"},
        {"to_ts": "-1"},
        {"from": "nonsense"},
        {"room_id": "nonsense"},
        {"type": "a", "org.matrix.msc4486.type": "b"},
    ):
        answer = await alice.request("GET", path, **query)
        assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM"), query
    features = (await alice.call("GET", "/_matrix/client/versions"))["unstable_features"]
    assert features["org.matrix.msc4486"] is True


@pytest.mark.parametrize("direction", ["f", "b"])
async def test_d_14_the_list_comes_in_pages(
    homeserver: Homeserver, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where several are due at one moment."""
    monkeypatch.setattr(delayed_events, "PAGE_EVENTS", 2)
    alice, _, room_id = await room_of_two(homeserver)
    ids = [await delay(alice, room_id, 1_000 + n // 3) for n in range(7)]
    found = await listed(alice, MERGED, dir=direction)
    assert sorted(found) == sorted(ids)
    due = [1_000 + ids.index(delay_id) // 3 for delay_id in found]
    assert due == sorted(due, reverse=direction == "b")


async def test_d_15_outcomes_are_kept_for_a_week(homeserver: Homeserver) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    old = await delay(alice, room_id, 1_000)
    await fire(homeserver, 1_000)
    new = await delay(alice, room_id, 1_000)
    await fire(homeserver, 1_000)
    scheduled = await delay(alice, room_id, 1_000)
    advance_ms(homeserver, 7 * DAY_MS - 1_000)
    await delayed_sending.forget_finalised(homeserver.services)
    assert (await alice.request("GET", f"{MERGED}/{old}")).status == 404
    assert await outcome(alice, new) is not None
    assert await outcome(alice, scheduled) is None


async def test_d_15_of_each_user_so_many_and_so_much(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    ids = []
    for n in range(5):
        ids.append(await delay(alice, room_id, 1_000 + n, {"n": n, "x": "x" * 90}))
        await manage(alice, ids[-1], "cancel")
        advance_ms(homeserver, 1)
    of_bob = await delay(bob, room_id, 1_000)
    await manage(bob, of_bob, "cancel")

    async def kept() -> list[str]:
        await delayed_sending.forget_finalised(homeserver.services)
        return [i for i in ids if (await alice.request("GET", f"{MERGED}/{i}")).status == 200]

    assert await kept() == ids
    monkeypatch.setattr(delayed_sending, "RETAINED_PER_USER_MAX", 3)
    assert await kept() == ids[2:]
    monkeypatch.setattr(delayed_sending, "RETAINED_BYTES_PER_USER_MAX", 250)
    assert await kept() == ids[3:]
    assert await outcome(bob, of_bob) is not None


# --- what became of them, in /sync ---------------------------------------------------------------

OUTCOMES = unstable.DELAYED_EVENT_OUTCOMES.unstable


@pytest.mark.parametrize("long_ago", [False, True])
async def test_d_23_a_sync_tells_what_was_sent_and_what_could_not_be(
    homeserver: Homeserver, long_ago: bool
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    works = await delay(bob, room_id, 1_000)
    fails = await delay(bob, room_id, 1_001, event_type="m.room.topic", state_key="")
    ends = await delay(bob, room_id, 1_002)
    await delay(bob, room_id, 999_999)
    for user in (alice, bob):
        await user.sync()
    await manage(bob, ends, "cancel")
    await fire(homeserver, 1_002)
    if long_ago:
        for services in homeserver.workers:
            services.follower.floor = services.follower.head
    since = bob.since
    for _ in range(2):  # An answer that was lost comes again.
        bob.since = since
        told = (await bob.sync())[OUTCOMES]
        assert [event["delay_id"] for event in told] == [works, fails]
        assert told == [await look_up(bob, delay_id) for delay_id in (works, fails)]
    assert OUTCOMES not in await bob.sync()
    assert OUTCOMES not in await alice.sync()
    bob.since = None
    assert len((await bob.sync())[OUTCOMES]) == 2
    for name in unstable.DELAYED_EVENT_OUTCOMES.spellings:
        assert OUTCOMES not in await bob.sync(since=since, filter=f'{{"{name}":false}}')
    refused = await bob.request("GET", "/sync", filter=f'{{"{OUTCOMES}":"no"}}')
    assert refused.status == 400


async def test_d_23_a_failure_ends_a_long_poll(homeserver: Homeserver) -> None:
    """Nothing happens in any room."""
    alice = await homeserver.register("alice")
    await delay(alice, "!nowhere:hs1", 1_000)
    await alice.sync()

    async def told() -> list[dict]:
        while OUTCOMES not in (answer := await alice.sync(timeout="30000")):
            pass
        return answer[OUTCOMES]

    polling = asyncio.create_task(told())
    await until(lambda: any(services.views.waiting for services in homeserver.workers))
    await fire(homeserver, 1_000)
    async with asyncio.timeout(PATIENCE_S):
        assert len(await polling) == 1


async def test_d_23_what_was_sent_by_hand_or_was_so_already_is_told_too(
    homeserver: Homeserver,
) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    await alice.put_state(room_id, EVENT, {"n": 1})
    by_hand = await delay(alice, room_id, 1_000, {"n": 2})
    same = await delay(alice, room_id, 1_000, {"n": 1}, state_key="")
    await alice.sync()
    await manage(alice, by_hand, "send")
    await fire(homeserver, 1_000)
    told = {e["delay_id"]: e["finalised"] for e in (await alice.sync())[OUTCOMES]}
    assert told.keys() == {by_hand, same}
    assert all("event_id" in end for end in told.values())


# --- application services ------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["merged", "former"])
async def test_d_1_a_bridge_may_say_when_it_was_sent(
    database_url: str, tmp_path: Path, generation: str
) -> None:
    """And whom it speaks for owns the event."""
    async with (
        running_bridge(tmp_path) as bridge,
        running_homeserver(
            database_url, tmp_path, clock=ManualClock(), appservice_files=str(bridge.file)
        ) as homeserver,
    ):
        alice = await homeserver.register("alice")
        room_id = await alice.create_room()
        ghost = await make_ghost(homeserver, "_bridge_ghost")
        await ghost.join(room_id)
        for user, expected in ((ghost, 12_345), (alice, None)):
            if generation == "merged":
                delay_id = await delay(user, room_id, 1_000, {"n": 1}, ts="12345")
            else:
                path = f"/rooms/{quote(room_id)}/send/{EVENT}/ts"
                query = {PARAMETER: "1000", "ts": "12345"}
                delay_id = (await user.call("PUT", path, {"n": 1}, **query))["delay_id"]
            others = [u for u in (ghost, alice) if u is not user]
            assert (await others[0].request("GET", f"{MERGED}/{delay_id}")).status == 404
            await fire(homeserver, 1_000)
            event = (await sent(alice, room_id))[-1]
            assert event["sender"] == user.user_id
            now_ms = homeserver.clock.now_ms()
            assert event["origin_server_ts"] == (now_ms if expected is None else expected)
            assert (await outcome(user, delay_id) or {})["finalised_ts"] == now_ms, "never massaged"


# --- unsigned ----------------------------------------------------------------------------------


async def test_d_16_the_sender_and_nobody_else_is_told_the_delay_id(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    login = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": PASSWORD,
    }
    other = await homeserver.stranger().call("POST", "/login", login)
    phone = User(homeserver, alice.user_id, other["access_token"])
    for user in (alice, phone, bob):
        await user.sync()
    delay_id = await delay(alice, room_id, 1_000, {"n": 1}, state_key="")
    await fire(homeserver, 1_000)
    (event,) = await sent(alice, room_id)
    event_id = quote(event["event_id"])
    room = f"/rooms/{quote(room_id)}"
    for user in (bob, phone, alice):
        part = (await user.sync())["rooms"]["join"][room_id]
        seen = [
            *part["timeline"]["events"],
            *await sent(user, room_id),
            await user.call("GET", f"{room}/event/{event_id}"),
            (await user.call("GET", f"{room}/context/{event_id}"))["event"],
            *(e for e in await user.call("GET", f"{room}/state") if e["type"] == EVENT),
            await user.call("GET", f"{room}/state/{EVENT}", format="event"),
        ]
        assert len(seen) == 6
        for shown in seen:
            unsigned = shown["unsigned"]
            assert shown["event_id"] == event["event_id"]
            for name in DELAY_IDS:
                assert unsigned.get(name) == (None if user is bob else delay_id)
            assert "transaction_id" not in unsigned


async def test_d_16_also_in_the_state_of_a_sync(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(alice, room_id, 1_000, {"n": 1}, state_key="")
    await fire(homeserver, 1_000)
    for n in range(12):
        await bob.say(room_id, str(n))
    for user, expected in ((alice, delay_id), (bob, None)):
        part = (await user.sync())["rooms"]["join"][room_id]
        (event,) = [e for e in part["state"]["events"] if e["type"] == EVENT]
        for name in DELAY_IDS:
            assert event["unsigned"].get(name) == expected


@pytest.mark.parametrize("path", ["/_matrix/client/v4/sync", SLIDING])
async def test_d_16_also_in_sliding_sync(homeserver: Homeserver, path: str) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(alice, room_id, 1_000, {"n": 1}, state_key="")
    await fire(homeserver, 1_000)
    wishes = {
        "required_state": [[EVENT, ""]] if path == SLIDING else {"include": [{"type": EVENT}]}
    }
    body = {"room_subscriptions": {room_id: {"timeline_limit": 1, **wishes}}}
    for user, expected in ((alice, delay_id), (bob, None)):
        room = (await user.call("POST", path, body))["rooms"][room_id]
        for event in (*room["timeline"], *room["required_state"]):
            assert event["type"] == EVENT
            for name in DELAY_IDS:
                assert event["unsigned"].get(name) == expected


# --- what decides, and when --------------------------------------------------------------------


async def test_d_17_power_counts_when_it_is_sent(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    early = await delay(bob, room_id, 1_000, {"topic": "1"}, event_type="m.room.topic",
                        state_key="")  # fmt: skip
    levels = (await state(alice, room_id, "m.room.power_levels")).json
    levels["users"][bob.user_id] = 50
    await alice.put_state(room_id, "m.room.power_levels", levels)
    await fire(homeserver, 1_000)
    assert (await state(alice, room_id, "m.room.topic")).json == {"topic": "1"}
    late = await delay(bob, room_id, 1_000, {"topic": "2"}, event_type="m.room.topic",
                       state_key="")  # fmt: skip
    levels["users"][bob.user_id] = 0
    await alice.put_state(room_id, "m.room.power_levels", levels)
    await fire(homeserver, 1_000)
    assert (await state(alice, room_id, "m.room.topic")).json == {"topic": "1"}
    assert "event_id" in (await outcome(bob, early) or {})
    assert (await outcome(bob, late) or {})["error"]["errcode"] == "M_FORBIDDEN"


async def test_d_17_who_is_gone_sends_nothing_and_who_returns_does(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    first, second = [await delay(bob, room_id, ms, {"n": ms}) for ms in (1_000, 2_000)]
    await alice.call("POST", f"/rooms/{quote(room_id)}/kick", {"user_id": bob.user_id})
    await fire(homeserver, 1_000)
    assert (await outcome(bob, first) or {})["error"]["errcode"] == "M_FORBIDDEN"
    await bob.join(room_id)
    await fire(homeserver, 1_000)
    assert [event["content"]["n"] for event in await sent(alice, room_id)] == [2_000]
    assert "event_id" in (await outcome(bob, second) or {})


async def test_d_17_in_a_room_that_was_replaced_it_fails_as_anybody_does(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(bob, room_id, 1_000)
    await alice.call("POST", f"/rooms/{quote(room_id)}/upgrade", {"new_version": "12"})
    await fire(homeserver, 1_000)
    assert (await outcome(bob, delay_id) or {})["error"]["errcode"] == "M_FORBIDDEN"


async def test_d_18_a_flood_for_one_moment_is_cut_and_not_repeated(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delayed_sending, "SENT_AT_ONCE_MAX", 3)
    async with running_homeserver(
        database_url, tmp_path, clock=ManualClock(), rate_limits="on"
    ) as homeserver:
        alice, bob, room_id = await room_of_two(homeserver)
        ids = [await delay(alice, room_id, 1_000, {"n": n}) for n in range(5)]
        of_bob = await delay(bob, room_id, 1_000, {"n": "bob"})
        await fire(homeserver, 1_000)
        ends = [await outcome(alice, delay_id) or {} for delay_id in ids]
        assert sum("event_id" in end for end in ends) == 3
        errors = [end["error"] for end in ends if "error" in end]
        assert [error["errcode"] for error in errors] == ["M_LIMIT_EXCEEDED"] * 2
        assert "event_id" in (await outcome(bob, of_bob) or {})
        await fire(homeserver, 60_000)
        assert len(await sent(bob, room_id)) == 4
        await delay(alice, room_id, 1_000)
        await fire(homeserver, 1_000)
        assert len(await sent(bob, room_id)) == 5


async def test_d_19_guests_may_use_all_of_it(database_url: str, tmp_path: Path) -> None:
    async with running_homeserver(
        database_url, tmp_path, clock=ManualClock(), allow_guests=True
    ) as homeserver:
        alice = await homeserver.register("alice")
        room_id = await alice.create_room()
        await alice.put_state(room_id, "m.room.guest_access", {"guest_access": "can_join"})
        answer = await homeserver.stranger().call("POST", "/register", {}, kind="guest")
        guest = User(homeserver, answer["user_id"], answer["access_token"])
        await guest.join(room_id)
        one = await delay(guest, room_id, 1_000, {"n": 1})
        two = await delay(guest, room_id, 2_000, {"n": 2})
        assert len((await guest.call("GET", UNSTABLE))["delayed_events"]) == 2
        for action in ("restart", "send"):
            assert (await manage(guest, two, action)).status == 200
        assert (await manage(guest, two, "send", UNSTABLE)).status == 200
        await fire(homeserver, 1_000)
        assert "event_id" in (await outcome(guest, one) or {})
        assert [event["content"]["n"] for event in await sent(alice, room_id)] == [2, 1]


async def test_d_19_but_not_to_enter_where_guests_may_not(
    database_url: str, tmp_path: Path
) -> None:
    async with running_homeserver(
        database_url, tmp_path, clock=ManualClock(), allow_guests=True
    ) as homeserver:
        alice = await homeserver.register("alice")
        room_id = await alice.create_room()
        await alice.put_state(room_id, "m.room.guest_access", {"guest_access": "forbidden"})
        answer = await homeserver.stranger().call("POST", "/register", {}, kind="guest")
        guest = User(homeserver, answer["user_id"], answer["access_token"])
        join = await delay(
            guest, room_id, 1_000, {"membership": "join"}, event_type="m.room.member",
            state_key=guest.user_id,
        )  # fmt: skip
        await fire(homeserver, 1_000)
        error = (await outcome(guest, join) or {})["error"]
        assert error["errcode"] == "M_GUEST_ACCESS_FORBIDDEN"


async def test_d_20_newer_state_does_not_cancel_a_delayed_one(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver, power_level_content_override={
        "state_default": 0,
    })  # fmt: skip
    await delay(alice, room_id, 1_000, {"by": "alice"}, state_key="")
    await bob.put_state(room_id, EVENT, {"by": "bob"})
    await alice.put_state(room_id, EVENT, {"by": "alice, earlier"})
    await fire(homeserver, 1_000)
    assert (await state(bob, room_id, EVENT)).json == {"by": "alice"}


async def test_d_20_state_that_is_so_already_is_not_sent_again(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(alice, room_id, 1_000, {"on": 1}, state_key="")
    event_id = await alice.put_state(room_id, EVENT, {"on": 1})
    await fire(homeserver, 1_000)
    assert (await outcome(alice, delay_id) or {})["event_id"] == event_id
    assert len(await sent(bob, room_id)) == 1


async def test_d_21_it_is_advertised(homeserver: Homeserver) -> None:
    features = (await homeserver.stranger().call("GET", "/_matrix/client/versions"))[
        "unstable_features"
    ]
    assert features[unstable.FLAG_DELAYED_EVENTS] is True
    assert features[unstable.FLAG_DELAYED_EVENTS_STABLE] is True
    assert features[unstable.FLAG_REDACTION_BY_SEND] is True


@pytest.mark.parametrize("version", ["10", "11"])
async def test_d_22_a_redaction_can_be_delayed(homeserver: Homeserver, version: str) -> None:
    alice, bob, room_id = await room_of_two(homeserver, room_version=version)
    event_id = await alice.say(room_id, "this will vanish")
    content = {"redacts": event_id, "reason": "vanished"}
    await delay(alice, room_id, 1_000, content, event_type="m.room.redaction")
    event = await bob.call("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id)}")
    assert event["content"]["body"] == "this will vanish"
    await fire(homeserver, 1_000)
    event = await bob.call("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id)}")
    assert event["content"] == {}
    because = event["unsigned"]["redacted_because"]
    assert because["content"]["reason"] == "vanished"


# --- memberships, accounts, devices ------------------------------------------------------------


async def test_memberships_go_their_usual_way(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    carol = await homeserver.register("carol")
    await carol.call("PUT", f"/profile/{quote(carol.user_id)}/displayname", {"displayname": "C"})

    async def member(user: User, target: User, membership: str) -> dict:
        delay_id = await delay(
            user, room_id, 10, {"membership": membership}, event_type="m.room.member",
            state_key=target.user_id,
        )  # fmt: skip
        await fire(homeserver, 10)
        return await outcome(user, delay_id) or {}

    assert "event_id" in await member(carol, carol, "join")
    now = (await state(alice, room_id, "m.room.member", carol.user_id)).json
    assert (now["membership"], now["displayname"]) == ("join", "C")
    assert (await member(bob, carol, "leave"))["error"]["errcode"] == "M_FORBIDDEN"
    assert "event_id" in await member(alice, carol, "leave")
    assert "event_id" in await member(alice, carol, "invite")
    assert room_id in (await carol.sync())["rooms"]["invite"]
    assert "event_id" in await member(carol, carol, "leave")
    (_, *_, left) = await sent(alice, room_id, "m.room.member")
    assert (left["state_key"], left["content"]["membership"]) == (carol.user_id, "leave")


async def test_memberships_that_need_other_servers_are_sent_once_too(
    federation: Federation,
) -> None:
    hs1, hs2 = await federation.start("hs1"), await federation.start("hs2")
    alice, bob = await hs1.register("alice"), await hs2.register("bob")
    room_id = await alice.create_room(preset="private_chat")
    member = {"event_type": "m.room.member", "state_key": bob.user_id}
    invite = await delay(alice, room_id, 1_000, {"membership": "invite"}, **member)
    join = await delay(bob, room_id, 2_000, {"membership": "join"}, **member)
    leave = await delay(bob, room_id, 3_000, {"membership": "leave"}, **member)
    for server, user, delay_id, membership in (
        (hs1, alice, invite, "invite"),
        (hs2, bob, join, "join"),
        (hs2, bob, leave, "leave"),
    ):
        await fire(server, 1_000)
        end = await outcome(user, delay_id) or {}
        shown = await user.call(
            "GET", f"/rooms/{quote(room_id)}/state/m.room.member/{bob.user_id}", format="event"
        )
        assert (shown["content"]["membership"], shown["event_id"]) == (membership, end["event_id"])
    await fire(hs2, 60_000)
    own = [e for e in await sent(bob, room_id, "m.room.member") if e["sender"] == bob.user_id]
    assert [e["content"]["membership"] for e in own] == ["join", "leave"]


async def test_what_is_due_reaches_the_other_servers_of_the_room(federation: Federation) -> None:
    servers = await start_servers(federation, "hs1", "hs2", "hs3")
    alice, bob, carol = [
        await server.register(name)
        for server, name in zip(servers, ("alice", "bob", "carol"), strict=True)
    ]
    room_id = await alice.create_room()
    for user in (bob, carol):
        await user.call("POST", f"/join/{quote(room_id)}", {}, via="hs1")
    await quiet(servers)
    delay_id = await delay(bob, room_id, 1_000, {"n": 1})
    federation.network.isolate("hs3")
    await fire(servers[1], 1_000)
    await quiet(servers)
    federation.network.heal()
    await pass_time(servers, federation.network.clock, 20_000)  # type: ignore[arg-type]  # manual
    for user in (alice, bob, carol):
        (event,) = await sent(user, room_id)
        for name in DELAY_IDS:
            assert event["unsigned"].get(name) == (delay_id if user is bob else None)


async def test_deactivation_cancels_everything_for_good(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    message = await delay(bob, room_id, 1_000)
    await delay(
        bob, room_id, 2_000, {"membership": "join"}, event_type="m.room.member",
        state_key=bob.user_id,
    )  # fmt: skip
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "bob"},
        "password": PASSWORD,
    }
    await bob.call("POST", "/account/deactivate", {"auth": auth})
    await fire(homeserver, 2_000)
    assert await sent(alice, room_id) == []
    now = (await state(alice, room_id, "m.room.member", bob.user_id)).json
    assert now["membership"] == "leave"
    row = await rows.fetch_delayed_event(homeserver.services.db, message)
    assert row is not None
    assert (row.finalised_ms is not None, row.event_id, row.error) == (True, None, None)


async def test_a_user_who_was_deactivated_while_asking_schedules_nothing(
    homeserver: Homeserver,
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    services = homeserver.services
    draft = delayed_events.DelayedDraft(room_id, EVENT, None, {}, 10)
    await services.db.execute(
        "UPDATE accounts SET deactivated_ms = 1 WHERE user_id = $1", bob.user_id
    )
    with pytest.raises(Exception, match="deactivated"):
        await delayed_events.schedule(services, bob.user_id, draft, None)  # type: ignore[arg-type]
    await fire(homeserver, 10)
    assert await sent(alice, room_id) == []


async def test_a_client_that_logs_out_has_its_events_sent(homeserver: Homeserver) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    await delay(bob, room_id, 1_000)
    await bob.call("POST", "/logout", {})
    await fire(homeserver, 1_000)
    assert len(await sent(alice, room_id)) == 1


async def test_a_room_that_nobody_knows_fails_when_it_is_due(homeserver: Homeserver) -> None:
    alice = await homeserver.register("alice")
    delay_id = await delay(alice, "!nowhere:hs1", 1_000)
    await fire(homeserver, 1_000)
    assert (await outcome(alice, delay_id) or {})["error"]["errcode"] == "M_FORBIDDEN"
    response = await manage(alice, await delay(alice, "!nowhere:hs1", 1_000), "send")
    plain = await alice.request("PUT", f"/rooms/!nowhere:hs1/send/{EVENT}/x", {})
    assert (response.status, response.json["errcode"]) == (plain.status, plain.json["errcode"])


# --- sticky ------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["merged", "former"])
async def test_a_delayed_event_becomes_sticky_when_it_is_sent(
    homeserver: Homeserver, generation: str
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    sticky = {unstable.STICKY_DURATION_PARAMETER.unstable: "60000"}
    if generation == "merged":
        delay_id = await delay(alice, room_id, 600_000, **sticky)
    else:
        path = f"/rooms/{quote(room_id)}/send/{EVENT}/sticky"
        answer = await alice.call("PUT", path, {"n": 1}, **sticky, **{PARAMETER: "600000"})
        delay_id = answer["delay_id"]
    await fire(homeserver, 600_000)
    advance_ms(homeserver, 20_000)
    for user in (alice, bob):
        (event,) = await sent(user, room_id)
        assert event[unstable.STICKY.unstable] == {"duration_ms": 60_000}
        assert event["unsigned"][unstable.STICKY_TTL.unstable] == 40_000
        for name in DELAY_IDS:
            assert event["unsigned"].get(name) == (delay_id if user is alice else None)


async def test_a_stickiness_that_is_none_is_refused_when_it_is_scheduled(
    homeserver: Homeserver,
) -> None:
    alice, _, room_id = await room_of_two(homeserver)
    sticky = {unstable.STICKY_DURATION_PARAMETER.unstable: "-1"}
    response = await put(alice, room_id, {"delay_ms": 10, "content": {}}, **sticky)
    assert (response.status, response.json["errcode"]) == (400, "M_INVALID_PARAM")


# --- once or never -----------------------------------------------------------------------------


async def test_two_processes_that_send_at_once_send_one(database_url: str, tmp_path: Path) -> None:
    async with running_homeserver(
        database_url, tmp_path, clock=ManualClock(), workers=2
    ) as homeserver:
        alice, bob, room_id = await room_of_two(homeserver)
        ids = [await delay(alice, room_id, 1_000, {"n": n}) for n in range(10)]
        advance_ms(homeserver, 1_000)
        senders = [worker.Sender(services) for services in homeserver.workers]
        for sender in senders:
            await sender.begin()
        by_hand = [manage(alice, delay_id, "send") for delay_id in ids]
        answers = await asyncio.gather(*by_hand, *(sender.finish() for sender in senders))
        assert [r.status for r in answers if r is not None] == [200] * 10
        events = await sent(bob, room_id)
        assert sorted(event["content"]["n"] for event in events) == [*range(10)]
        by_content = {event["content"]["n"]: event["event_id"] for event in events}
        for n, delay_id in enumerate(ids):
            assert (await outcome(alice, delay_id) or {})["event_id"] == by_content[n]


@pytest.mark.parametrize("action", ["cancel", "restart"])
async def test_what_is_cancelled_or_restarted_at_the_last_moment_is_not_sent(
    homeserver: Homeserver, action: str
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(alice, room_id, 1_000)
    other = await alice.create_room()
    services = homeserver.services
    advance_ms(homeserver, 1_000)
    sender = worker.Sender(services)
    async with services.db.transaction() as tx:
        # The statement that commits the event comes to wait here.
        await tx.execute(
            "SELECT FROM delayed_events WHERE delay_id = $1 FOR NO KEY UPDATE", delay_id
        )
        await sender.begin()
        await until(lambda: services.heads.slot(room_id).head is not None
                    and services.heads.slot(room_id).head.cursor.pending is not None)  # fmt: skip
        beside = asyncio.create_task(send_at(services, other, alice.user_id, "beside"))
        done = rows.cancel if action == "cancel" else rows.restart
        assert await done(tx, delay_id, homeserver.clock.now_ms())
    await sender.finish()
    await beside
    assert await sent(bob, room_id) == []
    assert len(await sent(alice, other, "m.room.message")) == 1
    await bob.say(room_id, "the room goes on")
    end = await outcome(alice, delay_id)
    assert (end is None) == (action == "restart")
    await fire(homeserver, 1_000)
    assert len(await sent(bob, room_id)) == (action == "restart")


async def test_a_process_that_dies_before_the_commit_leaves_it_to_the_next(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(alice, room_id, 1_000)
    committer = homeserver.services.committer

    def dies(*_args: object, **_more: object) -> asyncio.Future[int]:
        raise Unavailable("killed")

    with monkeypatch.context() as patch:
        patch.setattr(committer, "commit_events", dies)
        await fire(homeserver, 1_000)
    assert await outcome(alice, delay_id) is None
    assert await sent(bob, room_id) == []
    await fire(homeserver)
    await fire(homeserver)
    (event,) = await sent(bob, room_id)
    assert (await outcome(alice, delay_id) or {})["event_id"] == event["event_id"]


async def test_a_process_that_dies_after_the_commit_has_sent_it(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(alice, room_id, 1_000)
    committer = homeserver.services.committer
    commit_events = committer.commit_events

    def dies(*args: object, **more: object) -> asyncio.Future[int]:
        async def hear_nothing() -> int:
            await commit_events(*args, **more)  # type: ignore[arg-type]
            raise Unavailable("killed")

        return asyncio.ensure_future(hear_nothing())

    with monkeypatch.context() as patch:
        patch.setattr(committer, "commit_events", dies)
        await fire(homeserver, 1_000)
    (event,) = await sent(bob, room_id)
    assert (await outcome(alice, delay_id) or {})["event_id"] == event["event_id"]
    await fire(homeserver, 90_000)
    assert (await manage(alice, delay_id, "send")).status == 200
    assert len(await sent(bob, room_id)) == 1


async def test_trouble_of_the_server_itself_is_tried_again_for_a_minute(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    first = await delay(alice, room_id, 1_000, {"n": 1})
    second = await delay(alice, room_id, 1_001, {"n": 2})
    sender = worker.Sender(homeserver.services)

    def refuses(*_args: object, **_more: object) -> asyncio.Future[int]:
        raise Unavailable("too busy")

    with monkeypatch.context() as patch:
        patch.setattr(homeserver.services.committer, "commit_events", refuses)
        for _ in range(6):
            advance_ms(homeserver, 10_000)
            await sender.begin()
            await sender.finish()
        assert await outcome(alice, first) is None
        advance_ms(homeserver, 1_000)
        await sender.begin()
        await sender.finish()
    assert (await outcome(alice, first) or {})["error"]["error"] == "too busy"
    assert await outcome(alice, second) is None, "it has some milliseconds left"
    await sender.begin()
    await sender.finish()
    assert [event["content"]["n"] for event in await sent(bob, room_id)] == [2]


async def test_no_event_is_given_up_because_the_database_was_away_for_long(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    delay_id = await delay(alice, room_id, 1_000)
    sender = worker.Sender(homeserver.services)

    def away(*_args: object, **_more: object) -> asyncio.Future[int]:
        raise DatabaseAway

    with monkeypatch.context() as patch:
        patch.setattr(homeserver.services.committer, "commit_events", away)
        for _ in range(3):
            advance_ms(homeserver, 120_000)
            await sender.begin()
            await sender.finish()
    assert await outcome(alice, delay_id) is None
    await sender.begin()
    await sender.finish()
    assert len(await sent(bob, room_id)) == 1


async def test_a_fault_of_ours_ends_one_event_and_no_other(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob, room_id = await room_of_two(homeserver)
    broken = await delay(alice, room_id, 1_000, {"n": 1}, event_type="org.example.broken")
    await delay(alice, room_id, 1_001, {"n": 2})
    send_message = delayed_sending.send_message

    async def stumble(*args: object, **more: object) -> object:
        if "org.example.broken" in args:
            raise ZeroDivisionError
        return await send_message(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(delayed_sending, "send_message", stumble)
    await fire(homeserver, 1_001)
    assert (await outcome(alice, broken) or {})["error"]["errcode"] == "M_UNKNOWN"
    assert "cannot be sent" in caplog.text
    assert len(await sent(bob, room_id)) == 1


async def test_a_room_that_takes_its_time_holds_up_no_other(homeserver: Homeserver) -> None:
    alice, bob, slow = await room_of_two(homeserver)
    quick = await alice.create_room()
    await bob.join(quick)
    await delay(alice, slow, 1_000)
    await delay(alice, quick, 1_001)
    sender = worker.Sender(homeserver.services)
    async with building(homeserver.services, slow):  # type: ignore[arg-type]  # a room id
        advance_ms(homeserver, 1_001)
        await sender.begin()

        async def quick_is_there() -> bool:
            return bool(await sent(bob, quick))

        await until(quick_is_there)
        await sender.begin()
        assert await sent(bob, slow) == []
    await sender.finish()
    assert len(await sent(bob, slow)) == 1


SLOW = "org.example.slow"


@pytest.fixture
def slow_events(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], asyncio.Event]:
    """Rooms in which a slow event is being sent, and what lets all of them go on."""
    under_way: list[str] = []
    released = asyncio.Event()
    send_message = delayed_sending.send_message

    async def hesitate(*args: object, **more: object) -> object:
        if SLOW in args:
            under_way.append(str(args[2]))
            await released.wait()
        return await send_message(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(delayed_sending, "send_message", hesitate)
    return under_way, released


async def test_for_what_takes_its_time_its_sender_waits_alone(
    homeserver: Homeserver, slow_events: tuple[list[str], asyncio.Event]
) -> None:
    """An invite to a server that does not answer, for instance."""
    under_way, released = slow_events
    alice, bob, room_id = await room_of_two(homeserver)
    await delay(alice, room_id, 1_000, event_type=SLOW)
    await delay(alice, room_id, 1_001, {"n": "after it"})
    await delay(bob, room_id, 1_002, {"n": "of somebody else"})
    sender = worker.Sender(homeserver.services)
    advance_ms(homeserver, 1_002)
    await sender.begin()

    async def is_under_way() -> bool:
        return under_way == [room_id]

    async def is_sent() -> bool:
        return bool(await sent(bob, room_id))

    await until(is_under_way)
    advance_ms(homeserver, worker.PATIENCE_MS)
    await until(is_sent)
    await until(lambda: _is_idle(sender))
    await sender.begin()
    assert [event["content"]["n"] for event in await sent(bob, room_id)] == ["of somebody else"]
    released.set()
    await sender.finish()
    await sender.begin()
    await sender.finish()
    assert [e["content"]["n"] for e in await sent(bob, room_id)] == ["of somebody else", "after it"]
    (slow,) = await sent(bob, room_id, SLOW)
    (after_it,) = (e for e in await sent(bob, room_id) if e["content"]["n"] == "after it")
    assert slow["origin_server_ts"] <= after_it["origin_server_ts"]


async def _is_idle(sender: worker.Sender) -> bool:
    return not sender._rooms


async def test_nobody_keeps_all_rooms_busy(
    homeserver: Homeserver,
    slow_events: tuple[list[str], asyncio.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "ROOMS_AT_ONCE", 3)
    monkeypatch.setattr(worker, "ROOMS_OF_A_USER_AT_ONCE", 2)
    under_way, released = slow_events
    alice, bob, room_id = await room_of_two(homeserver)
    rooms = [await alice.create_room() for _ in range(4)]
    for busy in rooms:
        await delay(alice, busy, 1_000, event_type=SLOW)
    await delay(bob, room_id, 1_001)
    sender = worker.Sender(homeserver.services)
    advance_ms(homeserver, 1_001)

    async def is_sent() -> bool:
        return bool(await sent(bob, room_id))

    await sender.begin()
    await until(is_sent)
    await until(lambda: len(under_way) == 2)
    await sender.begin()
    assert len(under_way) == 2
    released.set()
    await sender.finish()
    await sender.begin()
    await sender.finish()
    assert sorted(under_way) == sorted(rooms)
