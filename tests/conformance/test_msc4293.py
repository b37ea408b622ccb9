"""MSC4293: redact on kick or ban, and MSC4298 and MSC4194, which go with it. In the MSCs' order.

Mallory is sometimes a user of hs1 and sometimes of `evil`, a server that does as it likes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import pytest

from minihs.base.leaky_buckets import Limit
from minihs.protocol.identifiers import EventId
from minihs.services.rooms import redact_on_ban, user_redaction
from minihs.storage import history_writes, redacted_stays
from minihs.storage.event_store import REJECTED
from tests.federation.test_backfill import Past, join, page, pages
from tests.helpers.appservices import make_ghost, running_bridge
from tests.helpers.homeserver import User, running_homeserver
from tests.helpers.mirror import push, refresh, serve
from tests.helpers.rooms import MALLORY
from tests.helpers.servers import pass_time, quiet
from tests.helpers.servers import start as start_servers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from minihs.base.clock import ManualClock
    from minihs.protocol.events import Event
    from tests.helpers.homeserver import Homeserver
    from tests.helpers.network import EvilServer, Federation
    from tests.helpers.rooms import Room

pytestmark = pytest.mark.spec("MSC4293#proposal")

FLAG = "org.matrix.msc4293.redact_events"
FLAGGED = {FLAG: True}


class Scene:
    """Alice's room at hs1, with local people in it."""

    def __init__(self, alice: User, bob: User, mallory: User, room_id: str) -> None:
        self.alice, self.bob, self.mallory = alice, bob, mallory
        self.room_id = room_id
        self.path = f"/rooms/{quote(room_id)}"

    async def remove(
        self, how: str, body: Mapping[str, object] | None = None, *, by: User | None = None
    ) -> None:
        """Kick or ban Mallory."""
        wish = {"user_id": self.mallory.user_id, **(body or {})}
        await (by or self.alice).call("POST", f"{self.path}/{how}", wish)

    async def member(self) -> dict[str, Any]:
        """Return Mallory's present member event."""
        state = await self.alice.call("GET", f"{self.path}/state")
        key = ("m.room.member", self.mallory.user_id)
        return next(e for e in state if (e["type"], e["state_key"]) == key)

    async def redacted(self, *event_ids: str) -> list[bool]:
        """Return which of the events Bob is shown redacted by a member event."""
        return [by_ban(await self.get(event_id)) for event_id in event_ids]

    async def get(self, event_id: str, reader: User | None = None) -> dict[str, Any]:
        """Return an event as Bob is shown it."""
        return await (reader or self.bob).call("GET", f"{self.path}/event/{quote(event_id)}")


def by_ban(event: dict[str, Any]) -> bool:
    """Return whether an event is shown redacted by a kick or ban; else it must not be redacted."""
    because = event["unsigned"].get("redacted_because")
    if because is None:
        assert event["content"]
        return False
    assert because["type"] == "m.room.member"
    return not event["content"].get("body")


@pytest.fixture
async def scene(hs1: Homeserver, alice: User) -> Scene:
    """Mallory and Bob have joined Alice's room."""
    bob, mallory = await hs1.register("bob"), await hs1.register("mallory")
    room_id = await alice.create_room()
    await bob.join(room_id)
    await mallory.join(room_id)
    return Scene(alice, bob, mallory, room_id)


async def purge(hs1: Homeserver, clock: ManualClock) -> None:
    """Let the loop that purges do its round."""
    clock.advance_ms(redact_on_ban.PURGE_AFTER_MS)
    await redact_on_ban.purge_redacted(hs1.services)


async def stored_json(hs1: Homeserver, event_id: str) -> str:
    """Return what the database holds of an event."""
    query = "SELECT json FROM events WHERE event_id = $1"
    return str(await hs1.services.db.fetchval(query, event_id))


# --- the flag redacts, as if each event had been redacted -----------------------------


@pytest.mark.parametrize("how", ["kick", "ban"])
async def test_r_1_a_flagged_kick_or_ban_redacts_what_the_target_said(scene: Scene, how: str):
    said = [await scene.mallory.say(scene.room_id, f"spam {n}") for n in range(3)]
    await scene.remove(how, FLAGGED)
    assert await scene.redacted(*said) == [True] * 3


async def test_r_1_no_redaction_events_are_sent(scene: Scene):
    await scene.mallory.say(scene.room_id)
    await scene.remove("ban", FLAGGED)
    page = await scene.bob.call("GET", f"{scene.path}/messages", dir="b", limit="100")
    assert "m.room.redaction" not in {event["type"] for event in page["chunk"]}


async def test_r_1_everything_that_shows_events_shows_them_redacted(scene: Scene):
    said = await scene.mallory.say(scene.room_id, "spam")
    topic = {"users": {}, "events": {"m.room.topic": 0}}
    await scene.alice.put_state(scene.room_id, "m.room.power_levels", topic)
    state = await scene.mallory.put_state(scene.room_id, "m.room.topic", {"topic": "spam"})
    after = await scene.bob.say(scene.room_id, "hm")
    await scene.remove("ban", FLAGGED)
    page = await scene.bob.call("GET", f"{scene.path}/messages", dir="b", limit="100")
    context = await scene.bob.call("GET", f"{scene.path}/context/{quote(after)}")
    joined = (await scene.bob.sync())["rooms"]["join"][scene.room_id]
    lists = {
        "messages": page["chunk"],
        "context": context["events_before"],
        "context state": context["state"],
        "sync": joined["timeline"]["events"] + joined["state"]["events"],
        "state": await scene.bob.call("GET", f"{scene.path}/state"),
    }
    for name, events in lists.items():
        for event in events:
            if event["event_id"] in (said, state):
                assert event["content"] == {}, name
                assert event["unsigned"]["redacted_because"]["type"] == "m.room.member", name
    assert await scene.bob.call("GET", f"{scene.path}/state/m.room.topic") == {}
    shown = {name: {event["event_id"] for event in events} for name, events in lists.items()}
    assert all(said in shown[name] for name in ("messages", "context", "sync"))
    assert all(state in shown[name] for name in ("messages", "context state", "sync", "state"))


async def test_r_1_what_others_quote_is_redacted_too(scene: Scene):
    """Whoever has read the quotation before is given another one."""
    topic = {"users": {scene.mallory.user_id: 50}}
    await scene.alice.put_state(scene.room_id, "m.room.power_levels", topic)
    await scene.mallory.put_state(scene.room_id, "m.room.topic", {"topic": "spam"})
    after = await scene.alice.put_state(scene.room_id, "m.room.topic", {"topic": "tea"})
    target = await scene.bob.say(scene.room_id, "hello")
    await scene.mallory.call("PUT", f"{scene.path}/redact/{quote(target)}/1", {"reason": "spam"})
    assert (await scene.get(after))["unsigned"]["prev_content"] == {"topic": "spam"}
    because = (await scene.get(target))["unsigned"]["redacted_because"]
    assert because["content"]["reason"] == "spam"
    await scene.remove("ban", FLAGGED)
    assert (await scene.get(after))["unsigned"]["prev_content"] == {}
    because = (await scene.get(target))["unsigned"]["redacted_because"]
    assert "reason" not in because["content"]
    assert because["sender"] == scene.mallory.user_id


@pytest.mark.parametrize("how", ["ban", "redaction"])
async def test_r_1_an_open_invite_says_no_more_who_wrote_what(
    hs1: Homeserver, scene: Scene, clock: ManualClock, how: str
):
    """Neither its reason nor the inviter's name; after the purge the database does not either."""
    mallory, carol = scene.mallory, await hs1.register("carol")
    await scene.alice.put_state(scene.room_id, "m.room.power_levels", {"invite": 0})
    await mallory.call("PUT", f"/profile/{mallory.user_id}/displayname", {"displayname": "Pills"})
    wish = {"user_id": carol.user_id, "reason": "Buy my pills"}
    await mallory.call("POST", f"{scene.path}/invite", wish)
    assert "Buy my pills" in str((await carol.sync())["rooms"]["invite"])
    if how == "ban":
        await scene.remove("ban", FLAGGED)
    else:
        state = await scene.alice.call("GET", f"{scene.path}/state")
        invite = next(e["event_id"] for e in state if e["state_key"] == carol.user_id)
        await scene.alice.call("PUT", f"{scene.path}/redact/{quote(invite)}/1", {})
    for _ in range(2):
        carol.since = None
        shown = (await carol.sync())["rooms"]["invite"][scene.room_id]["invite_state"]["events"]
        assert "ills" not in str(shown)
        own = next(e for e in shown if e.get("state_key") == carol.user_id)
        assert own["content"] == {"membership": "invite"}
        assert own["sender"] == mallory.user_id
        await purge(hs1, clock)
    if how == "ban":
        rows = await hs1.services.db.fetch("SELECT json FROM invite_states")
        assert "ills" not in str([row[0] for row in rows])
    await carol.join(scene.room_id)


@pytest.mark.parametrize("outside", ["invite", "knock"])
@pytest.mark.parametrize("how", ["ban", "redaction"])
async def test_r_1_who_is_outside_is_shown_no_more_what_the_target_called_the_room(
    hs1: Homeserver, scene: Scene, clock: ManualClock, how: str, outside: str
):
    """Though somebody else invited them, and the room has had another name since."""
    alice, carol = scene.alice, await hs1.register("carol")
    levels = {"users": {scene.mallory.user_id: 50}}
    await alice.put_state(scene.room_id, "m.room.power_levels", levels)
    spam = await scene.mallory.put_state(scene.room_id, "m.room.name", {"name": "Buy my pills"})
    if outside == "invite":
        await alice.invite(scene.room_id, carol)
    else:
        await alice.put_state(scene.room_id, "m.room.join_rules", {"join_rule": "knock"})
        await carol.call("POST", f"/knock/{scene.room_id}", {})
    await alice.put_state(scene.room_id, "m.room.name", {"name": "Tea"})
    assert "pills" in str((await carol.sync())["rooms"][outside])
    if how == "ban":
        await scene.remove("ban", FLAGGED)
    else:
        await alice.call("PUT", f"{scene.path}/redact/{quote(spam)}/1", {})
    for _ in range(2):
        carol.since = None
        room = (await carol.sync())["rooms"][outside][scene.room_id]
        events = room[f"{outside}_state"]["events"]
        assert "pills" not in str(events)
        assert not any("event_id" in event for event in events)
        assert {e["type"]: e["content"] for e in events}["m.room.name"] == {}
        await purge(hs1, clock)
    if how == "ban":
        rows = await hs1.services.db.fetch("SELECT json FROM invite_states")
        assert "pills" not in str([row[0] for row in rows])


async def test_r_1_the_names_that_the_target_joined_by_are_redacted(scene: Scene):
    await scene.mallory.call(
        "PUT", f"/profile/{scene.mallory.user_id}/displayname", {"displayname": "Buy my pills"}
    )
    join = await scene.member()
    assert join["content"]["displayname"] == "Buy my pills"
    await scene.remove("ban", FLAGGED)
    shown = await scene.get(join["event_id"])
    assert shown["content"] == {"membership": "join"}
    assert (await scene.member())["unsigned"]["prev_content"] == {"membership": "join"}


async def test_r_4_redacted_because_is_the_member_event(scene: Scene):
    said = await scene.mallory.say(scene.room_id)
    await scene.remove("ban", {"reason": "spam", **FLAGGED})
    because = (await scene.get(said))["unsigned"]["redacted_because"]
    assert because["type"] == "m.room.member"
    assert because["sender"] == scene.alice.user_id
    assert because["state_key"] == scene.mallory.user_id
    assert because["content"] == {"membership": "ban", "reason": "spam", FLAG: True}
    assert because["event_id"] == (await scene.member())["event_id"]


async def test_r_4_who_syncs_is_told_of_the_ban_and_nothing_else(scene: Scene):
    await scene.mallory.say(scene.room_id)
    await scene.bob.sync()
    await scene.remove("ban", FLAGGED)
    timeline = (await scene.bob.sync())["rooms"]["join"][scene.room_id]["timeline"]
    assert [event["type"] for event in timeline["events"]] == ["m.room.member"]
    assert timeline["events"][0]["content"][FLAG] is True


async def test_r_4_a_reader_of_few_members_is_told_of_the_ban_after_a_gap(scene: Scene):
    lazy = '{"room":{"timeline":{"limit":1},"state":{"lazy_load_members":true}}}'
    await scene.mallory.say(scene.room_id)
    await scene.bob.sync(filter=lazy)
    await scene.remove("ban", FLAGGED)
    for n in range(3):
        await scene.alice.say(scene.room_id, f"{n}")
    joined = (await scene.bob.sync(filter=lazy))["rooms"]["join"][scene.room_id]
    assert joined["timeline"]["limited"]
    targets = [e["state_key"] for e in joined["state"]["events"] if e["type"] == "m.room.member"]
    assert scene.mallory.user_id in targets


# --- the stay, and no other ----------------------------------------------------------------


async def test_r_2_the_example_of_the_proposal(scene: Scene):
    first = [await scene.mallory.say(scene.room_id, name) for name in "ABC"]
    await scene.mallory.leave(scene.room_id)
    await scene.mallory.join(scene.room_id)
    second = [await scene.mallory.say(scene.room_id, name) for name in "DEF"]
    await scene.remove("ban", FLAGGED)
    assert await scene.redacted(*first) == [False] * 3
    assert await scene.redacted(*second) == [True] * 3


async def test_r_2_a_new_display_name_shields_nothing(scene: Scene):
    said = []
    for name in ("one", "two", "three"):
        said.append(await scene.mallory.say(scene.room_id, name))
        await scene.mallory.call(
            "PUT", f"/profile/{scene.mallory.user_id}/displayname", {"displayname": name}
        )
    await scene.remove("ban", FLAGGED)
    assert await scene.redacted(*said) == [True] * 3


async def test_r_2_who_comes_back_may_speak(scene: Scene):
    before = await scene.mallory.say(scene.room_id, "spam")
    await scene.remove("ban", FLAGGED)
    await scene.remove("unban")
    await scene.mallory.join(scene.room_id)
    after = await scene.mallory.say(scene.room_id, "sorry")
    assert await scene.redacted(before, after) == [True, False]


async def test_r_2_a_second_ban_redacts_the_second_stay(scene: Scene):
    said = []
    for body in ({FLAG: True}, {}, {FLAG: True}):
        said.append(await scene.mallory.say(scene.room_id))
        await scene.remove("ban", body)
        await scene.remove("unban")
        await scene.mallory.join(scene.room_id)
    assert await scene.redacted(*said) == [True, False, True]


async def test_r_2_a_ban_repeated_with_the_flag_redacts_nothing(scene: Scene):
    said = await scene.mallory.say(scene.room_id)
    await scene.remove("ban")
    await scene.remove("ban", FLAGGED)
    assert await scene.redacted(said) == [False]


async def test_r_2_who_left_before_the_ban_keeps_what_they_said(scene: Scene):
    said = await scene.mallory.say(scene.room_id)
    await scene.mallory.leave(scene.room_id)
    await scene.remove("ban", FLAGGED)
    assert await scene.redacted(said) == [False]


# --- whatever the order of arrival ---------------------------------------------------


async def ban_of_mallory(alice: User, room: Room, hs1: Homeserver) -> None:
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/ban", {"user_id": MALLORY, **FLAGGED})
    await refresh(room, hs1)


async def shown_to(user: User, room: Room, event: Event) -> dict[str, Any]:
    """Return an event as a page of history shows it, or as /event does."""
    path = f"/rooms/{quote(room.room_id)}/event/{quote(event.event_id)}"
    return await user.call("GET", path)


async def late(room: Room, text: str = "late", **content: object) -> Event:
    """Return an event of Mallory's that follows what was there before the room's last event."""
    last = room.ends[-1]
    prev = [room.events[event_id] for event_id in last.prev_event_ids]
    return room.draft(MALLORY, "m.room.message", {"body": text, **content}, prev=prev)


@pytest.mark.parametrize("version", ["6", "11", "12", "org.matrix.msc4298.v1"])
async def test_r_3_late_events_are_redacted_before_they_are_stored(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    early = room.send(MALLORY, "m.room.message", {"body": "early"})
    await push(evil, hs1, [early])
    await ban_of_mallory(alice, room, hs1)
    event = await late(room)
    assert await push(evil, hs1, [event]) == {event.event_id: {}}
    assert by_ban(await shown_to(alice, room, early))
    stored = await hs1.services.events.get(event.event_id)
    assert stored is not None
    assert stored.redacted_by == room.ends[-1].event_id
    assert stored.event.content == {}
    assert "late" not in await stored_json(hs1, event.event_id)


async def test_r_3_late_changes_of_profile_and_what_rests_upon_them_are_redacted(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    before = list(room.ends)
    await ban_of_mallory(alice, room, hs1)
    renamed = room.send(
        MALLORY, "m.room.member", {"membership": "join", "displayname": "x"},
        state_key=MALLORY, prev=before,
    )  # fmt: skip
    spam = room.draft(MALLORY, "m.room.message", {"body": "spam"}, prev=[renamed])
    later = room.draft(MALLORY, "m.room.message", {"body": "more"}, prev=[renamed])
    await push(evil, hs1, [renamed, spam])
    await push(evil, hs1, [later])
    for event in (renamed, spam, later):
        stored = await hs1.services.events.get(event.event_id)
        assert stored is not None
        assert stored.redacted_by is not None, event
    assert "spam" not in await stored_json(hs1, spam.event_id)
    assert "more" not in await stored_json(hs1, later.event_id)


async def test_r_14_a_branch_that_had_its_own_change_of_profile_is_redacted_too(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    fork = list(room.ends)
    names = [
        room.send(
            MALLORY, "m.room.member", {"membership": "join", "displayname": name},
            state_key=MALLORY, prev=fork,
        )
        for name in ("left", "right")
    ]  # fmt: skip
    said = [room.send(MALLORY, "m.room.message", {"body": "x"}, prev=[end]) for end in names]
    await push(evil, hs1, [*names, *said])
    await ban_of_mallory(alice, room, hs1)
    assert [by_ban(await shown_to(alice, room, event)) for event in said] == [True, True]


async def test_r_14_late_events_of_the_old_stay_are_redacted_after_a_return(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    await ban_of_mallory(alice, room, hs1)
    event = await late(room)
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/unban", {"user_id": MALLORY})
    await refresh(room, hs1)
    back = room.join(MALLORY)
    hello = room.send(MALLORY, "m.room.message", {"body": "hello again"})
    await push(evil, hs1, [back, hello, event])
    assert not by_ban(await shown_to(alice, room, hello))
    assert "late" not in await stored_json(hs1, event.event_id)


async def test_r_14_a_ban_that_comes_with_what_it_redacts(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    """One transaction: spam, and the ban by somebody of the same server."""
    moderator = "@moderator:evil"
    await push(evil, hs1, [room.join(moderator)])
    levels = {"users": {moderator: 50}}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    spam = [room.send(MALLORY, "m.room.message", {"body": f"{n}"}) for n in range(3)]
    ban = room.send(
        moderator, "m.room.member", {"membership": "ban", FLAG: True}, state_key=MALLORY
    )
    await push(evil, hs1, [*spam, ban])
    assert [by_ban(await shown_to(alice, room, event)) for event in spam] == [True] * 3


async def test_r_14_a_soft_failed_ban_redacts_nothing(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    moderator = "@moderator:evil"
    await push(evil, hs1, [room.join(moderator)])
    await alice.put_state(room.room_id, "m.room.power_levels", {"users": {moderator: 50}})
    await refresh(room, hs1)
    spam = room.send(MALLORY, "m.room.message", {"body": "opinion"})
    await push(evil, hs1, [spam])
    powerful = list(room.ends)
    await alice.put_state(room.room_id, "m.room.power_levels", {"users": {}})
    await refresh(room, hs1)
    ban = room.draft(
        moderator, "m.room.member", {"membership": "ban", FLAG: True},
        state_key=MALLORY, prev=powerful,
    )  # fmt: skip
    await push(evil, hs1, [ban])
    assert not by_ban(await shown_to(alice, room, spam))


EVE = "@eve:evil"


@pytest.mark.parametrize("version", ["11"])
async def test_r_14_a_ban_that_state_resolution_takes_back_undoes_nothing(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    """The moderator, it turns out, had lost the power before: Mallory was never banned.

    What was redacted stays so; what Mallory says from then on is not.
    """
    moderator = "@moderator:evil"
    await push(evil, hs1, [room.join(moderator), room.join(EVE)])
    levels = await alice.call("GET", f"/rooms/{quote(room.room_id)}/state/m.room.power_levels")
    levels["users"] |= {moderator: 50, EVE: 100}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    spam = room.send(MALLORY, "m.room.message", {"body": "spam"})
    await push(evil, hs1, [spam])
    before = list(room.ends)
    content = {"membership": "ban", FLAG: True}
    ban = room.send(moderator, "m.room.member", content, state_key=MALLORY)
    await push(evil, hs1, [ban])
    assert by_ban(await shown_to(alice, room, spam))
    levels["users"][moderator] = 0
    demoted = room.send(EVE, "m.room.power_levels", levels, state_key="", prev=before)
    await push(evil, hs1, [demoted])
    members = await alice.call("GET", f"/rooms/{quote(room.room_id)}/joined_members")
    assert MALLORY in members["joined"]
    assert by_ban(await shown_to(alice, room, spam))
    after = room.send(MALLORY, "m.room.message", {"body": "still here"}, prev=[demoted])
    await push(evil, hs1, [after])
    assert not by_ban(await shown_to(alice, room, after))
    # Nor is a list made of all that Mallory goes on to say.
    assert await hs1.services.db.fetchval("SELECT spared_ids FROM redacted_stays") == []


@pytest.mark.parametrize("order", ["kick first", "rename first", "together"])
async def test_r_14_a_kick_beside_a_change_of_name_is_the_same_in_any_order(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, order: str
):
    """State resolution lets Mallory go on under the new name. What came before is redacted."""
    moderator = "@moderator:evil"
    await push(evil, hs1, [room.join(moderator)])
    levels = await alice.call("GET", f"/rooms/{quote(room.room_id)}/state/m.room.power_levels")
    levels["users"][moderator] = 50
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    spam = room.send(MALLORY, "m.room.message", {"body": "spam"})
    await push(evil, hs1, [spam])
    kicked: dict[str, object] = {"membership": "leave", FLAG: True}
    renamed: dict[str, object] = {"membership": "join", "displayname": "Eve"}
    kick = room.send(moderator, "m.room.member", kicked, state_key=MALLORY, prev=[spam])
    rename = room.send(MALLORY, "m.room.member", renamed, state_key=MALLORY, prev=[spam])
    said = room.send(MALLORY, "m.room.message", {"body": "on I go"}, prev=[rename])
    late = room.send(MALLORY, "m.room.message", {"body": "spam"}, prev=[spam])
    first, second = ([kick], [rename, said])
    if order == "rename first":
        first, second = second, first
    for pushed in [first + second] if order == "together" else [first, second]:
        await push(evil, hs1, pushed)
    await push(evil, hs1, [late])
    members = await alice.call("GET", f"/rooms/{quote(room.room_id)}/joined_members")
    assert members["joined"][MALLORY]["display_name"] == "Eve"
    assert by_ban(await shown_to(alice, room, spam))
    assert not by_ban(await shown_to(alice, room, rename))
    assert not by_ban(await shown_to(alice, room, said))
    kept = await hs1.services.events.get(late.event_id)
    assert kept is not None
    assert kept.redacted_by == kick.event_id


async def two_moderators(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, ban: int = 50
) -> tuple[str, str]:
    """Let two of evil's users join who may kick, and the first of whom may ban; return them."""
    moderators = "@one:evil", "@other:evil"
    await push(evil, hs1, [room.join(user_id) for user_id in moderators])
    levels = await alice.call("GET", f"/rooms/{quote(room.room_id)}/state/m.room.power_levels")
    levels |= {"ban": ban, "users": levels["users"] | dict(zip(moderators, (75, 50), strict=True))}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    return moderators


async def test_r_14_a_second_ban_redacts_what_the_first_one_spared(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    """Mallory goes on by a change of name beside the kick, and all of that is purged by then."""
    one, _ = await two_moderators(hs1, alice, evil, room)
    spam = room.send(MALLORY, "m.room.message", {"body": "spam"})
    kicked, renamed = {"membership": "leave", FLAG: True}, {"membership": "join"}
    kick = room.send(one, "m.room.member", kicked, state_key=MALLORY, prev=[spam])
    rename = room.send(MALLORY, "m.room.member", renamed, state_key=MALLORY, prev=[spam])
    said = room.send(MALLORY, "m.room.message", {"body": "on I go"}, prev=[rename])
    await push(evil, hs1, [spam, kick, rename, said])
    await purge(hs1, clock)
    assert not by_ban(await shown_to(alice, room, said))
    banned = await alice.put_state(
        room.room_id, "m.room.member", {"membership": "ban", **FLAGGED}, MALLORY
    )
    for _ in range(2):
        for event, reasons in ((spam, {kick.event_id, banned}), (said, {banned})):
            shown = await shown_to(alice, room, event)
            assert by_ban(shown)
            assert shown["unsigned"]["redacted_because"]["event_id"] in reasons
        await purge(hs1, clock)
        hs1.services.events.drop_committed()
    assert "on I go" not in await stored_json(hs1, said.event_id)


@pytest.mark.parametrize("order", ["kick first", "ban first", "together"])
async def test_r_14_a_kick_redacts_though_somebody_was_faster_with_a_ban(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, order: str
):
    """Who may kick but not ban cannot kick who is banned: where the ban is first, it soft-fails."""
    one, other = await two_moderators(hs1, alice, evil, room, ban=75)
    spam = room.send(MALLORY, "m.room.message", {"body": "spam"})
    await push(evil, hs1, [spam])
    removals = [
        room.send(sender, "m.room.member", content, state_key=MALLORY, prev=[spam])
        for sender, content in (
            (other, {"membership": "leave", FLAG: True}),
            (one, {"membership": "ban"}),
        )
    ]
    in_order = removals[::-1] if order == "ban first" else removals
    for pushed in [in_order] if order == "together" else [[event] for event in in_order]:
        await push(evil, hs1, pushed)
    shown = await shown_to(alice, room, spam)
    assert by_ban(shown)
    assert shown["unsigned"]["redacted_because"]["event_id"] == removals[0].event_id


@pytest.mark.parametrize("order", ["ban first", "ban last"])
async def test_r_14_who_slips_past_a_ban_by_a_kick_beside_it_is_redacted_all_the_same(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, order: str
):
    """State resolution prefers the kick to the ban, and a change of name to the kick."""
    one, other = await two_moderators(hs1, alice, evil, room)
    spam = room.send(MALLORY, "m.room.message", {"body": "spam"})
    await push(evil, hs1, [spam])
    banned: dict[str, object] = {"membership": "ban", FLAG: True}
    ban = room.send(one, "m.room.member", banned, state_key=MALLORY, prev=[spam])
    left: dict[str, object] = {"membership": "leave"}
    kick = room.send(other, "m.room.member", left, state_key=MALLORY, prev=[spam])
    renamed: dict[str, object] = {"membership": "join", "displayname": "Eve"}
    rename = room.send(MALLORY, "m.room.member", renamed, state_key=MALLORY, prev=[spam])
    said = room.send(MALLORY, "m.room.message", {"body": "on I go"}, prev=[rename])
    beside = [kick, rename, said]
    for event in [ban, *beside] if order == "ban first" else [*beside, ban]:
        await push(evil, hs1, [event])
    members = await alice.call("GET", f"/rooms/{quote(room.room_id)}/joined_members")
    assert MALLORY in members["joined"]
    for event in (spam, rename, said):
        stored = await hs1.services.events.get(event.event_id)
        assert stored is not None
        assert stored.redacted_by == ban.event_id
    back = room.send(MALLORY, "m.room.member", {"membership": "leave"}, state_key=MALLORY)
    joined = room.join(MALLORY)
    sorry = room.send(MALLORY, "m.room.message", {"body": "sorry"})
    await push(evil, hs1, [back, joined, sorry])
    assert not by_ban(await shown_to(alice, room, sorry))


async def test_r_14_three_servers_redact_the_same_though_one_was_away(
    federation: Federation, clock: ManualClock
):
    """While hs2 is cut off, its Mallory goes on speaking, and Alice bans her with the flag."""
    servers = await start_servers(federation, "hs1", "hs2", "hs3")
    alice, mallory, carol = [
        await server.register(name)
        for server, name in zip(servers, ("alice", "mallory", "carol"), strict=True)
    ]
    room_id = await alice.create_room()
    await mallory.call("POST", f"/join/{quote(room_id)}", {}, via="hs1")
    await carol.call("POST", f"/join/{quote(room_id)}", {}, via="hs1")
    await quiet(servers)
    said = [await mallory.say(room_id, "before")]
    await quiet(servers)
    federation.network.isolate("hs2")
    said += [await mallory.say(room_id, f"meanwhile {n}") for n in range(3)]
    wish = {"user_id": mallory.user_id, **FLAGGED}
    await alice.call("POST", f"/rooms/{quote(room_id)}/ban", wish)
    await quiet(servers)
    federation.network.heal()
    await pass_time(servers, clock, 20_000)
    for server in servers:
        stored = await server.services.events.get_many([EventId(e) for e in said])
        assert stored.keys() == set(said), server.name
        for one in stored.values():
            assert one.redacted_by is not None, server.name
            assert one.event.content == {}, server.name
    clock.advance_ms(redact_on_ban.PURGE_AFTER_MS)
    for server in servers:
        await redact_on_ban.purge_redacted(server.services)
        for event_id in said:
            text = await stored_json(server, event_id)
            assert "before" not in text
            assert "meanwhile" not in text
    await alice.call("POST", f"/rooms/{quote(room_id)}/unban", {"user_id": mallory.user_id})
    await quiet(servers)
    await mallory.call("POST", f"/join/{quote(room_id)}", {}, via="hs1")
    back = await mallory.say(room_id, "sorry")
    await quiet(servers)
    for user in (alice, mallory, carol):
        shown = await user.call("GET", f"/rooms/{quote(room_id)}/event/{quote(back)}")
        assert shown["content"]["body"] == "sorry"


# --- the power to redact -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "redacts"),
    [
        pytest.param({"redact": 50}, True, id="redact is reached"),
        pytest.param({"redact": 51}, False, id="redact is not reached"),
        pytest.param({}, True, id="redact is 50 where it is not set"),
        pytest.param({"ban": 10, "moderator": 10}, False, id="and not 0"),
        pytest.param({"events": {"m.room.redaction": 50}}, True, id="redaction events, too"),
        pytest.param({"events": {"m.room.redaction": 51}}, False, id="redaction events, not"),
    ],
)
async def test_r_5_power_is_needed(scene: Scene, levels: dict[str, Any], redacts: bool):
    level = levels.get("moderator", 50)
    said = await scene.mallory.say(scene.room_id)
    content = {key: value for key, value in levels.items() if key != "moderator"}
    content["users"] = {scene.bob.user_id: level}
    await scene.alice.put_state(scene.room_id, "m.room.power_levels", content)
    await scene.remove("ban", FLAGGED, by=scene.bob)
    assert (await scene.member())["content"]["membership"] == "ban"
    assert await scene.redacted(said) == [redacts]


async def test_r_5_creators_have_any_power(scene: Scene):
    """Since room version 12; whatever the room asks for."""
    said = await scene.mallory.say(scene.room_id)
    levels = {"redact": 1_000, "events": {"m.room.redaction": 1_000}, "users": {}}
    await scene.alice.put_state(scene.room_id, "m.room.power_levels", levels)
    await scene.remove("ban", FLAGGED)
    assert await scene.redacted(said) == [True]


async def test_r_5_a_rejected_ban_redacts_nothing(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    """Somebody without any power bans, by a server that does not mind."""
    victim = await hs1.register("victim")
    await victim.join(room.room_id)
    said = await victim.say(room.room_id, "opinion")
    await refresh(room, hs1)
    ban = room.draft(
        MALLORY, "m.room.member", {"membership": "ban", FLAG: True}, state_key=victim.user_id
    )
    await push(evil, hs1, [ban])
    stored = await hs1.services.events.get(ban.event_id)
    assert stored is None or stored.status == REJECTED
    path = f"/rooms/{quote(room.room_id)}/event/{quote(said)}"
    assert not by_ban(await alice.call("GET", path))


async def test_r_5_power_is_judged_at_the_ban_and_not_later(
    hs1: Homeserver, scene: Scene, clock: ManualClock
):
    said = await scene.mallory.say(scene.room_id)
    await scene.alice.put_state(
        scene.room_id, "m.room.power_levels", {"users": {scene.bob.user_id: 50}}
    )
    await scene.remove("ban", FLAGGED, by=scene.bob)
    await scene.alice.put_state(scene.room_id, "m.room.power_levels", {"users": {}})
    assert await scene.redacted(said) == [True]
    await purge(hs1, clock)
    assert await scene.redacted(said) == [True]


# --- what does not redact -------------------------------------------------------------


@pytest.mark.parametrize("value", [False, None, "true", 1, {}])
async def test_r_6_only_true_redacts(scene: Scene, value: object):
    said = await scene.mallory.say(scene.room_id)
    content = {"membership": "ban", **({} if value is None else {FLAG: value})}
    await scene.alice.put_state(scene.room_id, "m.room.member", content, scene.mallory.user_id)
    assert await scene.redacted(said) == [False]


async def test_r_7_leaving_by_oneself_redacts_nothing(scene: Scene):
    said = await scene.mallory.say(scene.room_id)
    await scene.mallory.put_state(
        scene.room_id, "m.room.member", {"membership": "leave", FLAG: True}, scene.mallory.user_id
    )
    assert await scene.redacted(said) == [False]


async def test_r_7_unbans_invites_and_joins_redact_nothing(scene: Scene):
    said = await scene.mallory.say(scene.room_id)
    await scene.remove("ban")
    mallory = scene.mallory.user_id
    for content in (
        {"membership": "leave", FLAG: True},
        {"membership": "invite", FLAG: True},
        {"membership": "leave", FLAG: True},
    ):
        await scene.alice.put_state(scene.room_id, "m.room.member", content, mallory)
        assert await scene.redacted(said) == [False], content


async def test_r_7_a_refused_knock_redacts_nothing(scene: Scene):
    """It looks like a kick, too."""
    said = await scene.mallory.say(scene.room_id)
    await scene.mallory.leave(scene.room_id)
    await scene.alice.put_state(scene.room_id, "m.room.join_rules", {"join_rule": "knock"})
    await scene.mallory.call("POST", f"/knock/{quote(scene.room_id)}", {})
    await scene.remove("kick", FLAGGED)
    assert (await scene.member())["content"]["membership"] == "leave"
    assert await scene.redacted(said) == [False]


async def test_r_7_banning_oneself_redacts_nothing(scene: Scene):
    await scene.alice.put_state(
        scene.room_id, "m.room.power_levels", {"users": {scene.mallory.user_id: 60}}
    )
    said = await scene.mallory.say(scene.room_id)
    wish = {"user_id": scene.mallory.user_id, **FLAGGED}
    answer = await scene.mallory.request("POST", f"{scene.path}/ban", wish)
    assert answer.status == 403, "nobody has more power than themselves"
    assert await scene.redacted(said) == [False]


@pytest.mark.parametrize("how", ["invite", "unban", "leave", "join"])
async def test_r_7_other_endpoints_drop_the_flag(scene: Scene, how: str):
    mallory = scene.mallory
    if how in ("invite", "join"):
        await mallory.leave(scene.room_id)
    if how == "unban":
        await scene.remove("ban")
    who = mallory if how in ("leave", "join") else scene.alice
    body = {"user_id": mallory.user_id, FLAG: True, "redact_events": True}
    await who.call("POST", f"{scene.path}/{how}", body)
    content = (await scene.member())["content"]
    assert FLAG not in content
    assert "redact_events" not in content


# --- the endpoints --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kick", "ban"])
@pytest.mark.parametrize("spelling", [FLAG, "redact_events"])
@pytest.mark.parametrize("value", [True, False])
async def test_r_8_the_flag_goes_into_the_event_under_its_unstable_name(
    scene: Scene,
    how: str,
    spelling: str,
    value: bool,
):
    await scene.remove(how, {"reason": "spam", spelling: value})
    content = (await scene.member())["content"]
    membership = "leave" if how == "kick" else "ban"
    assert content == {"membership": membership, "reason": "spam", FLAG: value}


@pytest.mark.parametrize("how", ["kick", "ban"])
async def test_r_8_without_the_flag_the_event_has_none(scene: Scene, how: str):
    await scene.remove(how)
    assert set((await scene.member())["content"]) == {"membership"}


@pytest.mark.parametrize("how", ["kick", "ban"])
@pytest.mark.parametrize("value", ["true", 1, None, {}])
async def test_r_8_a_flag_that_is_no_boolean_is_refused(scene: Scene, how: str, value: object):
    body = {"user_id": scene.mallory.user_id, FLAG: value}
    answer = await scene.alice.request("POST", f"{scene.path}/{how}", body)
    assert (answer.status, answer.json["errcode"]) == (400, "M_BAD_JSON")
    assert (await scene.member())["content"]["membership"] == "join"


async def test_r_8_spellings_that_disagree_are_refused(scene: Scene):
    body = {"user_id": scene.mallory.user_id, FLAG: True, "redact_events": False}
    answer = await scene.alice.request("POST", f"{scene.path}/ban", body)
    assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("membership", ["leave", "ban"])
@pytest.mark.parametrize("spelling", [FLAG, "redact_events"])
async def test_r_9_the_member_event_may_be_written_as_state(
    scene: Scene, membership: str, spelling: str
):
    said = await scene.mallory.say(scene.room_id)
    await scene.alice.put_state(
        scene.room_id, "m.room.member", {"membership": membership, spelling: True},
        scene.mallory.user_id,
    )  # fmt: skip
    assert await scene.redacted(said) == [True]


# --- the ban is redacted itself -----------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "covered"), [("11", False), ("12", False), ("org.matrix.msc4298.v1", True)]
)
async def test_r_10_a_redacted_ban_undoes_nothing_but_covers_no_more(
    hs1: Homeserver,
    alice: User,
    evil: EvilServer,
    room: Room,
    covered: bool,
):
    """V-1: only where the flag survives redaction late events stay covered (MSC4298)."""
    early = room.send(MALLORY, "m.room.message", {"body": "early"})
    await push(evil, hs1, [early])
    await ban_of_mallory(alice, room, hs1)
    ban, event = room.ends[-1], await late(room)
    path = f"/rooms/{quote(room.room_id)}/redact/{quote(ban.event_id)}/1"
    await alice.call("PUT", path, {})
    await push(evil, hs1, [event])
    shown = await shown_to(alice, room, early)
    assert by_ban(shown)
    assert (FLAG in shown["unsigned"]["redacted_because"]["content"]) is covered
    stored = await hs1.services.events.get(event.event_id)
    assert stored is not None
    assert (stored.redacted_by is not None) is covered


# --- what other servers get ---------------------------------------------------------------


async def test_r_12_other_servers_get_redacted_copies(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    mallory = await hs1.register("mallory")
    await mallory.join(room.room_id)
    said = await mallory.say(room.room_id, "spam")
    await alice.call(
        "POST", f"/rooms/{quote(room.room_id)}/ban", {"user_id": mallory.user_id, FLAG: True}
    )
    for _ in range(2):
        answer = await evil.request("hs1", "GET", f"/_matrix/federation/v1/event/{quote(said)}")
        pdu = answer["pdus"][0]  # type: ignore[index]
        assert pdu["content"] == {}
        assert pdu["hashes"]
        assert "hs1" in pdu["signatures"]
        await purge(hs1, clock)


# --- redacted twice -----------------------------------------------------------------------


async def test_r_13_bots_may_redact_again(hs1: Homeserver, scene: Scene, clock: ManualClock):
    said = await scene.mallory.say(scene.room_id)
    await scene.remove("ban", FLAGGED)
    await purge(hs1, clock)
    await scene.alice.call("PUT", f"{scene.path}/redact/{quote(said)}/1", {})
    assert await scene.redacted(said) == [True]


async def test_r_13_a_redaction_before_the_ban_stays_the_reason(
    hs1: Homeserver, scene: Scene, clock: ManualClock
):
    said = await scene.mallory.say(scene.room_id)
    await scene.alice.call("PUT", f"{scene.path}/redact/{quote(said)}/1", {})
    await scene.remove("ban", FLAGGED)
    for _ in range(2):
        because = (await scene.get(said))["unsigned"]["redacted_because"]
        assert because["type"] == "m.room.redaction"
        await purge(hs1, clock)


async def test_r_13_a_redaction_after_the_ban_is_not_the_reason(
    hs1: Homeserver, scene: Scene, clock: ManualClock
):
    """Not in memory, and not in the database, where the purge has not been yet."""
    said = await scene.mallory.say(scene.room_id)
    await scene.remove("ban", FLAGGED)
    await scene.alice.call("PUT", f"{scene.path}/redact/{quote(said)}/1", {})
    for _ in range(2):
        assert await scene.redacted(said) == [True]
        hs1.services.events.drop_committed()
        assert await scene.redacted(said) == [True]
        await purge(hs1, clock)


# --- ours: control state, the purge, what else is left behind -----------------------------------


async def test_control_state_in_force_stays(scene: Scene):
    levels = {"users": {scene.mallory.user_id: 50}, "events": {"m.room.server_acl": 50}}
    await scene.alice.put_state(scene.room_id, "m.room.power_levels", levels)
    acl = {"allow": ["*"], "deny": ["evil"]}
    old = await scene.mallory.put_state(scene.room_id, "m.room.server_acl", {"allow": ["*"]})
    now = await scene.mallory.put_state(scene.room_id, "m.room.server_acl", acl)
    name = await scene.mallory.put_state(scene.room_id, "m.room.name", {"name": "spam"})
    await scene.remove("ban", FLAGGED)
    assert (await scene.get(now))["content"] == acl
    assert (await scene.get(old))["content"] == {}
    assert (await scene.get(name))["content"] == {}


@pytest.mark.parametrize("is_late", [False, True])
async def test_r_14_control_state_in_force_before_the_ban_stays_everywhere(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, is_late: bool
):
    """On hs1 an ACL of Alice has taken its place before the ban comes; or it comes after that."""
    moderator = "@moderator:evil"
    await push(evil, hs1, [room.join(moderator)])
    levels = await alice.call("GET", f"/rooms/{quote(room.room_id)}/state/m.room.power_levels")
    levels |= {"users": {moderator: 75, MALLORY: 50}, "events": {"m.room.server_acl": 50}}
    await alice.put_state(room.room_id, "m.room.power_levels", levels)
    await refresh(room, hs1)
    content = {"allow": ["*"], "deny": ["elsewhere"]}
    acl = room.send(MALLORY, "m.room.server_acl", content, state_key="", origin_server_ts=1)
    spam = room.send(MALLORY, "m.room.message", {"body": "spam"})
    wish = {"membership": "ban", FLAG: True}
    ban = room.send(moderator, "m.room.member", wish, state_key=MALLORY)
    after = room.send(moderator, "m.room.message", {"body": "so much for that"})
    ours = await alice.put_state(room.room_id, "m.room.server_acl", {"allow": ["*"]})
    serve(evil, room, between=1)
    for events in ([after], [acl, spam]) if is_late else ([acl, spam], [ban, after]):
        assert await push(evil, hs1, events) == {event.event_id: {} for event in events}
    state = f"/rooms/{quote(room.room_id)}/state/m.room.server_acl"
    assert (await alice.call("GET", state, format="event"))["event_id"] == ours
    stored = await hs1.services.events.get_many([acl.event_id, spam.event_id])
    assert stored[acl.event_id].event.content == content
    assert stored[spam.event_id].event.content == {}


async def test_control_state_is_redacted_too_where_the_option_says_so(federation: Federation):
    server = await federation.start("hs1", redact_on_ban_spares_control_state=False)
    alice, mallory = await server.register("alice"), await server.register("mallory")
    room_id = await alice.create_room()
    await mallory.join(room_id)
    await alice.put_state(room_id, "m.room.power_levels", {"users": {mallory.user_id: 60}})
    acl = await mallory.put_state(room_id, "m.room.server_acl", {"allow": ["*"]})
    wish = {"user_id": mallory.user_id, **FLAGGED}
    await alice.call("POST", f"/rooms/{quote(room_id)}/ban", wish)
    path = f"/rooms/{quote(room_id)}/event/{quote(acl)}"
    assert (await alice.call("GET", path))["content"] == {}


async def test_r_1_guests_and_users_of_bridges_are_no_exception(
    federation: Federation, tmp_path: Path
):
    async with running_bridge(tmp_path) as bridge:
        server = await federation.start("hs1", allow_guests=True, appservice_files=str(bridge.file))
        alice, ghost = await server.register("alice"), await make_ghost(server, "_bridge_g")
        made = await server.request("POST", "/register", {}, {"kind": "guest"})
        guest = User(server, made.json["user_id"], made.json["access_token"])
        may_come = {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}
        room_id = await alice.create_room(initial_state=[may_come])
        for target in (guest, ghost):
            await target.join(room_id)
            said = await target.say(room_id, "spam")
            wish = {"user_id": target.user_id, **FLAGGED}
            await alice.call("POST", f"/rooms/{quote(room_id)}/ban", wish)
            path = f"/rooms/{quote(room_id)}/event/{quote(said)}"
            assert by_ban(await alice.call("GET", path))


async def test_the_purge_takes_the_content_out_of_the_database(
    hs1: Homeserver, scene: Scene, clock: ManualClock
):
    said = [await scene.mallory.say(scene.room_id, f"spam {n}") for n in range(3)]
    other = await scene.bob.say(scene.room_id, "spam? where")
    await scene.remove("ban", FLAGGED)
    assert "spam" in await stored_json(hs1, said[0])
    await purge(hs1, clock)
    for event_id in said:
        assert "spam" not in await stored_json(hs1, event_id)
        hs1.services.events.forget(event_id)  # type: ignore[arg-type]  # an event id
    assert "spam" in await stored_json(hs1, other)
    assert await scene.redacted(*said) == [True] * 3
    assert await hs1.services.db.fetchval("SELECT bool_and(purged) FROM redacted_stays") is True


async def test_the_purge_goes_on_where_it_was_interrupted(
    hs1: Homeserver, scene: Scene, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redact_on_ban, "EVENTS_AT_ONCE", 2)
    monkeypatch.setattr(redact_on_ban, "STEPS_AT_ONCE", 1)
    said = [await scene.mallory.say(scene.room_id, f"spam {n}") for n in range(5)]
    await scene.remove("ban", FLAGGED)
    left = []
    for _ in range(20):
        await purge(hs1, clock)
        left.append(sum(["spam" in await stored_json(hs1, event_id) for event_id in said]))
        for event_id in said:
            hs1.services.events.forget(event_id)  # type: ignore[arg-type]  # an event id
        assert await scene.redacted(*said) == [True] * 5
    assert left[0] > left[-1] == 0
    assert sorted(left, reverse=True) == left


async def test_a_purge_that_ends_after_the_ban_came_into_force_anew_uncovers_nothing(
    hs1: Homeserver, scene: Scene, clock: ManualClock
):
    """State resolution had taken the ban back; the purge ends for what was said before that."""
    said = EventId(await scene.mallory.say(scene.room_id, "spam"))
    await scene.remove("ban", FLAGGED)
    clock.advance_ms(redact_on_ban.PURGE_AFTER_MS)
    now_ms = clock.now_ms()
    (begun,) = await redacted_stays.list_unpurged(hs1.services.db, now_ms, now_ms, 1)
    stored = await hs1.services.events.get(said)
    assert stored is not None
    assert stored.position is not None
    before = replace(begun.stay, upto=stored.position - 1)
    await hs1.services.committer.commit_rows([replace(before, purged=True)])
    hs1.services.events.forget(said)
    assert await scene.redacted(said) == [True]
    assert await hs1.services.db.fetchval("SELECT purged FROM redacted_stays") is False


async def test_the_purge_takes_back_what_counted_as_unread(
    hs1: Homeserver, scene: Scene, clock: ManualClock
):
    await scene.bob.sync()
    await scene.alice.say(scene.room_id, "1")
    for n in range(3):
        await scene.mallory.say(scene.room_id, f"bob: {n}")
    await scene.alice.say(scene.room_id, "2")

    async def unread() -> tuple[int, int]:
        await scene.alice.say(scene.room_id, "and")
        counts = (await scene.bob.sync())["rooms"]["join"][scene.room_id]["unread_notifications"]
        return counts["notification_count"], counts["highlight_count"]

    before = await unread()
    await scene.remove("ban", FLAGGED)
    await purge(hs1, clock)
    after = await unread()
    assert before == (6, 3)
    assert after[1] == 0
    # Three less, one more ("and"), and the ban, which notifies nobody.
    assert after[0] == 4


async def test_what_counted_as_unread_is_taken_back_for_good(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room, clock: ManualClock
):
    """Two kicks redact the same events, and the purge of the second comes upon them again."""
    one, other = await two_moderators(hs1, alice, evil, room)
    spam = [room.send(MALLORY, "m.room.message", {"body": "spam"}) for _ in range(3)]
    await push(evil, hs1, spam)

    async def unread() -> int:
        part = (await alice.sync(full_state="true"))["rooms"]["join"][room.room_id]
        return part["unread_notifications"]["notification_count"]

    counts = [await unread()]
    for moderator in (one, other):
        kick = room.send(
            moderator, "m.room.member", {"membership": "leave", FLAG: True},
            state_key=MALLORY, prev=[spam[-1]],
        )  # fmt: skip
        await push(evil, hs1, [kick])
        await purge(hs1, clock)
        counts.append(await unread())
    assert counts == [3, 0, 0]


async def test_events_in_a_cache_are_redacted_in_every_process(hs1: Homeserver, scene: Scene):
    said = await scene.mallory.say(scene.room_id, "spam")
    stored = await hs1.services.events.get(said)  # type: ignore[arg-type]  # an event id
    assert stored is not None
    await scene.remove("ban", FLAGGED)
    assert stored.event.content == {}


# --- MSC4194: what somebody said is redacted by request -----------------------------------------


async def redact_user(
    scene: Scene, by: User, user: User, *, stable: bool = True, **query: str
) -> dict[str, Any]:
    """Ask to redact what a user said; return the answer."""
    kind = "v1" if stable else "unstable/org.matrix.msc4194"
    path = f"/_matrix/client/{kind}{scene.path}/redact/user/{quote(user.user_id)}"
    return await by.call("POST", path, {"reason": "spam"}, **query)


def done(total: int, soft_failed: int = 0, *, more: bool = False) -> dict[str, Any]:
    return {
        "is_more_events": more,
        "redacted_events": {"total": total, "soft_failed": soft_failed},
    }


@pytest.mark.spec("MSC4194#redacting-a-users-events")
@pytest.mark.parametrize("stable", [True, False])
async def test_b_1_the_newest_events_of_a_user_are_redacted_by_the_requester(
    scene: Scene, stable: bool
):
    said = [await scene.mallory.say(scene.room_id, f"{n}") for n in range(4)]
    other = await scene.bob.say(scene.room_id, "not me")
    answer = await redact_user(scene, scene.alice, scene.mallory, stable=stable, limit="3")
    assert answer == done(3, more=True)
    events = [await scene.get(event_id) for event_id in said]
    assert [bool(event["content"]) for event in events] == [True, False, False, False]
    because = events[-1]["unsigned"]["redacted_because"]
    assert (because["type"], because["sender"]) == ("m.room.redaction", scene.alice.user_id)
    assert because["content"]["reason"] == "spam"
    assert (await scene.get(other))["content"]["body"] == "not me"


async def test_b_1_the_limit_is_25_unless_it_is_given(scene: Scene):
    for n in range(27):
        await scene.mallory.say(scene.room_id, f"{n}")
    assert await redact_user(scene, scene.alice, scene.mallory) == done(25, more=True)
    # Two messages, and the join, which has a display name.
    assert await redact_user(scene, scene.alice, scene.mallory) == done(3)
    assert await redact_user(scene, scene.alice, scene.mallory) == done(0)


async def test_b_2_what_is_redacted_already_does_not_count(scene: Scene):
    said = [await scene.mallory.say(scene.room_id, f"{n}") for n in range(3)]
    await scene.mallory.leave(scene.room_id)
    for event_id in said[1:]:
        await scene.alice.call("PUT", f"{scene.path}/redact/{quote(event_id)}/{event_id[1:9]}", {})
    assert await redact_user(scene, scene.alice, scene.mallory, limit="1") == done(1, more=True)
    assert await redact_user(scene, scene.alice, scene.mallory, limit="1") == done(1, more=True)
    assert not (await scene.get(said[0]))["content"]


async def test_b_2_soft_failed_events_are_redacted_and_counted(
    hs1: Homeserver, alice: User, evil: EvilServer, room: Room
):
    await alice.call("POST", f"/rooms/{quote(room.room_id)}/ban", {"user_id": MALLORY})
    await refresh(room, hs1)
    hidden = await late(room)
    await push(evil, hs1, [hidden])
    path = f"/_matrix/client/v1/rooms/{quote(room.room_id)}/redact/user/{quote(MALLORY)}"
    answer = await alice.call("POST", path, {})
    assert answer["redacted_events"] == {"total": 2, "soft_failed": 1}  # The other is the join.
    stored = await hs1.services.events.get(hidden.event_id)
    assert stored is not None
    assert stored.redacted_by is not None


async def test_b_2_what_a_ban_has_redacted_does_not_count(scene: Scene):
    await scene.mallory.say(scene.room_id)
    await scene.remove("ban", FLAGGED)
    assert await redact_user(scene, scene.alice, scene.mallory) == done(0)


async def test_b_2_what_is_hidden_here_and_seen_elsewhere_is_redacted_everywhere(
    federation: Federation, clock: ManualClock
):
    """While hs2 is cut off Mallory is banned, without the flag; she goes on speaking there."""
    servers = await start_servers(federation, "hs1", "hs2")
    alice, mallory = [
        await server.register(name)
        for server, name in zip(servers, ("alice", "mallory"), strict=True)
    ]
    carol = await servers[1].register("carol")
    room_id = await alice.create_room()
    for user in (mallory, carol):
        await user.call("POST", f"/join/{quote(room_id)}", {}, via="hs1")
    await quiet(servers)
    federation.network.isolate("hs2")
    said = [await mallory.say(room_id, f"{n}") for n in range(3)]
    await alice.call("POST", f"/rooms/{quote(room_id)}/ban", {"user_id": mallory.user_id})
    await quiet(servers)
    federation.network.heal()
    await pass_time(servers, clock, 20_000)
    scene = Scene(alice, carol, mallory, room_id)
    answer = await redact_user(scene, alice, mallory)
    assert answer["redacted_events"]["soft_failed"] == 3
    await quiet(servers)
    for event_id in said:
        shown = await scene.get(event_id)
        assert shown["content"] == {}
        assert shown["unsigned"]["redacted_because"]["sender"] == alice.user_id


async def test_b_3_no_more_is_redacted_at_once_than_is_good_for_all(scene: Scene):
    for n in range(30):
        await scene.mallory.say(scene.room_id, f"{n}")
    answer = await redact_user(scene, scene.mallory, scene.mallory, limit="1000")
    assert answer == done(25, more=True)
    assert await redact_user(scene, scene.mallory, scene.mallory, limit="1000") == done(6)
    assert await redact_user(scene, scene.mallory, scene.mallory, limit="1000") == done(0)


async def test_b_4_power_is_needed_for_the_events_of_others(scene: Scene):
    await scene.mallory.say(scene.room_id)
    path = f"/_matrix/client/v1{scene.path}/redact/user/{quote(scene.mallory.user_id)}"
    stranger = await scene.alice.homeserver.register("stranger")
    for who in (scene.bob, stranger):
        answer = await who.request("POST", path, {})
        assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")


async def test_b_4_what_counts_is_how_many_events_were_redacted(
    federation: Federation, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    """And moderators may redact more than they may send; who redacts their own events, as many."""
    monkeypatch.setattr(user_redaction, "OTHERS_LIMIT", Limit(20, 12))
    monkeypatch.setattr(user_redaction, "OWN_LIMIT", Limit(100, 6))
    server = await federation.start("hs1", rate_limits="on")
    alice, mallory = await server.register("alice"), await server.register("mallory")
    room_id = await alice.create_room()
    await mallory.join(room_id)
    scene = Scene(alice, alice, mallory, room_id)

    async def ask(by: User, **query: str) -> tuple[int, int | None]:
        path = f"/_matrix/client/v1{scene.path}/redact/user/{quote(mallory.user_id)}"
        answer = await by.request("POST", path, {}, **query)
        told = answer.json.get("redacted_events", {}).get("total")
        assert (answer.status == 429) == (answer.json.get("errcode") == "M_LIMIT_EXCEEDED")
        return answer.status, told

    for n in range(20):
        await mallory.say(room_id, f"{n}")
    assert await ask(mallory, limit="5") == (200, 5)
    assert await ask(mallory, limit="5") == (200, 5), "there was room for one"
    assert (await ask(mallory, limit="1"))[0] == 429
    assert await ask(alice, limit="5") == (200, 5), "of others, and somebody else's"
    assert await ask(alice, limit="25") == (200, 6), "with the name that she joined by"
    for _ in range(30):
        assert await ask(alice) == (200, 0), "what redacts nothing counts for nothing"
        clock.advance_ms(100)
    for n in range(20):
        await mallory.say(room_id, f"{n}")
        clock.advance_ms(100)
    assert await ask(alice) == (200, 20)
    assert (await ask(alice))[0] == 429
    clock.advance_ms(20 * 20)
    assert await ask(alice) == (200, 0)


async def test_b_4_a_limit_must_be_a_positive_number(scene: Scene):
    path = f"/_matrix/client/v1{scene.path}/redact/user/{quote(scene.mallory.user_id)}"
    for limit in ("0", "-1", "many"):
        answer = await scene.alice.request("POST", path, {}, limit=limit)
        assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM")


async def test_the_feature_is_announced(hs1: Homeserver):
    answer = await hs1.stranger().call("GET", "/_matrix/client/versions")
    assert answer["unstable_features"]["org.matrix.msc4194"] is True


# --- rooms with a past: kicks and bans from before we were there --------------------------------


TROLL = "@troll:evil"


def troll(past: Past, body: str) -> Event:
    return past.room.send(TROLL, "m.room.message", {"body": body})


def set_troll(past: Past, membership: str, **content: object) -> Event:
    return past.room.send(
        MALLORY, "m.room.member", {"membership": membership, **content}, state_key=TROLL
    )


async def whole_past(hs1: Homeserver, alice: User, past: Past) -> dict[str, dict[str, Any]]:
    """Return every event of the room, as Alice reads it page by page."""
    ids = await pages(alice, past, 50)
    path = f"/rooms/{quote(past.room.room_id)}/event/"
    for event_id in ids:
        hs1.services.events.forget(EventId(event_id))
    return {event_id: await alice.call("GET", path + quote(event_id)) for event_id in ids}


@pytest.mark.parametrize("version", ["11", "12"])
async def test_r_14_a_ban_from_before_we_were_there_redacts_what_is_fetched_later(
    hs1: Homeserver, alice: User, evil: EvilServer, version: str
):
    """Potential issue 2: evil gives us the events as they were."""
    past = Past(evil, version)
    past.room.join(TROLL)
    spam = [troll(past, f"spam {n}") for n in range(3)]
    ban = set_troll(past, "ban", **FLAGGED)
    await join(alice, evil, past)
    events = await whole_past(hs1, alice, past)
    for event in spam:
        assert by_ban(events[event.event_id])
        because = events[event.event_id]["unsigned"]["redacted_because"]
        assert because["event_id"] == ban.event_id
        assert "spam" not in await stored_json(hs1, event.event_id)


async def test_r_14_an_old_ban_redacts_if_the_time_is_over_just_when_it_is_stored(
    hs1: Homeserver, alice: User, evil: EvilServer, monkeypatch: pytest.MonkeyPatch
):
    """Or when the process dies then: nothing fetches the ban again."""
    write_history = history_writes.write_history

    async def write_in_the_last_moment(*args: Any) -> NoReturn:
        await write_history(*args)
        raise TimeoutError

    past = Past(evil, "12")
    past.room.join(TROLL)
    spam = [troll(past, f"spam {n}") for n in range(3)]
    set_troll(past, "ban", **FLAGGED)
    set_troll(past, "leave")
    await join(alice, evil, past)
    monkeypatch.setattr(history_writes, "write_history", write_in_the_last_moment)
    await page(alice, past, 50)
    monkeypatch.undo()
    events = await whole_past(hs1, alice, past)
    assert [by_ban(events[event.event_id]) for event in spam] == [True, True, True]


@pytest.mark.parametrize("version", ["11", "12"])
async def test_r_2_an_old_ban_that_is_fetched_redacts_its_own_stay_only(
    hs1: Homeserver, alice: User, evil: EvilServer, version: str
):
    past = Past(evil, version)
    past.room.join(TROLL)
    first = troll(past, "first")
    set_troll(past, "leave")
    past.room.join(TROLL)
    second = troll(past, "second")
    set_troll(past, "ban", **FLAGGED)
    set_troll(past, "leave")
    past.room.join(TROLL)
    third = troll(past, "third")
    await join(alice, evil, past)
    events = await whole_past(hs1, alice, past)
    shown = [by_ban(events[event.event_id]) for event in (first, second, third)]
    assert shown == [False, True, False]


# --- several processes --------------------------------------------------------------------------


async def test_what_is_in_the_memory_of_another_process_is_redacted(
    database_url: str, tmp_path: Path
):
    async with running_homeserver(database_url, tmp_path, workers=2) as server:
        alice, mallory = await server.register("alice"), await server.register("mallory")
        room_id = await alice.create_room()
        await mallory.join(room_id)
        said = EventId(await mallory.say(room_id, "spam"))
        for services in server.workers:
            await services.follower.wait_for(await services.follower.fetch_position())
            assert await services.events.get(said) is not None
        wish = {"user_id": mallory.user_id, **FLAGGED}
        await alice.call("POST", f"/rooms/{quote(room_id)}/ban", wish)
        for services in server.workers:
            await services.follower.wait_for(await services.follower.fetch_position())
            stored = services.events.cached(said)
            assert stored is not None
            assert stored.event.content == {}
            assert stored.redacted_by is not None
