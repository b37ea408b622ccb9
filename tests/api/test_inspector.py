"""The inspector: who may look, what is shown, and that every string of a room stays text."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
import pytest
from typing_extensions import override

from minihs.api.inspector import graph, pages, rendering
from minihs.base.clock import ManualClock
from minihs.protocol import unstable
from minihs.services.inspector import rooms, sticky_events
from minihs.services.inspector.access import SESSION_LIFETIME_MS
from minihs.services.inspector.events import ShownEvent
from minihs.services.inspector.sticky_events import ServerView, delivery_state
from minihs.services.rooms.redact_on_ban import PURGE_AFTER_MS, purge_redacted
from tests.helpers.browser import chromium, find_chromium
from tests.helpers.deliveries import settled
from tests.helpers.homeserver import running_homeserver
from tests.helpers.inspected_room import (
    ERIN,
    GARDEN,
    MALLORY,
    MINUTE_MS,
    NAME,
    REFUSES,
    SERVER,
    TAKES,
    make_admin,
    make_inspected_room,
    stick,
)
from tests.helpers.network import running_federation
from tests.helpers.remote_members import put_member

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver, User
    from tests.helpers.inspected_room import InspectedRoom
    from tests.helpers.postgres import TestServers

ROOT = "/_minihs/inspect"
HTML = {"Accept": "text/html,application/xhtml+xml"}
JSON = {"Accept": "application/json"}
PAYLOAD = """'"><script>alert(1)</script><img src=x onerror=alert(1)>--></style>{{7*7}}{%if%}"""


def bearer(user: User) -> dict[str, str]:
    return {"Authorization": f"Bearer {user.token}"}


def room_path(room_id: str) -> str:
    return f"{ROOT}/rooms/{quote(room_id, safe='')}"


def event_path(room_id: str, event_id: str) -> str:
    return f"{room_path(room_id)}/events/{quote(event_id, safe='')}"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back, redirects not followed."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.text)


async def get(
    homeserver: Homeserver, path: str, user: User | None = None, **headers: str
) -> Answer:
    """Get a page as JSON, unless another `Accept` is given; the browser's cookies are sent."""
    sent = {**JSON, **(bearer(user) if user is not None else {}), **headers}
    async with homeserver.client.get(path, headers=sent, allow_redirects=False) as answer:
        return Answer(answer.status, answer.headers, await answer.text())


async def post(
    homeserver: Homeserver, path: str, form: Mapping[str, str], **headers: str
) -> Answer:
    """Send a form, as a browser does."""
    async with homeserver.client.post(
        path, data=form, headers={**HTML, **headers}, allow_redirects=False
    ) as answer:
        return Answer(answer.status, answer.headers, await answer.text())


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def homeserver(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Homeserver]:
    """A homeserver with the inspector switched on."""
    async with running_homeserver(database_url, tmp_path, clock=clock, inspector=True) as server:
        yield server


@pytest.fixture
async def inspected(
    postgres_servers: TestServers, postgres_version: str, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[InspectedRoom]:
    """A room in which there is something to see."""
    async with running_federation(
        lambda: postgres_servers.database(postgres_version), tmp_path, clock=clock
    ) as federation:
        yield await make_inspected_room(federation, clock)


# --- who may look ------------------------------------------------------------------------------


async def test_P03_it_is_off_unless_it_is_switched_on(database_url: str, tmp_path: Path) -> None:
    async with running_homeserver(database_url, tmp_path) as homeserver:
        alice = await make_admin(homeserver, "alice")
        room_id = await alice.create_room()
        paths = ["", "/", "/?room=x", "/style.css", "/rooms/x", "/rooms/x/events/y"]
        answers = [await get(homeserver, ROOT + path, alice) for path in paths]
        answers.append(await get(homeserver, room_path(room_id), alice, **HTML))
        answers += [await post(homeserver, f"{ROOT}/{verb}", {}) for verb in ("login", "logout")]
    for answer in answers:
        assert (answer.status, answer.json["errcode"]) == (404, "M_UNRECOGNIZED")


async def test_P03_it_is_for_administrators(homeserver: Homeserver) -> None:
    admin, bob = await make_admin(homeserver, "alice"), await homeserver.register("bob")
    room_id = await bob.create_room(name="Bob's own")
    event_id = await bob.say(room_id, "a secret")
    for path in (f"{ROOT}/", room_path(room_id), event_path(room_id, event_id)):
        nobody = await get(homeserver, path)
        assert (nobody.status, nobody.json["errcode"]) == (401, "M_MISSING_TOKEN")
        stranger = await get(homeserver, path, Authorization="Bearer nonsense")
        assert (stranger.status, stranger.json["errcode"]) == (401, "M_UNKNOWN_TOKEN")
        user = await get(homeserver, path, bob)
        assert (user.status, user.json["errcode"]) == (403, "M_FORBIDDEN")
        in_url = await get(homeserver, f"{path}?access_token={admin.token}")
        assert in_url.status == 401  # A URL is no place for a token.
        page = await get(homeserver, path, bob, **HTML)
        assert page.status == 403
        assert "secret" not in page.text
        assert "Bob" not in page.text
        assert (await get(homeserver, path, admin)).status == 200


async def test_P03_who_looks_is_in_the_log(
    homeserver: Homeserver, caplog: pytest.LogCaptureFixture
) -> None:
    admin, bob = await make_admin(homeserver, "alice"), await homeserver.register("bob")
    with caplog.at_level("INFO", "minihs.api.inspector.pages"):
        await get(homeserver, f"{ROOT}/", bob)
        assert caplog.messages == []
        await get(homeserver, f"{ROOT}/", admin)
        assert caplog.messages == ["@alice:hs1 looks at the inspector"]


async def sign_in(homeserver: Homeserver, user: User) -> Answer:
    return await post(homeserver, f"{ROOT}/login", {"token": f" {user.token}\n"})


async def test_P02_a_browser_signs_in_with_a_token_and_out_again(homeserver: Homeserver) -> None:
    admin = await make_admin(homeserver, "alice")
    first = await get(homeserver, f"{ROOT}/", **HTML)
    assert first.status == 401
    assert 'type="password"' in first.text
    assert 'role="alert"' not in first.text

    answer = await sign_in(homeserver, admin)
    assert (answer.status, answer.headers["Location"]) == (303, f"{ROOT}/")
    cookie = answer.headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=Strict", f"Path={ROOT}", "Max-Age=3600"):
        assert part in cookie.split("; ")
    assert "Secure" not in cookie  # It came over plain HTTP.
    value = cookie.partition("=")[2].partition(";")[0]
    stored = await homeserver.services.db.fetch("SELECT * FROM inspector_sessions")
    assert len(stored) == 1
    assert value not in stored[0].values()
    assert admin.token not in stored[0].values()

    page = await get(homeserver, f"{ROOT}/", **HTML)
    assert page.status == 200
    assert "@alice:hs1" in page.text

    no_proof = await post(homeserver, f"{ROOT}/logout", {"proof": ""})
    assert no_proof.status == 403
    assert (await get(homeserver, f"{ROOT}/")).status == 200
    proof = page.text.partition('name="proof" value="')[2].partition('"')[0]
    out = await post(homeserver, f"{ROOT}/logout", {"proof": proof})
    assert out.status == 303
    assert "Max-Age=0" in out.headers["Set-Cookie"]
    again = await get(homeserver, f"{ROOT}/", Cookie=f"{pages.COOKIE}={value}")
    assert (again.status, again.json["errcode"]) == (401, "M_UNKNOWN_TOKEN")


async def test_P02_a_form_of_another_site_is_refused(homeserver: Homeserver) -> None:
    admin = await make_admin(homeserver, "alice")
    form = {"token": str(admin.token)}
    for site in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": site}
        answer = await post(homeserver, f"{ROOT}/login", form, **headers)
        assert answer.status == 403
        assert "Set-Cookie" not in answer.headers
        assert (await post(homeserver, f"{ROOT}/logout", {}, **headers)).status == 403
    same = {"Sec-Fetch-Site": "same-origin"}
    assert (await post(homeserver, f"{ROOT}/login", form, **same)).status == 303


@pytest.mark.parametrize("wrong", ["json", "too large", "too many fields", "a user's token"])
async def test_what_is_no_sign_in_is_refused(homeserver: Homeserver, wrong: str) -> None:
    bob = await homeserver.register("bob")
    path = f"{ROOT}/login"
    if wrong == "json":
        body = {"token": bob.token}
        async with homeserver.client.post(path, json=body, headers=JSON) as answer:
            assert (answer.status, (await answer.json())["errcode"]) == (400, "M_INVALID_PARAM")
        return
    form = {
        "too large": {"token": "x" * 9_000},
        "too many fields": {f"f{n}": "x" for n in range(20)},
        "a user's token": {"token": str(bob.token)},
    }[wrong]
    refused = await post(homeserver, path, form)
    assert refused.status == {"too large": 413, "too many fields": 400}.get(wrong, 403)
    assert "Set-Cookie" not in refused.headers


async def test_the_cookie_stays_on_https(database_url: str, tmp_path: Path) -> None:
    async with running_homeserver(
        database_url, tmp_path, inspector=True, public_base_url="https://matrix.example.org"
    ) as homeserver:
        admin = await make_admin(homeserver, "alice")
        answer = await sign_in(homeserver, admin)
    assert "Secure" in answer.headers["Set-Cookie"].split("; ")


@pytest.mark.parametrize("end", ["an hour passes", "the token ends", "no administrator any more"])
async def test_P03_a_session_ends_with_what_it_rests_upon(
    homeserver: Homeserver, clock: ManualClock, end: str
) -> None:
    admin = await make_admin(homeserver, "alice")
    await sign_in(homeserver, admin)
    assert (await get(homeserver, f"{ROOT}/")).status == 200
    if end == "an hour passes":
        clock.advance_ms(SESSION_LIFETIME_MS - 1)
        assert (await get(homeserver, f"{ROOT}/")).status == 200
        clock.advance_ms(1)
    elif end == "the token ends":
        await admin.call("POST", "/logout", {})
    else:
        await homeserver.services.db.execute("UPDATE accounts SET admin = false")
    answer = await get(homeserver, f"{ROOT}/")
    assert answer.status == (403 if end == "no administrator any more" else 401)


async def test_a_new_session_clears_away_those_that_have_ended(
    homeserver: Homeserver, clock: ManualClock
) -> None:
    admin = await make_admin(homeserver, "alice")
    await sign_in(homeserver, admin)
    clock.advance_ms(SESSION_LIFETIME_MS)
    await sign_in(homeserver, admin)
    count = await homeserver.services.db.fetchval("SELECT count(*) FROM inspector_sessions")
    assert count == 1


async def test_P02_every_answer_says_what_a_browser_may_do_with_it(homeserver: Homeserver) -> None:
    admin = await make_admin(homeserver, "alice")
    room_id = await admin.create_room()
    answers = [
        await get(homeserver, f"{ROOT}/", admin),
        await get(homeserver, f"{ROOT}/", admin, **HTML),
        await get(homeserver, room_path(room_id), admin, **HTML),
        await get(homeserver, room_path("!none:hs1"), admin, **HTML),
        await get(homeserver, f"{ROOT}/style.css"),
        await get(homeserver, f"{ROOT}/", **HTML),
        await sign_in(homeserver, admin),
    ]
    for answer in answers:
        headers = answer.headers
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "style-src": "'self'",
            "form-action": "'self'",
            "base-uri": "'none'",
            "frame-ancestors": "'none'",
        }
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert not any(name.startswith("Access-Control") for name in headers)


async def test_errors_are_pages_or_json_as_the_reader_likes(homeserver: Homeserver) -> None:
    admin = await make_admin(homeserver, "alice")
    room_id, other = await admin.create_room(), await admin.create_room()
    elsewhere = await admin.say(other)
    for path in (
        room_path("!none:hs1"),
        event_path(room_id, "$none"),
        event_path(room_id, elsewhere),
        f"{room_path(room_id)}?before=x",
        f"{room_path(room_id)}?before=1.99999999999",
        f"{room_path(room_id)}?before=99999999999999999999.1",
    ):
        answer = await get(homeserver, path, admin)
        assert (answer.status, answer.json["errcode"]) == (404, "M_NOT_FOUND")
        page = await get(homeserver, path, admin, **HTML)
        assert page.status == 404
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    as_json = await get(homeserver, f"{room_path('!x:y')}?format=json", admin, **HTML)
    assert as_json.json["errcode"] == "M_NOT_FOUND"


# --- what is shown -----------------------------------------------------------------------------


async def test_the_list_has_every_room_and_leads_to_each(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, bob = await make_admin(homeserver, "alice"), await homeserver.register("bob")
    named, unnamed = await admin.create_room(name="Tea"), await bob.create_room()
    await bob.join(named)
    await stick(bob, named, "phone", MINUTE_MS)
    first, second = (await get(homeserver, f"{ROOT}/", admin)).json["rooms"]
    assert first == {
        "room_id": named,
        "name": "Tea",
        "room_version": "11",
        "forward_extremities": 1,
        "joined": 2,
        "local_joined": 2,
        "servers": 1,
        "sticky_events": 1,
        "held_back": 0,
        "redacted_stays": 0,
    }
    assert (second["room_id"], second["name"]) == (unnamed, None)
    page = await get(homeserver, f"{ROOT}/", admin, **HTML)
    assert room_path(named) in page.text
    there = await get(homeserver, f"{ROOT}/?room={quote(named)}", admin)
    assert (there.status, there.headers["Location"]) == (303, room_path(named))

    monkeypatch.setattr(rooms, "ROOMS_MAX", 1)
    part = (await get(homeserver, f"{ROOT}/", admin)).json
    assert [room["room_id"] for room in part["rooms"]] == [named]
    rest = (await get(homeserver, f"{ROOT}/?after={part['next']}", admin)).json
    assert ([room["room_id"] for room in rest["rooms"]], rest["next"]) == ([unnamed], None)


async def view_of(inspected: InspectedRoom, before: str = "") -> dict:
    answer = await get(inspected.homeserver, room_path(inspected.room_id) + before, inspected.admin)
    assert answer.status == 200, answer.text
    return answer.json


@pytest.mark.spec("MSC4354#federation-behaviour")
async def test_sticky_events_with_time_left_and_who_has_them(inspected: InspectedRoom) -> None:
    view = await view_of(inspected)
    sticky = {event["event_id"]: event for event in view["sticky_events"]}
    assert len(sticky) == 4
    own = sticky[inspected.own_sticky_id]
    assert (own["sender"], own["sticky_key"]) == (f"@alice:{SERVER}", "alice-phone")
    assert own["type"] == "org.example.call.member"
    assert (own["duration_ms"], own["left_ms"]) == (50 * MINUTE_MS, 43 * MINUTE_MS)
    assert {d["server_name"]: d["state"] for d in own["deliveries"]} == {
        TAKES: "delivered",
        GARDEN: "delivered",
        REFUSES: "backing off",
    }
    remote = sticky[inspected.remote_sticky_id]
    assert (remote["sender"], remote["origin"], remote["deliveries"]) == (ERIN, GARDEN, [])
    assert remote["position"] is not None

    held = view["sticky_events"][0]
    assert (held["event_id"], held["position"]) == (inspected.held_id, None)
    assert held["rechecked"] is True
    assert held["refusal"]["rule"] == "event.level"
    assert held["refusal"]["passage"] == "rooms/v12#authorisation-rules"
    assert "m.room.power_levels" in {event["type"] for event in held["refusal"]["deciding"]}

    servers = {server["server_name"]: server for server in view["servers"]}
    assert servers[SERVER]["served"] is None
    assert servers[TAKES]["failures"] == 0
    assert servers[TAKES]["served"] >= own["position"]
    assert servers[REFUSES]["behind"] is True
    assert servers[REFUSES]["failures"] > 0
    assert servers[REFUSES]["retry_in_ms"] > 0

    page = await get(inspected.homeserver, room_path(inspected.room_id), inspected.admin, **HTML)
    for text in ("43 min", "of 50 min", "backing off", "soft-failed, held back", "erin-phone"):
        assert text in page.text


async def test_many_servers_are_summed_up(
    inspected: InspectedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, room_id = inspected.homeserver.services, inspected.room_id
    for n in range(6):
        await put_member(services, room_id, f"@guest:s{n}.example")
    await settled(services)
    path = room_path(room_id)
    page = await get(inspected.homeserver, path, inspected.admin, **HTML)
    # Nobody answers for the new ones, but they are owed what is sticky since they joined.
    assert "delivered to 2 of 9 servers" in page.text
    monkeypatch.setattr(sticky_events, "SERVERS_MAX", 3)
    view = await view_of(inspected)
    assert (len(view["servers"]), view["more_servers"]) == (3, True)
    assert view["servers"][0]["server_name"] == SERVER


@pytest.mark.spec("MSC4354#rate-limits")
async def test_sticky_events_that_wait_say_for_whom(inspected: InspectedRoom) -> None:
    await inspected.homeserver.services.db.execute(
        "UPDATE sticky_events SET position = NULL, waits_for = $2 WHERE event_id = $1",
        inspected.remote_sticky_id,
        GARDEN,
    )
    view = await view_of(inspected)
    sticky = {event["event_id"]: event for event in view["sticky_events"]}
    waiting = sticky[inspected.remote_sticky_id]
    assert (waiting["position"], waiting["waits_for"], waiting["refusal"]) == (None, GARDEN, None)
    assert sticky[inspected.held_id]["waits_for"] is None
    page = await get(inspected.homeserver, room_path(inspected.room_id), inspected.admin, **HTML)
    assert "waits its turn" in page.text


@pytest.mark.spec("MSC4354#proposal")
async def test_a_redacted_sticky_event_is_gone_and_its_redaction_tells(
    homeserver: Homeserver,
) -> None:
    admin = await make_admin(homeserver, "alice")
    room_id = await admin.create_room()
    event_id = await stick(admin, room_id, "phone", MINUTE_MS)
    path = room_path(room_id)
    (sticky,) = (await get(homeserver, path, admin)).json["sticky_events"]
    redact = f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/r"
    redaction_id = (await admin.call("PUT", redact, {}))["event_id"]
    (told,) = (await get(homeserver, path, admin)).json["sticky_events"]
    assert (told["event_id"], told["type"]) == (redaction_id, "m.room.redaction")
    assert (told["told_from"], told["left_ms"]) == (sticky["position"], MINUTE_MS)
    assert sticky["told_from"] is None
    page = await get(homeserver, path, admin, **HTML)
    assert f"position {sticky['position']}, for as long" in page.text


@pytest.mark.spec("MSC4293#proposal")
async def test_redactions_by_ban_with_their_bounds(
    inspected: InspectedRoom, clock: ManualClock
) -> None:
    (stay,) = (await view_of(inspected))["redacted_stays"]
    assert stay["user_id"] == MALLORY
    assert stay["first_join"]["event_id"] == inspected.join_id
    assert stay["because"]["event_id"] == inspected.ban_id
    assert stay["because"]["sender"] == f"@alice:{SERVER}"
    assert stay["because"]["membership"] == "ban"
    assert [(e["event_id"], e["type"]) for e in stay["spared"]] == [
        (inspected.spared_id, "m.room.server_acl")
    ]
    assert (stay["purged"], stay["purge_below"]) == (False, None)
    view = await view_of(inspected)
    rows = {event["event_id"]: event for event in (*view["graph"], *view["refused"])}
    for event_id in (*inspected.spam_ids, inspected.late_spam_id):
        assert rows[event_id]["redacted_by"]["event_id"] == inspected.ban_id
        assert rows[event_id]["redacted_by_stay"] is True
    assert rows[inspected.spared_id]["redacted_by"] is None

    path = event_path(inspected.room_id, inspected.spam_ids[0])
    event = (await get(inspected.homeserver, path, inspected.admin)).json
    assert "spam" not in event["json"]  # What is redacted is not shown here either.
    assert orjson.loads(event["json"])["content"] == {}

    clock.advance_ms(PURGE_AFTER_MS)
    await purge_redacted(inspected.homeserver.services)
    (stay,) = (await view_of(inspected))["redacted_stays"]
    assert stay["purged"] is True


async def test_the_graph_with_its_ends_and_what_was_refused(inspected: InspectedRoom) -> None:
    view = await view_of(inspected)
    assert sorted(view["forward_extremities"]) == sorted(inspected.ends)
    assert len(inspected.ends) == 2
    graph_rows = {event["event_id"]: event for event in view["graph"]}
    ends = [e for e, event in graph_rows.items() if event["is_forward_extremity"]]
    assert sorted(ends) == sorted(inspected.ends)
    assert {event["status"] for event in view["graph"]} == {"accepted"}
    orders = [event["order"] for event in view["graph"]]
    assert orders == sorted(orders, reverse=True)
    first = view["graph"][-1]
    assert (first["type"], first["prev_events"], view["older"]) == ("m.room.create", [], None)
    assert view["name"] == NAME

    refused = {event["event_id"]: event for event in view["refused"]}
    assert set(refused) == {inspected.rejected_id, inspected.held_id, inspected.late_spam_id}
    rejected = refused[inspected.rejected_id]
    assert (rejected["status"], rejected["refusal"]["rule"]) == ("rejected", "event.level")
    assert refused[inspected.held_id]["status"] == "soft-failed"
    late = refused[inspected.late_spam_id]
    assert (late["status"], late["refusal"]["rule"]) == ("soft-failed", "sender.not-joined")

    path = event_path(inspected.room_id, inspected.rejected_id)
    event = (await get(inspected.homeserver, path, inspected.admin)).json
    assert event["shown"]["refusal"]["message"] == rejected["refusal"]["message"]
    assert orjson.loads(event["json"])["content"] == {"topic": "mine"}
    assert {auth["type"] for auth in event["auth_events"]} >= {"m.room.create", "m.room.member"}
    page = await get(inspected.homeserver, path, inspected.admin, **HTML)
    assert "Why it was refused" in page.text
    assert "https://spec.matrix.org/latest/rooms/v12/#authorisation-rules" in page.text


async def test_the_graph_comes_in_pages(
    inspected: InspectedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [event["event_id"] for event in (await view_of(inspected))["graph"]]
    monkeypatch.setattr(rooms, "GRAPH_EVENTS_MAX", 10)
    seen: list[str] = []
    before = ""
    for _ in range(len(whole)):
        view = await view_of(inspected, before)
        assert view["is_newest"] == (before == "")
        seen += [event["event_id"] for event in view["graph"]]
        if view["older"] is None:
            break
        before = "?before={}.{}".format(*view["older"])
        page = await get(
            inspected.homeserver, room_path(inspected.room_id) + before, inspected.admin, **HTML
        )
        assert "Older events, newest first" in page.text
    assert seen == whole


# --- drawing -----------------------------------------------------------------------------------


def shown(event_id: str, *prev: str, status: str = "accepted", lacking: str = "") -> ShownEvent:
    return ShownEvent(
        event_id=event_id,
        type="m.room.message",
        state_key=None,
        sender="@a:hs1",
        sent_ms=0,
        membership=None,
        status=status,
        refusal=None,
        order=None,
        depth=1,
        prev_events=prev,
        lacking=[lacking] if lacking else [],
        auth_events=(),
        is_forward_extremity=False,
        redacted_by=None,
        redacted_by_stay=False,
        sticky_until_ms=None,
    )


def lanes(*events: ShownEvent) -> list[int]:
    """Return the lane of each event."""
    return [(row.x - graph.MARGIN) // graph.LANE for row in graph.draw(events)]


def test_a_chain_is_one_lane() -> None:
    assert lanes(shown("c", "b"), shown("b", "a"), shown("a")) == [0, 0, 0]


def test_a_fork_takes_a_second_lane_and_a_merge_gives_it_back() -> None:
    rows = [shown("m", "l", "r"), shown("l", "f"), shown("r", "f"), shown("f", "e"), shown("e")]
    assert lanes(*rows) == [0, 0, 1, 0, 0]
    drawn = graph.draw(rows)
    assert [len(row.lines) for row in drawn] == [2, 3, 3, 2, 1]


def test_two_ends_begin_two_lanes() -> None:
    assert lanes(shown("y", "a"), shown("x", "a"), shown("a")) == [0, 1, 0]


def test_what_leaves_the_page_goes_on_to_its_bottom() -> None:
    rows = graph.draw([shown("b", "elsewhere"), shown("a")])
    assert [line.path for line in rows[1].lines] == [f"M{graph.MARGIN} 0V{graph.ROW}"]


def test_what_is_not_here_ends_at_once() -> None:
    rows = graph.draw([shown("b", "gone", lacking="gone"), shown("a")])
    assert [line.kind for line in rows[0].lines] == ["lacking"]
    assert rows[1].lines == []


def test_an_event_above_what_names_it_is_no_edge() -> None:
    assert [row.lines for row in graph.draw([shown("a"), shown("b", "a")])] == [[], []]


def test_hundreds_of_ends_do_not_widen_the_page() -> None:
    rows = graph.draw([shown(f"e{n}", f"p{n}") for n in range(300)])
    assert max(row.width for row in rows) <= graph.LANE * graph.LANES_MAX + 2 * graph.MARGIN


def test_refused_events_stand_above_what_they_follow() -> None:
    accepted = [shown("c", "b"), shown("b", "a"), shown("a")]
    refused = [
        shown("z", "y", status="soft-failed"),  # Follows a refused one.
        shown("y", "b", status="soft-failed"),
        shown("x", "unknown", status="rejected"),
    ]
    ids = [event.event_id for event in graph.ordered(accepted, refused)]
    assert ids == ["c", "z", "y", "b", "a"]


@pytest.mark.parametrize(
    ("behind", "served", "since", "failures", "retry_in_ms", "state"),
    [
        (False, 20, 5, 0, 0, "delivered"),
        (False, 19, 5, 0, 0, "queued"),
        (False, 20, 30, 0, 0, "queued"),  # Joined later, and has not been given what is sticky.
        (False, 30, 30, 0, 0, "delivered"),
        (True, 19, 5, 0, 0, "catching up"),
        (True, 25, 30, 0, 0, "delivered"),  # Caught up so far, past this one.
        (True, 19, 5, 3, 4_000, "backing off"),
        (True, 19, 5, 3, 0, "repeating"),
    ],
)
def test_what_a_server_has_been_sent_follows_from_positions(  # one row is one story
    behind: bool, served: int, since: int, failures: int, retry_in_ms: int, state: str
) -> None:
    server = ServerView("hs2", 1, since, served, behind, failures, retry_in_ms)
    assert delivery_state(20, server) == state


@pytest.mark.parametrize(
    ("length_ms", "text"),
    [(0, "0 s"), (1, "1 s"), (59_001, "1 min"), (3_600_000, "1 h"), (90_061_000, "1 d 1 h")],
)
def test_lengths_of_time_are_short(length_ms: int, text: str) -> None:
    assert rendering.duration(length_ms) == text


def test_a_moment_that_is_none_is_shown_as_a_number() -> None:
    assert rendering.moment(1_700_000_000_000) == "2023-11-14 22:13:20"
    assert rendering.moment(2**53 - 1) == "9007199254740991 ms"
    assert rendering.moment(-5) == "-5 ms"


@pytest.mark.parametrize("passage", ["javascript:alert(1)#x", "rooms/v12", "a#b/../c", "//x#y"])
def test_only_passages_become_links(passage: str) -> None:
    assert rendering.passage_link(passage) is None


# --- every string is hostile -------------------------------------------------------------------

TAGS = """
    a bdi body br button caption circle code dd details div dl dt em form h1 h2 head header html
    input label li link main meta meter nav p path pre rect section small span strong summary svg
    table tbody td th thead title tr ul
""".split()  # noqa: SIM905  # a list of words
ATTRIBUTES = """
    action aria-hidden aria-label aria-labelledby autocomplete charset class colspan content cx cy
    d focusable for height href id lang max method min name r rel required role rx scope
    spellcheck tabindex type value viewbox width x y
""".split()  # noqa: SIM905  # a list of words
OWN = (f"{ROOT}/", "#content", "#sticky", "#redactions", "#servers", "#graph", "#refused")
OUTSIDE = ("https://spec.matrix.org/latest/", "https://github.com/matrix-org/")


class Markup(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.said = ""
        self.feed(page)
        self.close()

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            if name not in ATTRIBUTES:
                self.faults.append(f"<{tag} {name}={value!r}>")
            if name in ("href", "action") and not str(value).startswith((*OWN, *OUTSIDE)):
                self.faults.append(f"<{tag} {name}={value!r}>")

    @override
    def handle_data(self, data: str) -> None:
        self.said += data

    @override
    def handle_comment(self, data: str) -> None:
        self.faults.append(f"comment {data!r}")


def poisoned(value: Any) -> Any:
    """Return a value of the same shape in which every string is a payload."""
    if isinstance(value, str):
        return PAYLOAD
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return type(value)(**{name: poisoned(getattr(value, name)) for name in names})
    if isinstance(value, list | tuple):
        return [poisoned(item) for item in value]
    return value


def texts_of(value: Any, where: str = "") -> set[str]:
    """Return the names of all fields that hold a string."""
    if isinstance(value, str):
        return {where}
    if dataclasses.is_dataclass(value):
        return {
            name
            for field in dataclasses.fields(value)
            for name in texts_of(getattr(value, field.name), field.name)
        }
    if isinstance(value, list | tuple):
        return {name for item in value for name in texts_of(item, where)}
    return set()


async def hostile_room(user: User) -> tuple[str, list[str]]:
    """Make a room of strings that clients let through; return it, and its events."""
    await user.call("PUT", f"/profile/{user.user_id}/displayname", {"displayname": PAYLOAD})
    room_id = await user.create_room(name=PAYLOAD, topic=PAYLOAD)
    hostile, room = quote(PAYLOAD, safe=""), f"/rooms/{quote(room_id)}"
    sticky = {unstable.STICKY_DURATION_PARAMETER.unstable: "60000"}
    content = {unstable.STICKY_KEY.unstable: PAYLOAD, PAYLOAD: PAYLOAD}
    answers = [
        await user.call("PUT", f"{room}/send/{hostile}/sticky", content, **sticky),
        await user.call("PUT", f"{room}/state/{hostile}/{hostile}", {"reason": PAYLOAD}),
    ]
    said = await user.say(room_id, PAYLOAD, filename=PAYLOAD)
    return room_id, [said, *(answer["event_id"] for answer in answers)]


async def test_P01_what_people_write_stays_text(homeserver: Homeserver) -> None:
    admin = await make_admin(homeserver, "alice")
    room_id, events = await hostile_room(admin)
    paths = [f"{ROOT}/", room_path(room_id), *(event_path(room_id, e) for e in events)]
    for path in paths:
        page = await get(homeserver, path, admin, **HTML)
        assert page.status == 200
        markup = Markup(page.text)
        assert markup.faults == []
        assert PAYLOAD[:70] in markup.said or orjson.dumps(PAYLOAD).decode() in markup.said


async def test_P01_no_string_of_a_view_is_markup(
    inspected: InspectedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = await serve_poisoned(inspected, monkeypatch)
    for path in paths:
        page = await get(inspected.homeserver, path, inspected.admin, **HTML)
        assert page.status == 200
        markup = Markup(page.text)
        assert markup.faults == []
        assert PAYLOAD in markup.said
        as_json = await get(inspected.homeserver, path, inspected.admin)
        assert as_json.headers["Content-Type"] == "application/json"
        assert PAYLOAD in orjson.dumps(as_json.json, option=orjson.OPT_INDENT_2).decode().replace(
            '\\"', '"'
        )


async def serve_poisoned(inspected: InspectedRoom, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the server show views in which every string is a payload; return their pages."""
    services, room_id = inspected.homeserver.services, inspected.room_id
    listed = await rooms.list_rooms(services, 0)
    room = await rooms.view_room(services, room_id)
    event = await rooms.view_event_of_room(services, room_id, inspected.held_id)
    assert texts_of(room) >= {
        "server_name", "room_id", "name", "room_version", "sticky_key", "sender", "type",
        "state_key", "message", "rule", "passage", "user_id", "membership", "event_id", "state",
    }  # fmt: skip

    def answering(view: object) -> Any:
        async def answer(*_: object) -> object:
            return poisoned(view)

        return answer

    monkeypatch.setattr(rooms, "list_rooms", answering(listed))
    monkeypatch.setattr(rooms, "view_room", answering(room))
    monkeypatch.setattr(rooms, "view_event_of_room", answering(event))
    return [f"{ROOT}/", room_path(room_id), event_path(room_id, inspected.held_id)]


async def test_P01_errors_are_text_as_well(homeserver: Homeserver) -> None:
    admin = await make_admin(homeserver, "alice")
    for path in (room_path(PAYLOAD), f"{ROOT}/?after={quote(PAYLOAD)}"):
        page = await get(homeserver, path, admin, **HTML)
        assert page.status in (400, 404)
        assert Markup(page.text).faults == []


def test_P01_templates_escape_everything() -> None:
    templates = list((rendering.FILES / "templates").glob("*.html"))
    assert len(templates) == 6
    for template in templates:
        text = template.read_text()
        for unsafe in ("|safe", "| safe", "autoescape", "<script", "<style", "style=", "onclick"):
            assert unsafe not in text, template.name
    assert rendering._environment().autoescape is True
    assert b"url(" not in rendering.stylesheet()
    assert b"@import" not in rendering.stylesheet()


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine")
async def test_P01_a_browser_finds_nothing_to_run_and_nothing_to_report(
    inspected: InspectedRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id, events = await hostile_room(inspected.admin)
    real = [room_path(room_id), event_path(room_id, events[0])]
    views = await serve_poisoned(inspected, monkeypatch)
    client = inspected.homeserver.client
    async with chromium() as browser:
        for path in (*views, *real):
            url = str(client.make_url("/")).rstrip("/") + path
            page = await browser.open(url, {**HTML, **bearer(inspected.admin)})
            assert page.complaints == []
            assert await page.evaluate("document.scripts.length + document.images.length") == 0
            assert await page.evaluate("document.querySelectorAll('h1').length") == 1
            styled = "getComputedStyle(document.querySelector('.bar')).display"
            assert await page.evaluate(styled) == "flex"  # The stylesheet was let in.


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine")
async def test_P02_a_real_browser_signs_in_looks_around_and_signs_out(
    homeserver: Homeserver,
) -> None:
    admin = await make_admin(homeserver, "alice")
    room_id = await admin.create_room(name=NAME)
    heading = "document.querySelector('h1').textContent"
    async with chromium() as browser:
        page = await browser.open(str(homeserver.client.make_url(f"{ROOT}/")))
        assert await page.evaluate(heading) == "Sign in"
        page.complaints.clear()  # It says that the answer was a 401.
        await page.leave_by(
            f"document.querySelector('#token').value = '{admin.token}';"
            "document.querySelector('main form').submit()"
        )
        assert "known to hs1" in await page.evaluate(heading)
        assert await page.evaluate("document.cookie") == ""  # Scripts do not see it.
        await page.leave_by("document.querySelector('tbody a').click()")
        assert await page.evaluate(heading) == NAME
        assert await page.evaluate("location.pathname") == room_path(room_id)
        assert page.complaints == []
        await page.leave_by("document.querySelector('.bar form button').click()")
        assert await page.evaluate(heading) == "Sign in"


@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine")
async def test_a_browser_that_finds_something_says_so(homeserver: Homeserver) -> None:
    """The test above can fail: the same page, with a policy and without escaping."""
    from aiohttp import web
    from aiohttp.test_utils import TestServer

    async def bad(request: web.Request) -> web.Response:
        policy = {} if "open" in request.path else {"Content-Security-Policy": "default-src 'none'"}
        body = "<h1>x</h1><script>alert('ran')</script>"
        return web.Response(text=body, content_type="text/html", headers=policy)

    application = web.Application()
    application.router.add_get("/{path:.*}", bad)
    async with TestServer(application) as server, chromium() as browser:
        refused = await browser.open(str(server.make_url("/refused")))
        assert any("Content Security Policy" in complaint for complaint in refused.complaints)
        ran = await browser.open(str(server.make_url("/open")))
        assert "dialog: ran" in ran.complaints
