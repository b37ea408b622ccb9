"""Push rules. Spec: client-server-api#push-rules-api."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.homeserver import Homeserver

GLOBAL = "/pushrules/global"


async def test_everybody_begins_with_the_predefined_rules(homeserver: Homeserver):
    alice = await homeserver.register("alice")

    rules = await alice.call("GET", "/pushrules/")

    assert set(rules["global"]) == {"override", "content", "room", "sender", "underride"}
    assert rules["global"]["override"][0]["rule_id"] == ".m.rule.master"
    assert await alice.call("GET", f"{GLOBAL}/") == rules["global"]
    assert await alice.call("GET", "/pushrules") == rules
    path = f"/user/{alice.user_id}/account_data/m.push_rules"
    assert await alice.call("GET", path) == rules


async def test_a_rule_of_her_own_is_made_changed_and_deleted(homeserver: Homeserver):
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    path = f"{GLOBAL}/sender/@bob:hs1"

    assert await alice.call("PUT", path, {"actions": ["dont_notify"]}) == {}
    made = await alice.call("GET", path)
    assert (await alice.call("GET", "/pushrules"))["global"]["sender"] == [made]
    await alice.call("PUT", f"{path}/enabled", {"enabled": False})
    await alice.call("PUT", f"{path}/actions", {"actions": ["notify"]})
    changed = await alice.call("GET", path)

    assert made == {
        "rule_id": "@bob:hs1",
        "default": False,
        "enabled": True,
        "actions": ["dont_notify"],
    }
    assert changed == {**made, "enabled": False, "actions": ["notify"]}
    assert await alice.call("GET", f"{path}/enabled") == {"enabled": False}
    assert await alice.call("GET", f"{path}/actions") == {"actions": ["notify"]}
    assert (await bob.request("GET", path)).status == 404
    assert await alice.call("DELETE", path) == {}
    gone = await alice.request("GET", path)
    assert (gone.status, gone.json["errcode"]) == (404, "M_NOT_FOUND")


async def test_rules_are_placed_next_to_each_other(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    body = {"actions": [], "pattern": "x"}

    await alice.call("PUT", f"{GLOBAL}/content/b", body)
    await alice.call("PUT", f"{GLOBAL}/content/a", body, before="b")
    await alice.call("PUT", f"{GLOBAL}/content/c", body, after="b")
    nowhere = await alice.request("PUT", f"{GLOBAL}/content/d", body, after="unknown")

    rules = (await alice.call("GET", GLOBAL))["content"]
    assert [rule["rule_id"] for rule in rules][:3] == ["a", "b", "c"]
    assert (nowhere.status, nowhere.json["errcode"]) == (400, "M_UNKNOWN")


async def test_a_predefined_rule_is_switched_off_and_on(homeserver: Homeserver):
    alice = await homeserver.register("alice")
    path = f"{GLOBAL}/underride/.m.rule.message"
    before = await alice.call("GET", "/pushrules")

    await alice.call("PUT", f"{path}/enabled", {"enabled": False})
    assert await alice.call("GET", f"{path}/enabled") == {"enabled": False}
    await alice.call("PUT", f"{path}/enabled", {"enabled": True})

    assert await alice.call("GET", "/pushrules") == before
    assert (await alice.request("DELETE", path)).status == 404


@pytest.mark.parametrize("path", ["postcontent/x", "room/!unknown:hs1", "override/unknown"])
@pytest.mark.parametrize("part", ["", "/enabled", "/actions"])
async def test_a_rule_that_is_not_there_is_a_404(homeserver: Homeserver, path: str, part: str):
    alice = await homeserver.register("alice")

    response = await alice.request("GET", f"{GLOBAL}/{path}{part}")

    assert (response.status, response.json["errcode"]) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "body", "errcode"),
    [
        ("content/.dot", {"actions": [], "pattern": "x"}, "M_INVALID_PARAM"),
        ("content/a%5Cb", {"actions": [], "pattern": "x"}, "M_INVALID_PARAM"),
        ("content/a", {"actions": []}, "M_MISSING_PARAM"),
        ("content/a", {"pattern": "x"}, "M_MISSING_PARAM"),
        ("content/a", {"actions": [1], "pattern": "x"}, "M_INVALID_PARAM"),
        ("nonsense/a", {"actions": []}, "M_INVALID_PARAM"),
        ("content/a", b"[]", "M_BAD_JSON"),
        ("underride/.m.rule.message/enabled", {"enabled": 1}, "M_BAD_JSON"),
        ("underride/.m.rule.message/enabled", {}, "M_MISSING_PARAM"),
        ("underride/.m.rule.message/actions", {}, "M_MISSING_PARAM"),
    ],
)
async def test_what_is_no_rule_is_refused(
    homeserver: Homeserver, path: str, body: object, errcode: str
):
    alice = await homeserver.register("alice")

    response = await alice.request("PUT", f"{GLOBAL}/{path}", body)

    assert (response.status, response.json["errcode"]) == (400, errcode)


async def test_rules_made_at_once_are_all_there(homeserver: Homeserver):
    alice = await homeserver.register("alice")

    await asyncio.gather(
        *(alice.call("PUT", f"{GLOBAL}/room/!r{n}:hs1", {"actions": ["notify"]}) for n in range(20))
    )

    assert len((await alice.call("GET", GLOBAL))["room"]) == 20
