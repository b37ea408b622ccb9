"""What must hold of a room when everything has been delivered, on each server and between them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from minihs.services.rooms.heads import load_head
from minihs.storage.event_store import ACCEPTED, REJECTED, SOFT_FAILED
from minihs.storage.numbers import Numbers
from minihs.storage.state import StateStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.simulation.world import Server

MEMBER = "m.room.member"
StateKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Known:
    """An event as one server has it.

    `placed`: the server knows the state after it; `after_gap`: but not all that it follows.
    """

    event_id: str
    status: int
    placed: bool
    after_gap: bool
    position: int | None
    pdu: Mapping[str, Any]

    @property
    def prev(self) -> set[str]:
        """The events that it follows."""
        return {p if isinstance(p, str) else p[0] for p in self.pdu["prev_events"]}

    @property
    def origin(self) -> str:
        """The server of its sender."""
        return str(self.pdu["sender"]).partition(":")[2]


@dataclass(frozen=True, slots=True)
class View:
    """A room as one server has it."""

    server: str
    room_id: str
    extremities: frozenset[str]
    state: Mapping[StateKey, str]
    events: Mapping[str, Known]
    members: Mapping[str, tuple[str, str]]  # user id -> membership, event id
    forgotten: frozenset[str]  # The users who have forgotten it
    redacted: Mapping[str, str]  # event id -> because of which event
    sticky: frozenset[str]  # What clients are given
    problems: Sequence[str]

    @property
    def is_resident(self) -> bool:
        """Whether one of the server's users is in the room, as it believes."""
        return any(
            membership == "join" and user_id.partition(":")[2] == self.server
            for user_id, (membership, _) in self.members.items()
        )

    @property
    def servers(self) -> set[str]:
        """The servers in the room, as this one believes."""
        return {
            user_id.partition(":")[2]
            for user_id, (membership, _) in self.members.items()
            if membership == "join"
        }


async def view_of(server: Server, room_id: str) -> View | None:
    """Return a room as a server has it, and what is wrong with it there; None: not known."""
    services = server.running
    db, problems = services.db, list[str]()
    row = await db.fetchrow("SELECT * FROM rooms WHERE room_id = $1", room_id)
    if row is None:
        return None
    nid = row["room_nid"]
    stored = await db.fetch("SELECT * FROM events WHERE room_nid = $1", nid)
    gaps = {r["event_nid"] for r in await db.fetch("SELECT * FROM gaps WHERE room_nid = $1", nid)}
    ids = {r["event_nid"]: r["event_id"] for r in stored}
    events = {
        r["event_id"]: Known(
            r["event_id"], r["status"], r["state_after"] is not None, r["event_nid"] in gaps,
            r["position"], orjson.loads(r["json"]),
        )
        for r in stored
    }  # fmt: skip
    extremities = frozenset(ids[e] for e in row["extremities"])
    # Read anew, past the server's own memory.
    states = StateStore(db, Numbers(db, "state_numbers"))
    state = dict((await states.get(row["state_id"])).entries)
    member_rows = await db.fetch("SELECT * FROM memberships WHERE room_nid = $1", nid)
    members = {r["user_id"]: (r["membership"], r["event_id"]) for r in member_rows}
    forgotten = frozenset(r["user_id"] for r in member_rows if r["forgotten"])
    shown = await services.events.get_many(list(events))  # type: ignore[arg-type]  # event ids
    redacted = {e: s.redacted_by for e, s in shown.items() if s.redacted_by is not None}
    live = await db.fetch(
        "SELECT event_id FROM sticky_events WHERE room_nid = $1 AND until_ms > $2"
        " AND position IS NOT NULL AND told_from IS NULL",
        nid, services.clock.now_ms(),
    )  # fmt: skip
    sticky = frozenset(r["event_id"] for r in live)
    view = View(
        server.name, room_id, extremities, state, events, members, forgotten, redacted, sticky,
        problems,
    )  # fmt: skip
    problems += [f"{e} is sticky although redacted" for e in sticky & redacted.keys()]
    if not extremities:
        return view
    problems += _graph_problems(view)
    problems += _state_problems(view)
    if view.is_resident:
        problems += await _memory_problems(server, view)
    newest = await db.fetchval("SELECT position FROM stream")
    highest = max((e.position or 0 for e in events.values()), default=0)
    if not isinstance(newest, int) or highest > newest:
        problems.append(f"position {highest} is beyond the stream's {newest}")
    return view


def _graph_problems(view: View) -> list[str]:
    """Return what is wrong with a room's graph: its ends, its order."""
    problems: list[str] = []
    accepted = {e.event_id: e for e in view.events.values() if e.placed and e.status == ACCEPTED}
    followed = {p for e in accepted.values() for p in e.prev}
    problems += [f"the end {e} is not accepted" for e in view.extremities - accepted.keys()]
    problems += [f"the end {e} is followed by others" for e in view.extremities & followed]
    for event in accepted.values():
        if event.event_id in ancestors([event.event_id], view.events):
            problems.append(f"{event.event_id} follows itself")
        for prev_id in event.prev:
            if event.after_gap or _is_entry(view, event):
                break  # What came before may have been fetched later.
            prev = accepted.get(prev_id)
            if prev is not None and (prev.position or 0) > (event.position or 2**63):
                problems.append(f"{event.event_id} came before {prev_id}, which it follows")
    return problems


def _is_entry(view: View, event: Known) -> bool:
    """Return whether an event may be one by which a server came into the room."""
    pdu = event.pdu
    return (
        pdu["type"] == MEMBER
        and pdu["content"].get("membership") == "join"
        and pdu["sender"].partition(":")[2] == view.server
    )


def _state_problems(view: View) -> list[str]:
    """Return what is wrong with a room's current state, and with the members told by it."""
    problems = []
    for key, event_id in view.state.items():
        known = view.events.get(event_id)
        if known is None:
            problems.append(f"{key} of the state is {event_id}, which is not stored")
        elif known.status == REJECTED:
            problems.append(f"{key} of the state is {event_id}, which is rejected")
        elif (known.pdu["type"], known.pdu.get("state_key")) != key:
            problems.append(f"{key} of the state is {event_id}, which is no such thing")
    if not view.is_resident:
        return problems  # What it does not follow any more it need not have right.
    by_state = {key[1]: event_id for key, event_id in view.state.items() if key[0] == MEMBER}
    for user_id in by_state.keys() | view.members.keys():
        membership, event_id = view.members.get(user_id, ("leave", ""))
        in_state = by_state.get(user_id)
        if in_state is None:
            known = view.events.get(event_id)
            from_outside = known is not None and not known.placed  # An invite that nobody knows of.
            if membership != "leave" and not from_outside:
                problems.append(f"{user_id} is noted as {membership}, but not in the state")
        elif in_state != event_id and user_id in view.members:
            problems.append(f"{user_id} is noted by {event_id}, the state has {in_state}")
        elif user_id not in view.members:
            problems.append(f"{user_id} is in the state, but not noted")
        elif view.events[in_state].pdu["content"].get("membership") != membership:
            problems.append(f"{user_id} is noted as {membership}: not what {in_state} says")
    return problems


async def _memory_problems(server: Server, view: View) -> list[str]:
    """Return where what the server remembers is not what it would read."""
    problems = []
    services = server.running
    fresh = await load_head(services, view.room_id)  # type: ignore[arg-type]  # a room id
    kept = services.heads.slot(view.room_id).head
    if fresh is not None and kept is not None and not kept.is_stale:
        pairs = {
            "extremities": (
                {e.event_id for e in kept.extremities}, {e.event_id for e in fresh.extremities}
            ),
            "state": (dict(kept.state.entries), dict(fresh.state.entries)),
            "version": (kept.cursor.version, fresh.cursor.version),
            "local_members": (kept.local_members, fresh.local_members),
            "joined_count": (kept.joined_count, fresh.joined_count),
            "main_count": (kept.main_count, fresh.main_count),
        }  # fmt: skip
        problems += [
            f"the head in memory has {what} {one!r}, the database {other!r}"
            for what, (one, other) in pairs.items()
            if one != other
        ]
    cached = services.states.cached(fresh.state.state_id) if fresh is not None else None
    if cached is not None and dict(cached.entries) != dict(view.state):
        problems.append("the state in memory is not the one in the database")
    for event_id, known in view.events.items():
        in_memory = services.events.cached(event_id)  # type: ignore[arg-type]  # an event id
        if in_memory is None:
            continue
        if in_memory.status != known.status or in_memory.position != known.position:
            problems.append(
                f"{event_id} in memory has status {in_memory.status}, position"
                f" {in_memory.position}; in the database {known.status}, {known.position}"
            )
    for user_id, user_view in services.views._views.items():
        seen = user_view.rooms.get(view.room_id)
        membership, event_id = view.members.get(user_id, ("leave", ""))
        if seen is None and membership in ("join", "invite", "knock"):
            problems.append(f"{user_id} sees nothing of the room, but is {membership}")
        elif seen is not None and (seen.membership, seen.event_id) != (membership, event_id):
            problems.append(f"{user_id} sees {seen.membership}, the database has {membership}")
    return problems


def ancestors(event_ids: Iterable[str], events: Mapping[str, Known]) -> set[str]:
    """Return everything that the events follow, themselves excluded (unless in a cycle)."""
    found: set[str] = set()
    queue = [p for e in event_ids if e in events for p in events[e].prev]
    while queue:
        event_id = queue.pop()
        if event_id not in found:
            found.add(event_id)
            if event_id in events:
                queue += events[event_id].prev
    return found


def differences(views: Sequence[View]) -> list[str]:
    """Return in what the servers that are in a room do not agree."""
    problems = [f"{view.server}: {problem}" for view in views for problem in view.problems]
    residents = [view for view in views if view.is_resident]
    residents = [view for view in residents if not _is_cut_off(view, residents)]
    everything: dict[str, Known] = {}
    for view in residents:
        everything |= {e: k for e, k in view.events.items() if e not in everything or k.placed}
    names = {view.server for view in residents}
    # Who leaves a room that it takes for empty tells nobody, whoever has come in meanwhile.
    silent = {view.server for view in views if not view.is_resident and not view.servers}
    leading = {event_id for view in residents for event_id in _leading(view)}
    for view in residents:
        others = view.servers & {v.server for v in views} - silent  # Who take part in this run.
        if others != names:
            problems.append(
                f"{view.server} takes {sorted(others)} for the servers in the room; those that"
                f" believe to be in it are {sorted(names)}"
            )
        problems += _missing(view, everything, leading)
    for one, other in itertools.pairwise(residents):
        problems += _disagreement(one, other)
    for one, other in itertools.permutations(residents, 2):
        problems += _lacks_sticky(one, other, names)
        problems += _shows_redacted(one, other)
    return problems


def _is_cut_off(view: View, residents: Sequence[View]) -> bool:
    """Return whether a server soft-failed that its users were made to leave, and so was left alone.

    It hears of the room no more, and nothing that it could hear would make it change its mind: that
    is so by the specification. Whether the event is one that it may soft-fail, others test.
    """
    others = [other for other in residents if other is not view]
    if not others or any(view.server in other.servers for other in others):
        return False
    removals = {
        event_id
        for other in others
        for (kind, user_id), event_id in other.state.items()
        if kind == MEMBER and user_id.partition(":")[2] == view.server
    }
    return any(
        event_id in view.events and view.events[event_id].status == SOFT_FAILED
        for event_id in removals
    )


def _leading(view: View) -> set[str]:
    """Return the events that lead to where the graph ends, as a server has it.

    Who leaves, and comes back through another server before anybody has heard of it, builds upon
    that server's graph: the leave, and what else nobody had heard of, lead nowhere.
    """
    return ancestors(view.extremities, view.events) | view.extremities


def _missing(view: View, everything: Mapping[str, Known], leading: set[str]) -> list[str]:
    """Return which of the events that lead to an end a server lacks without having an excuse.

    What a room was before a server came in, it need not have.
    """
    excused: set[str] = set()
    placed = {e: known for e, known in view.events.items() if known.placed}
    for known in placed.values():
        if not known.prev <= placed.keys():
            excused |= ancestors([known.event_id], everything)
    judged = {e for e, known in view.events.items() if known.placed or known.status == REJECTED}
    wanted = {e for e, known in everything.items() if known.placed and known.status != REJECTED}
    return [
        f"{view.server} lacks {event_id} ({describe(everything[event_id])})"
        for event_id in sorted((wanted & leading) - judged - excused)
    ]


def describe(known: Known) -> str:
    """Return an event in a few words."""
    pdu = known.pdu
    key = f" {pdu['state_key']}" if pdu.get("state_key") else ""
    content = pdu["content"].get("membership", "")
    return f"{pdu['type']}{key} {content} by {pdu['sender']}".replace("  ", " ")


def _disagreement(one: View, other: View) -> list[str]:
    problems = []
    names = f"{one.server} and {other.server}"
    if one.extremities != other.extremities:
        problems.append(
            f"{names} have different ends: only {sorted(one.extremities - other.extremities)},"
            f" only {sorted(other.extremities - one.extremities)}"
        )
    for key in sorted(one.state.keys() | other.state.keys()):
        a, b = one.state.get(key), other.state.get(key)
        if a != b:
            problems.append(f"{names} have different states at {key}: {a}, {b}")
    for event_id in sorted(one.events.keys() & other.events.keys()):
        a_known, b_known = one.events[event_id], other.events[event_id]
        if (a_known.status == REJECTED) != (b_known.status == REJECTED):
            problems.append(
                f"{names} differ in whether {event_id} ({describe(a_known)}) is rejected:"
                f" {a_known.status}, {b_known.status}"
            )
    return problems


def _lacks_sticky(one: View, other: View, residents: set[str]) -> list[str]:
    """Return what is sticky on one server but not on another that should have it as well.

    The senders' servers send it to everybody who is there, or comes later. Where it arrives after
    its sender was made to leave, it is held back.
    """
    problems = []
    for event_id in sorted(one.sticky - other.sticky):
        known, there = one.events[event_id], other.events.get(event_id)
        if known.origin not in residents or event_id in other.redacted:
            continue
        if there is None or (there.placed and there.status == ACCEPTED):
            problems.append(
                f"{event_id} by {known.origin} is sticky on {one.server}, not on {other.server}"
            )
    return problems


def _shows_redacted(one: View, other: View) -> list[str]:
    """Return what is redacted on one server, but not on another that has the reason as well.

    Before version 11, a redaction that has itself been redacted does not say any more of what it is
    one: who gets it only then does not know.
    """
    return [
        f"{event_id} is redacted on {one.server} because of {because}, not on {other.server}"
        for event_id, because in sorted(one.redacted.items())
        if event_id in other.events
        and event_id not in other.redacted
        and because not in one.redacted
        and because in other.events
        and other.events[because].placed
        and other.events[because].status == ACCEPTED
    ]
