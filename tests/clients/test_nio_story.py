"""Two people and their clients: matrix-nio, as it is, against `minihs run` on a socket.

What nio expects of a server is what bots and bridges in the field expect.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import nio
import pytest

from tests.helpers.homeserver import PASSWORD
from tests.helpers.processes import Server, running_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

R = TypeVar("R")

TEXTS = [f"message {number}" for number in range(30)]


@pytest.fixture(params=[1, 2])
async def server(
    database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Server]:
    """`minihs run`, with one process and with two."""
    async with running_server(database_url, tmp_path, workers=request.param) as running:
        yield running


@contextlib.asynccontextmanager
async def person(server: Server, name: str) -> AsyncIterator[nio.AsyncClient]:
    """Register somebody, and yield their client."""
    client = nio.AsyncClient(server.address, name)
    try:
        registered = await client.register(name, PASSWORD, device_name=f"{name}'s telephone")
        assert isinstance(registered, nio.RegisterResponse), registered
        yield client
    finally:
        await client.close()


def good(answer: object, kind: type[R]) -> R:
    """Return an answer that must be of a kind: nio returns errors as values."""
    assert isinstance(answer, kind), answer
    return answer


async def sync(client: nio.AsyncClient) -> nio.SyncResponse:
    """Return what is new."""
    return good(await client.sync(timeout=0), nio.SyncResponse)


async def test_two_people_meet_talk_and_part(server: Server):
    async with person(server, "alice") as alice, person(server, "bob") as bob:
        made = await alice.room_create(
            name="Tea", topic="Leaves", preset=nio.RoomPreset.private_chat
        )
        room_id = good(made, nio.RoomCreateResponse).room_id
        good(await alice.room_invite(room_id, bob.user_id), nio.RoomInviteResponse)

        await sync(bob)
        assert list(bob.invited_rooms) == [room_id]
        assert bob.invited_rooms[room_id].inviter == alice.user_id
        assert bob.invited_rooms[room_id].name == "Tea"
        good(await bob.join(room_id), nio.JoinResponse)
        for client in (alice, bob):
            await sync(client)
            room = client.rooms[room_id]
            assert (room.name, room.topic) == ("Tea", "Leaves")
            assert set(room.users) == {alice.user_id, bob.user_id}
        assert bob.invited_rooms == {}

        sent = [await say(alice, room_id, text) for text in TEXTS]
        received = await sync(bob)
        timeline = received.rooms.join[room_id].timeline
        texts = [event.body for event in timeline.events if isinstance(event, nio.RoomMessageText)]
        assert timeline.limited
        assert texts == TEXTS[-len(texts) :]
        assert await page_back(bob, room_id, timeline.prev_batch) + texts == TEXTS
        assert received.rooms.join[room_id].unread_notifications.notification_count == len(TEXTS)

        await see_each_other(alice, bob, room_id, sent[-1])
        await redact(alice, bob, room_id, sent[-1])
        await part(alice, bob, room_id)


async def test_somebody_signs_out_a_device_that_has_no_name(server: Server):
    async with person(server, "carol") as carol:
        other = nio.AsyncClient(server.address, "carol")
        good(await other.login(PASSWORD), nio.LoginResponse)
        await other.close()
        listed = good(await carol.devices(), nio.DevicesResponse).devices
        assert {device.id: device.display_name for device in listed} == {
            carol.device_id: "carol's telephone",
            other.device_id: "",
        }
        asked = good(await carol.delete_devices([other.device_id]), nio.DeleteDevicesAuthResponse)
        auth = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": "carol"},
            "password": PASSWORD,
            "session": asked.session,
        }
        good(await carol.delete_devices([other.device_id], auth), nio.DeleteDevicesResponse)
        left = good(await carol.devices(), nio.DevicesResponse).devices
        assert [device.id for device in left] == [carol.device_id]


async def say(client: nio.AsyncClient, room_id: str, text: str) -> str:
    """Send a text; return the event's id."""
    content = {"msgtype": "m.text", "body": text}
    answer = await client.room_send(room_id, "m.room.message", content)
    return good(answer, nio.RoomSendResponse).event_id


async def page_back(client: nio.AsyncClient, room_id: str, start: str) -> list[str]:
    """Return the texts before a place in a room's history, oldest first."""
    texts: list[str] = []
    token: str | None = start
    while token:
        page = good(
            await client.room_messages(
                room_id, token, direction=nio.MessageDirection.back, limit=7
            ),
            nio.RoomMessagesResponse,
        )
        texts += [e.body for e in page.chunk if isinstance(e, nio.RoomMessageText)]
        token = page.end
    return texts[::-1]


async def see_each_other(
    alice: nio.AsyncClient, bob: nio.AsyncClient, room_id: str, event_id: str
) -> None:
    """Typing and receipts of one are seen by the other."""
    good(await bob.room_typing(room_id), nio.RoomTypingResponse)
    await sync(alice)
    assert alice.rooms[room_id].typing_users == [bob.user_id]
    good(await bob.room_typing(room_id, typing_state=False), nio.RoomTypingResponse)
    good(await bob.room_read_markers(room_id, event_id, event_id), nio.RoomReadMarkersResponse)
    seen = await sync(alice)
    assert alice.rooms[room_id].typing_users == []
    receipts = [
        (receipt.user_id, receipt.event_id)
        for event in seen.rooms.join[room_id].ephemeral
        if isinstance(event, nio.ReceiptEvent)
        for receipt in event.receipts
    ]
    assert receipts == [(bob.user_id, event_id)]
    own = await sync(bob)
    assert bob.rooms[room_id].fully_read_marker == event_id
    assert own.rooms.join[room_id].unread_notifications.notification_count == 0


async def redact(alice: nio.AsyncClient, bob: nio.AsyncClient, room_id: str, event_id: str) -> None:
    """What one takes back the other does not find any more."""
    good(await alice.room_redact(room_id, event_id, "a mistake"), nio.RoomRedactResponse)
    news = (await sync(bob)).rooms.join[room_id].timeline.events
    assert [type(event) for event in news] == [nio.RedactionEvent]
    shown = good(await bob.room_get_event(room_id, event_id), nio.RoomGetEventResponse)
    assert isinstance(shown.event, nio.RedactedEvent)


async def part(alice: nio.AsyncClient, bob: nio.AsyncClient, room_id: str) -> None:
    """Who leaves is seen to leave, and what they forget they find no more."""
    good(await bob.room_leave(room_id), nio.RoomLeaveResponse)
    good(await bob.room_forget(room_id), nio.RoomForgetResponse)
    await sync(alice)
    assert set(alice.rooms[room_id].users) == {alice.user_id}
    refused = await bob.room_messages(room_id, "")
    assert isinstance(refused, nio.RoomMessagesError)
    good(await bob.logout(), nio.LogoutResponse)
    assert isinstance(await bob.whoami(), nio.WhoamiError)
