"""Reporting rooms, events and users. Spec: client-server-api#reporting-content."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver, User

REPORTS = """
    SELECT received_ms, reporter, reason, room_id, event_id, user_id
    FROM reports
    ORDER BY report_id DESC
"""


async def report(user: User, path: str, body: object) -> tuple[int, str | None]:
    """Report something; return status and errcode."""
    response = await user.request("POST", f"{path}/report{body.pop('at', '')}", body)  # type: ignore[attr-defined]
    return response.status, response.json.get("errcode")


async def test_reports_reach_the_table(homeserver: Homeserver):
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room_id, other = await alice.create_room(), await alice.create_room()
    await bob.join(room_id)
    event_id, elsewhere = await alice.say(room_id), await alice.say(other)
    room, at = f"/rooms/{quote(room_id)}", f"/{quote(event_id)}"

    assert await report(carol, room, {"reason": "room"}) == (200, None)
    assert await report(bob, room, {"reason": "event", "at": at}) == (200, None)
    assert await report(bob, room, {"at": at}) == (200, None)
    assert await report(carol, f"/users/{quote(alice.user_id)}", {"reason": ""}) == (200, None)
    assert await report(carol, "/users/@mallory:elsewhere", {"reason": "x"}) == (200, None)

    now_ms = homeserver.clock.now_ms()
    kept = await homeserver.services.db.fetch(REPORTS)
    assert all(abs(now_ms - entry["received_ms"]) < 60_000 for entry in kept)
    assert [tuple(entry)[1:] for entry in kept] == [
        (carol.user_id, "x", None, None, "@mallory:elsewhere"),
        (carol.user_id, "", None, None, alice.user_id),
        (bob.user_id, "", room_id, event_id, None),
        (bob.user_id, "event", room_id, event_id, None),
        (carol.user_id, "room", room_id, None, None),
    ]

    not_found = (404, "M_NOT_FOUND")
    assert await report(carol, room, {"reason": "x", "at": at}) == not_found  # not in the room
    assert await report(bob, room, {"reason": "x", "at": "/$no"}) == not_found
    assert await report(bob, room, {"reason": "x", "at": f"/{quote(elsewhere)}"}) == not_found
    assert await report(bob, "/rooms/!no:hs1", {"reason": "x"}) == not_found
    assert await report(bob, "/users/@nobody:hs1", {"reason": "x"}) == not_found
    assert await report(bob, room, {}) == (400, "M_BAD_JSON")
    assert await report(bob, f"/users/{quote(alice.user_id)}", {}) == (400, "M_BAD_JSON")
    assert await report(bob, room, {"reason": 1}) == (400, "M_BAD_JSON")
    assert await report(bob, room, {"reason": "x" * 3_000}) == (400, "M_INVALID_PARAM")
    assert len(await homeserver.services.db.fetch(REPORTS)) == 5
