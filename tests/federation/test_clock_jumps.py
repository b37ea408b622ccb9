"""The wall clock is set while the server runs: D05 of the list of attacks.

An hour or ten years, ahead or back: what was to last a while lasts about that while, and nothing
waits for years. What lives by the wall clock, as on other servers, may end early or late by as much
as is said here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from minihs.api.rate_limits import LIMITS
from minihs.base.errors import DatabaseAway
from minihs.protocol.stickiness import STICKY_DURATION_MS_MAX
from minihs.services.accounts.authentication import LAST_SEEN_TASK
from minihs.services.encryption import to_device
from minihs.services.ephemeral import presence
from minihs.services.federation import transactions
from minihs.services.rooms import sticky_events as stickiness
from minihs.services.server_keys import PAUSE_MS_MIN
from minihs.storage import sticky_events
from minihs.workers import clock_watch
from minihs.workers import delayed_events as worker
from tests.api.test_presence import polls, status
from tests.api.test_typing_notifications import types, typing_in
from tests.conformance.test_msc4140 import delay, sent
from tests.conformance.test_msc4354 import stick
from tests.helpers.deliveries import Peer, begin, pass_time, settled
from tests.helpers.homeserver import PASSWORD, User
from tests.helpers.mirror import push
from tests.helpers.remote_members import put_member
from tests.helpers.rooms import MALLORY
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from minihs.base.clock import ManualClock
    from minihs.storage.database import Queries
    from tests.helpers.homeserver import Homeserver
    from tests.helpers.network import EvilServer, Federation
    from tests.helpers.rooms import Room

HOUR_MS = 3_600_000
TEN_YEARS_MS = 10 * 365 * 24 * HOUR_MS
STEPS = {"hour-ahead": HOUR_MS, "hour-back": -HOUR_MS,
         "years-ahead": TEN_YEARS_MS, "years-back": -TEN_YEARS_MS}  # fmt: skip
steps = pytest.mark.parametrize("step_ms", STEPS.values(), ids=STEPS)


@steps
async def test_D05_tokens_hold_or_can_be_refreshed(
    hs1: Homeserver, alice: User, clock: ManualClock, step_ms: int
):
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": PASSWORD,
        "refresh_token": True,
    }
    login = (await hs1.request("POST", "/login", body)).json
    brief = User(hs1, alice.user_id, login["access_token"])

    clock.step_ms(step_ms)

    await alice.call("GET", "/account/whoami")  # It has no end.
    answer = await brief.request("GET", "/account/whoami")
    if answer.status != 200:
        assert answer.json["soft_logout"] is True
    renewed = await hs1.request("POST", "/refresh", {"refresh_token": login["refresh_token"]})
    brief = User(hs1, alice.user_id, renewed.json["access_token"])
    await brief.call("GET", "/account/whoami")
    clock.advance_ms(HOUR_MS)
    assert (await brief.request("GET", "/account/whoami")).status == 401


async def test_D05_no_token_of_a_time_to_come_holds_for_years(
    hs1: Homeserver, alice: User, clock: ManualClock
):
    clock.step_ms(TEN_YEARS_MS)
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": PASSWORD,
        "refresh_token": True,
    }
    login = (await hs1.request("POST", "/login", body)).json
    path = f"/user/{quote(alice.user_id)}/openid/request_token"
    openid = (await alice.call("POST", path, {}))["access_token"]
    clock.step_ms(-TEN_YEARS_MS)
    clock.advance_ms(HOUR_MS)

    answer = await User(hs1, alice.user_id, login["access_token"]).request("GET", "/sync")

    assert (answer.status, answer.json["soft_logout"]) == (401, True)
    userinfo = "/_matrix/federation/v1/openid/userinfo"
    assert (await hs1.request("GET", userinfo, query={"access_token": openid})).status == 401


@steps
async def test_D05_when_a_device_was_seen_is_noted_again(
    hs1: Homeserver, alice: User, clock: ManualClock, step_ms: int
):
    clock.step_ms(step_ms)
    await alice.call("GET", "/account/whoami")

    async def is_noted() -> bool:
        (device,) = (await alice.call("GET", "/devices"))["devices"]
        return device["last_seen_ts"] == clock.now_ms()

    await until(is_noted)
    assert LAST_SEEN_TASK not in hs1.services.tasks.down


@steps
async def test_D05_a_confirmation_that_was_begun_can_be_made(
    alice: User, clock: ManualClock, step_ms: int
):
    path, body = "/delete_devices", {"devices": ["none"]}
    session = (await alice.request("POST", path, body)).json["session"]
    clock.step_ms(step_ms)

    def auth(session: str) -> dict[str, object]:
        user = {"type": "m.id.user", "user": "alice"}
        proof = {"type": "m.login.password", "identifier": user, "password": PASSWORD}
        return body | {"auth": proof | {"session": session}}

    answer = await alice.request("POST", path, auth(session))
    if answer.status == 401:  # It has expired: another can be begun.
        session = (await alice.request("POST", path, body)).json["session"]
        answer = await alice.request("POST", path, auth(session))
    assert answer.status == 200


@steps
async def test_D05_a_server_is_tried_again_as_soon_as_it_would_have_been(
    federation: Federation, hs1: Homeserver, alice: User, clock: ManualClock, step_ms: int
):
    await begin(hs1.services)
    peer = Peer(federation.evil("peer"))
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, peer.user)
    federation.network.isolate("peer")
    await alice.say(room_id, "hello")
    await settled(hs1.services)
    delivery = hs1.services.delivery
    assert delivery.is_backing_off("peer")
    federation.network.heal()

    clock.step_ms(step_ms)
    await pass_time(hs1.services, clock, 6_000)

    assert not delivery.is_backing_off("peer")
    assert peer.bodies == ["hello"]


async def test_D05_a_pause_that_was_written_down_ahead_does_not_last_for_years(
    federation: Federation, hs1: Homeserver, alice: User, clock: ManualClock
):
    clock.step_ms(TEN_YEARS_MS)
    await begin(hs1.services)
    peer = Peer(federation.evil("peer"))
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, peer.user)
    federation.network.isolate("peer")
    await alice.say(room_id, "hello")
    await settled(hs1.services)
    federation.network.heal()
    clock.step_ms(-TEN_YEARS_MS)
    hs1.services.delivery._ahead_ms -= TEN_YEARS_MS  # As if the process had begun now.

    await pass_time(hs1.services, clock, 6_000)

    assert peer.bodies == ["hello"]


async def test_D05_the_pace_of_deliveries_forgets_what_was_sent_before(
    federation: Federation, hs1: Homeserver, alice: User, clock: ManualClock
):
    await begin(hs1.services)
    peer = Peer(federation.evil("peer"))
    room_id = await alice.create_room()
    await put_member(hs1.services, room_id, peer.user)
    for number in range(60):
        await alice.say(room_id, str(number))
        await settled(hs1.services)
        clock.advance_ms(1_000)
        clock.step_ms(-2_000)  # Whatever the clock does.
        await hs1.services.delivery.hold_shards(hs1.services, "the only one")
    assert len(peer.bodies) == 60
    assert hs1.services.delivery.outbox.destinations["peer"].pace_ms == 0


@steps
async def test_D05_typing_ends_in_time(
    hs1: Homeserver, alice: User, clock: ManualClock, step_ms: int
):
    bob = await hs1.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await types(alice, room_id, 30_000)
    assert typing_in(await bob.sync(), room_id) == [alice.user_id]

    clock.step_ms(step_ms)
    clock.advance_ms(30_000)

    async def nobody_types() -> bool:
        return typing_in(await bob.sync(), room_id) == []

    await until(nobody_types)


@steps
async def test_D05_who_is_gone_is_offline_in_time(
    hs1: Homeserver, alice: User, clock: ManualClock, step_ms: int
):
    bob = await hs1.register("bob")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await polls(alice)

    async def is_so(state: str) -> bool:
        clock.advance_ms(500)  # Changes are gathered for a second.
        return (await status(bob, alice))["presence"] == state

    await until(lambda: is_so("online"))
    clock.step_ms(step_ms)
    await presence.expire(hs1.services)
    await polls(alice)
    await until(lambda: is_so("online"))
    for _ in range(5):
        clock.advance_ms(presence.THERE_MS_MAX // 4)
        await hs1.services.presence.renew(hs1.services)
        await presence.expire(hs1.services)
    await until(lambda: is_so("offline"))
    assert (await status(bob, alice))["presence"] == "offline", "and stays so"


@steps
async def test_D05_what_is_sticky_ends_in_time(
    hs1: Homeserver, alice: User, clock: ManualClock, step_ms: int
):
    room_id = await alice.create_room()
    await stick(alice, room_id, ms=600_000)
    timers = len(clock._timers)
    clock_watch.start(hs1.services)
    await until(lambda: len(clock._timers) > timers)
    clock.step_ms(step_ms)

    async def live() -> int:
        return (
            await sticky_events.count_live(hs1.services.db, room_id, alice.user_id, clock.now_ms())
        )[0]

    if step_ms > 0:  # It ends early; and if the clock was wrong, it goes on where it was.
        await stickiness.forget_expired(hs1.services)
        assert await live() == 0
        clock.step_ms(-step_ms)
        assert await live() == 1
        return
    clock.advance_ms(clock_watch.INTERVAL_MS)

    async def follows() -> bool:
        row = await hs1.services.db.fetchrow("SELECT until_ms FROM sticky_events")
        return row is not None and row[0] <= clock.now_ms() + 600_000

    await until(follows)
    assert await live() == 1
    clock.advance_ms(600_000)
    assert await live() == 0


async def test_D05_what_is_sticky_ends_in_time_if_the_clock_was_set_while_the_database_was_away(
    hs1: Homeserver, alice: User, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    room_id = await alice.create_room()
    await stick(alice, room_id, ms=600_000)
    timers = len(clock._timers)
    clock_watch.start(hs1.services)
    await until(lambda: len(clock._timers) > timers)
    bring_forward, failures = sticky_events.bring_forward, [DatabaseAway()]

    async def fail_first(queries: Queries, latest_ms: int, by_ms: int) -> None:
        if failures:
            raise failures.pop()
        await bring_forward(queries, latest_ms, by_ms)

    monkeypatch.setattr(sticky_events, "bring_forward", fail_first)
    clock.step_ms(-TEN_YEARS_MS)
    end_ms = clock.now_ms() + 600_000

    async def follows() -> bool:
        clock.advance_ms(clock_watch.INTERVAL_MS)
        return await hs1.services.db.fetchval("SELECT until_ms FROM sticky_events") == end_ms

    await until(follows)
    assert not failures


async def test_D05_what_became_sticky_ahead_does_not_stay_so_for_years_in_the_next_process(
    hs1: Homeserver, alice: User, clock: ManualClock
):
    room_id = await alice.create_room()
    clock.step_ms(TEN_YEARS_MS)
    await stick(alice, room_id, ms=600_000)
    clock.step_ms(-TEN_YEARS_MS)
    end_ms = clock.now_ms() + STICKY_DURATION_MS_MAX

    clock_watch.start(hs1.services)

    async def follows() -> bool:
        return await hs1.services.db.fetchval("SELECT until_ms FROM sticky_events") == end_ms

    await until(follows)
    clock.advance_ms(STICKY_DURATION_MS_MAX)
    await stickiness.forget_expired(hs1.services)
    assert await hs1.services.db.fetchval("SELECT count(*) FROM sticky_events") == 0


@pytest.mark.parametrize("step_ms", [-HOUR_MS, -TEN_YEARS_MS, TEN_YEARS_MS])
async def test_D05_delayed_events_are_sent_after_about_their_delay(
    hs1: Homeserver, alice: User, clock: ManualClock, step_ms: int
):
    room_id = await alice.create_room()
    sender = worker.Sender(hs1.services)
    await delay(alice, room_id, 60_000)
    clock.step_ms(step_ms)
    await sender.begin()
    clock.advance_ms(59_000)
    await sender.begin()
    await sender.finish()
    assert await sent(alice, room_id) == []

    clock.advance_ms(2_000)
    await sender.begin()
    await sender.finish()

    assert len(await sent(alice, room_id)) == 1


async def test_D05_what_was_scheduled_ahead_is_not_waited_for_by_the_next_process(
    hs1: Homeserver, alice: User, clock: ManualClock
):
    room_id = await alice.create_room()
    clock.step_ms(TEN_YEARS_MS)
    await delay(alice, room_id, 60_000)
    clock.step_ms(-TEN_YEARS_MS)
    sender = worker.Sender(hs1.services)
    await sender.begin()
    clock.advance_ms(61_000)
    await sender.begin()
    await sender.finish()

    assert len(await sent(alice, room_id)) == 1


@steps
async def test_D05_what_comes_twice_is_done_once(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock, step_ms: int
):
    path = "/sendToDevice/m.test/t1"
    messages = {"messages": {alice.user_id: {"*": {"n": 1}}}}
    await alice.call("PUT", path, messages)
    said = await alice.call("PUT", f"/rooms/{quote(room.room_id)}/send/m.x/t2", {})
    edu = {"edu_type": "m.direct_to_device",
           "content": {"sender": MALLORY, "type": "m.test", "message_id": "1",
                       "messages": {alice.user_id: {"*": {"n": 2}}}}}  # fmt: skip
    content = {"origin": "evil", "origin_server_ts": 1, "pdus": [], "edus": [edu]}
    await evil.remote.send_transaction("hs1", "t3", content)

    clock.step_ms(step_ms)
    await transactions.forget_old(hs1.services)
    await to_device.forget_old_sends(hs1.services)

    await alice.call("PUT", path, messages)
    again = await alice.call("PUT", f"/rooms/{quote(room.room_id)}/send/m.x/t2", {})
    await evil.remote.send_transaction("hs1", "t3", content)
    assert again == said
    alice.since = None
    events = (await alice.sync())["to_device"]["events"]
    assert sorted(event["content"]["n"] for event in events) == [1, 2]


@steps
async def test_D05_rate_limits_let_in_again_in_time(
    federation: Federation, clock: ManualClock, step_ms: int
):
    server = await federation.start("hs2", rate_limits="on")
    kind = LIMITS["login"]
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "nobody"},
        "password": "wrong",
    }
    answers = [(await server.request("POST", "/login", body)).status for _ in range(kind.burst + 1)]
    assert answers[-1] == 429
    clock.step_ms(step_ms)
    refused = await server.request("POST", "/login", body)
    assert refused.status == 429
    clock.advance_ms(refused.json["retry_after_ms"])
    assert (await server.request("POST", "/login", body)).status == 403
    assert refused.json["retry_after_ms"] <= kind.interval_ms * kind.burst


@steps
async def test_D05_a_server_whose_keys_could_not_be_had_is_asked_again_in_time(
    federation: Federation, hs1: Homeserver, clock: ManualClock, step_ms: int
):
    evil = federation.evil("late")
    query = [("user_id", "@nobody:hs1")]
    path = "/_matrix/federation/v1/query/profile"
    clock.step_ms(step_ms)
    evil.on("GET", "/_matrix/key/v2/server", {})
    refused = await evil.request("hs1", "GET", path, query=query)
    assert getattr(refused, "status", 200) == 401
    clock.step_ms(-step_ms)
    evil.on("GET", "/_matrix/key/v2/server", lambda _: evil.key_object())
    clock.advance_ms(PAUSE_MS_MIN)

    answer = await evil.request("hs1", "GET", path, query=query)

    assert getattr(answer, "status", 200) == 404


@steps
async def test_D05_what_happens_then_is_of_the_time_that_the_clock_shows(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock, step_ms: int
):
    await alice.create_room()
    clock.step_ms(step_ms)

    room_id = await alice.create_room()
    said = await alice.say(room_id, "hello")
    page = await alice.call("GET", f"/rooms/{quote(room_id)}/messages", dir="f", limit="100")
    message = room.send(MALLORY, "m.room.message", {"body": "hello"})

    assert {event["origin_server_ts"] for event in page["chunk"]} <= {
        clock.now_ms(), clock.now_ms() + 1
    }  # fmt: skip
    assert page["chunk"][-1]["event_id"] == said
    assert await push(evil, hs1, [message]) == {message.event_id: {}}
