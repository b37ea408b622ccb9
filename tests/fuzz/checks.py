"""What must hold of the rows of a room, whatever came in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.protocol.canonical_json import decode_lenient
from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.storage.event_store import ACCEPTED
from tests.simulation.checks import view_of

if TYPE_CHECKING:
    from minihs.services.context import Services
    from tests.helpers.homeserver import Homeserver

# Each statement finds what there must not be: $1 is the room.
HALF_WRITTEN = {
    "an event names a state that is not there": """
        SELECT e.event_id FROM events e
        CROSS JOIN LATERAL (VALUES (e.state_before), (e.state_after), (e.room_state_before),
                                   (e.room_state_after)) AS named (state_id)
        LEFT JOIN states s ON s.state_id = named.state_id
        WHERE e.room_nid = $1 AND named.state_id > 0 AND s.state_id IS NULL
    """,
    "a state rests upon one that is not there": """
        SELECT s.state_id::text FROM states s LEFT JOIN states p ON p.state_id = s.parent_id
        WHERE $1::bigint > 0 AND s.parent_id > 0 AND p.state_id IS NULL
    """,
    "a state has an event that is not there, of another room, or of another key": """
        SELECT e.event_id FROM events e
        JOIN state_entries t ON t.state_id IN (e.state_before, e.state_after)
        LEFT JOIN events n ON n.event_nid = t.event_nid
        WHERE e.room_nid = $1 AND t.event_nid IS NOT NULL
            AND (n.event_nid IS NULL OR n.room_nid <> $1 OR n.key_nid <> t.key_nid)
    """,
    "an auth event is not there": """
        SELECT e.event_id FROM events e CROSS JOIN unnest(e.auth_nids) AS named (nid)
        LEFT JOIN events a ON a.event_nid = named.nid WHERE e.room_nid = $1 AND a.event_nid IS NULL
    """,
    "an event is refused without a reason, or has a reason and is not": """
        SELECT e.event_id FROM events e LEFT JOIN rejections j USING (event_nid)
        WHERE e.room_nid = $1 AND (e.status <> 0) <> (j.event_nid IS NOT NULL)
    """,
    "an event has a place but no state, or the other way round": """
        SELECT event_id FROM events WHERE room_nid = $1 AND status = 0
            AND (order_major IS NULL) <> (state_after IS NULL)
    """,
    "two events have one place": """
        SELECT min(event_id) FROM events WHERE room_nid = $1 AND order_major IS NOT NULL
        GROUP BY order_major, order_minor HAVING count(*) > 1
    """,
    "an event was refused, and has a place": """
        SELECT event_id FROM events
        WHERE room_nid = $1 AND status <> 0 AND (order_major IS NOT NULL OR position IS NOT NULL)
    """,
    "an event is beyond the end of the stream": """
        SELECT event_id FROM events, stream
        WHERE room_nid = $1 AND events.position > stream.position
    """,
    "a redaction is not there": """
        SELECT e.event_id FROM events e LEFT JOIN events r ON r.event_id = e.redacted_by
        WHERE e.room_nid = $1 AND e.redacted_by IS NOT NULL AND r.event_id IS NULL
    """,
    "a sticky event is not there": """
        SELECT s.event_id FROM sticky_events s LEFT JOIN events e USING (event_id)
        WHERE s.room_nid = $1 AND e.event_id IS NULL
    """,
    "the room's count is not that of its last event": """
        SELECT r.room_id FROM rooms r WHERE r.room_nid = $1 AND r.main_count <> (
            SELECT coalesce(max(main_count), 0) FROM events
            WHERE room_nid = $1 AND position IS NOT NULL
        )
    """,
}


@dataclass(frozen=True)
class _Server:
    """What `view_of` wants to know of a server."""

    name: str
    running: Services


async def database_problems(homeserver: Homeserver, room_id: str) -> list[str]:
    """Return what is wrong with the rows of a room."""
    services = homeserver.services
    view = await view_of(_Server(homeserver.name, services), room_id)
    if view is None:
        return []
    # What stands behind a gap may come before what it follows.
    problems = [problem for problem in view.problems if "came before" not in problem]
    row = await services.db.fetchrow(
        "SELECT room_nid, room_version FROM rooms WHERE room_id = $1", room_id
    )
    assert row is not None
    room_nid, version = row[0], ROOM_VERSIONS[str(row[1])]
    for what, statement in HALF_WRITTEN.items():
        found = [str(r[0]) for r in await services.db.fetch(statement, room_nid)]
        problems += [f"{what}: {event_id}" for event_id in found[:5]]
    rows = await services.db.fetch(
        """
        SELECT e.event_id, e.json, k.type, k.state_key, e.status
        FROM events e LEFT JOIN state_keys k USING (key_nid) WHERE e.room_nid = $1
        """,
        room_nid,
    )
    for event_id, text, kind, state_key, status in rows:
        pdu = decode_lenient(str(text))
        assert isinstance(pdu, dict)
        event = Event.from_pdu(pdu, version)
        if event.event_id != EventId(str(event_id)):
            problems.append(f"{event_id} is stored with the JSON of {event.event_id}")
        if event.room_id != room_id:
            problems.append(f"{event_id} is of another room")
        if event.is_state != (kind is not None) or (
            event.is_state and event.key != (kind, state_key)
        ):
            problems.append(f"{event_id} is stored under the key of {kind} {state_key}")
        if "unsigned" in pdu:
            problems.append(f"{event_id} is stored with `unsigned`")
        if status == ACCEPTED and not isinstance(pdu.get("content"), dict):
            problems.append(f"{event_id} has no content")
    return problems
