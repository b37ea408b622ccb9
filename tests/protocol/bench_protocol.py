"""How fast the protocol core is where it matters: `python -m tests.protocol.bench_protocol`.

Not a test: numbers depend on the machine. The aims are well below a second for resolving the state
of a large room after a long split, and below 45 µs for making an event.
"""

from __future__ import annotations

import sys
from time import perf_counter

from minihs.protocol.canonical_json import check, decode, encode_strict
from minihs.protocol.event_assembly import EventDraft, build_event
from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId, ServerName, StateKey
from minihs.protocol.signatures import verify_event_signature
from minihs.protocol.state_resolution import resolve
from tests.helpers.rooms import ALICE, START_MS, Room, signing_key, verify_keys


def bench_state_resolution(
    version: str = "11", members: int = 5000, power: int = 50, others: int = 500
) -> tuple[float, int]:
    """Return the seconds that one resolution takes, and how many events were in conflict.

    The room has `members` members; on two sides of a split `power` events change power levels, and
    `others` change other state.
    """
    room = Room(version)
    users = {f"@moderator{i}:hs1": 50 for i in range(power)}
    first = {} if room.room_version.creators_are_privileged else {ALICE: 100}
    before = _members(room, [*users, *(f"@user{i}:hs1" for i in range(members - power))])
    levels: dict[str, object] = {"users": {**first, **users}, "state_default": 0}
    base = _add(room, before, ALICE, "m.room.power_levels", levels)

    sides = []
    for side in range(2):
        state, content = base, levels
        for i in range(power // 2):
            content = {**content, "events": {f"side{side}.kind{j}": j for j in range(i + 1)}}
            sender = f"@moderator{side * power // 2 + i}:hs1"
            state = _add(room, state, sender, "m.room.power_levels", content)
        for i in range(others // 2):
            sender = f"@user{i}:hs1"
            state = _add(room, state, sender, "m.test", {"side": side}, f"entry{i}")
        sides.append(state)

    started = perf_counter()
    resolve(room.room_version, sides, room.events)
    return perf_counter() - started, power + others


def _members(room: Room, users: list[str]) -> dict[StateKey, EventId]:
    state = dict(room.state_of(room.ends))
    for user_id in users:
        state = _add(room, state, user_id, "m.room.member", {"membership": "join"}, user_id)
    return state


def _add(
    room: Room,
    state: dict[StateKey, EventId],
    sender: str,
    event_type: str,
    content: dict[str, object],
    state_key: str = "",
) -> dict[StateKey, EventId]:
    """Add a state event after a state, without asking whether it is allowed; return the next."""
    room.state_after[room.ends[0].event_id] = state
    event = room.draft(sender, event_type, content, state_key=state_key)
    room.events[event.event_id] = event
    return {**state, event.key: event.event_id}


def bench_events(repeat: int = 5000) -> dict[str, float]:
    """Return the microseconds that one step of an event's life takes."""
    room = Room("12")
    server_name, key = ServerName("hs1"), signing_key("hs1")
    draft = EventDraft(
        room_id=room.room_id,
        sender=ALICE,
        type="m.room.message",
        content={"msgtype": "m.text", "body": "Shall we have tea?"},
        origin_server_ts=START_MS,
    )
    event_ids = list(room.events)

    def build() -> Event:
        return build_event(
            draft,
            room_version=room.room_version,
            depth=5,
            prev_event_ids=event_ids[-1:],
            auth_event_ids=event_ids[1:3],
            server_name=server_name,
            signing_key=key,
        )

    event, keys = build(), verify_keys(server_name)
    json, event_id = event.json, event.event_id
    steps = {
        "build_event": build,
        "sign 600 bytes": lambda: key.sign(json),
        "encode_strict": lambda: encode_strict(event.pdu),
        "decode and check": lambda: check(decode(json)),
        "Event.from_json": lambda: Event.from_json(json, room.room_version, event_id),
        "… and read it": lambda: Event.from_json(json, room.room_version, event_id).sender,
        "verify_event_signature": lambda: verify_event_signature(event, server_name, keys),
    }
    microseconds = {}
    for name, step in steps.items():
        started = perf_counter()
        for _ in range(repeat):
            step()
        microseconds[name] = (perf_counter() - started) / repeat * 1e6
    return microseconds


def main() -> None:
    """Print everything."""
    for name, microseconds in bench_events().items():
        sys.stdout.write(f"{name:24} {microseconds:8.1f} µs\n")
    for version in ("11", "12"):
        seconds, conflicted = bench_state_resolution(version)
        sys.stdout.write(
            f"resolve, v{version}, {conflicted} in conflict {seconds * 1000:8.1f} ms\n"
        )


if __name__ == "__main__":
    main()
