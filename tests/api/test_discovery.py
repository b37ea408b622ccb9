"""What the server tells of itself: versions, capabilities, well-known files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.helpers.homeserver import running_homeserver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.homeserver import Homeserver


async def test_versions_are_told_to_everybody(homeserver: Homeserver):
    answer = await homeserver.request("GET", "/_matrix/client/versions")

    assert answer.status == 200
    assert "v1.16" in answer.json["versions"]
    for version in answer.json["versions"]:
        assert re.fullmatch(r"r0\.\d+\.\d+|v[1-9]\d*\.\d+(?:-\S+)?", version)
    assert all(type(value) is bool for value in answer.json["unstable_features"].values())


async def test_a_browser_is_told_what_answers(homeserver: Homeserver):
    async with homeserver.client.get("/") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        assert "the Matrix homeserver of hs1" in await answer.text()
    async with homeserver.client.get("/index.html") as answer:
        assert answer.status == 404


@pytest.mark.spec("MSC4267#proposal")
@pytest.mark.parametrize("forced", [False, True])
async def test_capabilities_follow_the_configuration(
    database_url: str, tmp_path: Path, forced: bool
):
    async with running_homeserver(
        database_url, tmp_path, forget_rooms_on_leave=forced
    ) as homeserver:
        alice = await homeserver.register("alice")
        capabilities = (await alice.call("GET", "/capabilities"))["capabilities"]
        unknown = await homeserver.request("GET", "/capabilities")

    assert capabilities["m.room_versions"]["default"] == "11"
    assert {str(n): "stable" for n in range(1, 13)}.items() <= (
        capabilities["m.room_versions"]["available"].items()
    )
    assert capabilities["m.change_password"] == {"enabled": True}
    assert capabilities["m.3pid_changes"] == {"enabled": False}
    for name in (
        "m.forget_forced_upon_leave",
        "org.matrix.msc4267.forget_forced_upon_leave",
    ):
        assert capabilities[name] == {"enabled": forced}
    assert unknown.status == 401


async def test_what_is_not_configured_is_not_told(homeserver: Homeserver):
    for name in ("client", "server", "support"):
        answer = await homeserver.request("GET", f"/.well-known/matrix/{name}")
        assert (answer.status, answer.json["errcode"]) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("contact", "kind"), [("@boss:hs1", "matrix_id"), ("boss@hs1.example", "email_address")]
)
async def test_what_is_configured_is_told(
    database_url: str, tmp_path: Path, contact: str, kind: str
):
    async with running_homeserver(
        database_url,
        tmp_path,
        public_base_url="https://matrix.hs1",
        well_known_server="matrix.hs1:443",
        support_contact=contact,
    ) as homeserver:
        answers = [
            await homeserver.request("GET", f"/.well-known/matrix/{name}")
            for name in ("client", "server", "support")
        ]

    assert [a.json for a in answers] == [
        {"m.homeserver": {"base_url": "https://matrix.hs1"}},
        {"m.server": "matrix.hs1:443"},
        {"contacts": [{kind: contact, "role": "m.role.admin"}]},
    ]
    assert all(a.headers["Access-Control-Allow-Origin"] == "*" for a in answers)
    assert all(a.headers["Server"] == "minihs" for a in answers)
