"""`minihs dag`: replay rooms from files, and say of everything what this server would say.

A file holds either a room (every event with its ID, hashes and verdicts, and how its states were
resolved) or a table of single questions. The answers are computed from the events alone and then
compared with those in the file, so that two implementations can be held against each other.
`explain` tells of one event how the state before it came about: sets, orderings, each check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

import orjson

from minihs.protocol import canonical_json
from minihs.protocol.event_auth import (
    EventAuthError,
    check_against_auth_events,
    check_state_dependent,
    check_state_independent,
    select_auth_keys_of,
)
from minihs.protocol.events import Event
from minihs.protocol.hashes import content_hash, has_right_content_hash, reference_hash
from minihs.protocol.identifiers import EventId, server_name_of
from minihs.protocol.redaction import redact
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.signatures import SignatureError, decode_verify_key, verify_event_signature
from minihs.protocol.state_resolution import Resolution, explain, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from minihs.protocol.identifiers import StateKey
    from minihs.protocol.room_versions import RoomVersion

Json: TypeAlias = dict[str, object]
Answers: TypeAlias = "list[object] | dict[str, list[object]]"
_T = TypeVar("_T")


def run(files: Mapping[str, bytes], explain_event: str | None = None) -> tuple[str, bool]:
    """Return what to print about files (name -> content), and whether every answer agrees.

    One file gives one JSON object, several an object of them by name. With `explain_event` the
    text is for people.

    Raises:
        ValueError: If a file is not in a format that we know, or refers to something that it does
            not hold. The message names the file.
    """
    if explain_event is not None:
        texts = [_of_file(n, lambda f: _explain(f, explain_event), d) for n, d in files.items()]
        return "\n".join(texts), True
    outputs = {name: _of_file(name, _answer, data) for name, data in files.items()}
    every_ok = all(ok for _, ok in outputs.values())
    shown: object = {name: output for name, (output, _) in outputs.items()}
    if len(outputs) == 1:
        ((shown, _),) = outputs.values()
    return orjson.dumps(shown).decode(), every_ok


def _of_file(name: str, tell: Callable[[Json], _T], data: bytes) -> _T:
    """Return what there is to tell of a file; a fault in it is told with its name."""
    try:
        return tell(_as(dict, canonical_json.decode_lenient(data)))
    except LookupError as error:
        raise ValueError(f"{name} lacks something that it refers to: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name} cannot be replayed: {error}") from error


def _answer(file: Json) -> tuple[Json, bool]:
    """Return the output for a file and whether it agrees with it."""
    if file.get("format") == "minihs-dag/1":
        replay = Replay(file)
        return replay.output(), replay.agrees()
    table = _TABLES.get(str(file.get("format")))
    if table is None:
        raise ValueError(f"unknown format {file.get('format')!r}")
    answers, ok = table(file)
    return {"answers": answers}, ok


class Replay:
    """A room, replayed event by event."""

    def __init__(self, file: Json) -> None:
        self.file = file
        self.room_version = ROOM_VERSIONS[_as(str, file["room_version"])]
        self.entries = [_as(dict, entry) for entry in _as(list, file["events"])]
        self.events = [Event.from_pdu(entry["pdu"], self.room_version) for entry in self.entries]
        self.by_id = {event.event_id: event for event in self.events}
        self.position = {event.event_id: i for i, event in enumerate(self.events)}
        self.rejected: set[EventId] = set()
        self.state_before: list[dict[StateKey, EventId]] = []
        self._state_after: dict[EventId, dict[StateKey, EventId]] = {}
        self.verdicts = [self._judge(event) for event in self.events]

    def _judge(self, event: Event) -> tuple[bool, bool | None, EventAuthError | None]:
        """Return the verdict by the auth events, that by the state before, and the reason."""
        before = self._state_before(event)
        self.state_before.append(before)
        self._state_after[event.event_id] = before
        by_auth_events = False
        try:
            auth_events = [self.by_id[e] for e in event.auth_event_ids if e in self.by_id]
            check_against_auth_events(event, auth_events, self.rejected)
            by_auth_events = True
            state = {key: self.by_id[e] for key, e in before.items()}
            check_state_dependent(event, self._with_create(event, state))
        except EventAuthError as error:
            self.rejected.add(event.event_id)
            return by_auth_events, False if by_auth_events else None, error
        if event.is_state:
            self._state_after[event.event_id] = {**before, event.key: event.event_id}
        return True, True, None

    def _state_before(self, event: Event) -> dict[StateKey, EventId]:
        states = [self._state_after[prev] for prev in event.prev_event_ids]
        return resolve(self.room_version, states, self.by_id) if states else {}

    def _with_create(self, event: Event, state: dict[StateKey, Event]) -> Mapping[StateKey, Event]:
        create = self.by_id.get(event.create_event_id or EventId(""))
        return state if create is None else {create.key: create, **state}

    def resolution(self, entry: Json) -> Resolution:
        """Return how a recorded set of states is resolved."""
        states = _as(list, self.file["states"])
        state_maps = [
            {self.events[i].key: self.events[i].event_id for i in states[row]}
            for row in _as(list, entry["states"])
        ]
        return explain(self.room_version, state_maps, self.by_id)

    def row(self, state: Mapping[StateKey, EventId]) -> list[int]:
        """Return a state as a row of positions."""
        return sorted(self.position[event_id] for event_id in state.values())

    def output(self) -> Json:
        """Return what `minihs dag` prints for the room."""
        return {
            "events": [
                {
                    "event_id": event.event_id,
                    "content_hash": content_hash(event.pdu, self.room_version),
                    "reference_hash": reference_hash(event.pdu, self.room_version),
                    "redacted": redact(event.pdu, self.room_version),
                    "auth": by_auth_events,
                    "state": by_state,
                    "why": _why(error),
                }
                for event, (by_auth_events, by_state, error) in zip(
                    self.events, self.verdicts, strict=True
                )
            ],
            "resolutions": [
                self.row(self.resolution(entry).resolved)
                for entry in _as(list, self.file["resolutions"])
            ],
        }

    def agrees(self) -> bool:
        """Return whether the answers are those that the file records."""
        output, states = self.output(), _as(list, self.file["states"])
        agree = True
        for i, (entry, mine) in enumerate(
            zip(self.entries, _as(list, output["events"]), strict=True)
        ):
            verdict = entry["verdict"]
            agree &= all(
                mine[name] == entry[name]
                for name in ("event_id", "content_hash", "reference_hash", "redacted")
            )
            agree &= mine["auth"] == verdict["auth"] and mine["state"] == verdict.get("state")
            agree &= self.row(self.state_before[i]) == sorted(states[entry["state_before"]])
            agree &= self._selects(i) == sorted(self._selection(i, entry))
        for entry, row in zip(
            _as(list, self.file["resolutions"]), _as(list, output["resolutions"]), strict=True
        ):
            agree &= row == sorted(states[entry["resolved"]])
        return agree

    def _selects(self, i: int) -> list[int]:
        """Return the positions of the auth events that we would select for an event."""
        before = self.state_before[i]
        keys = select_auth_keys_of(self.events[i])
        return sorted(self.position[before[key]] for key in keys if key in before)

    def _selection(self, i: int, entry: Json) -> list[int]:
        if "auth_selection" in entry:
            return _as(list, entry["auth_selection"])
        event = self.events[i]
        return [self.position[e] for e in event.auth_event_ids if e != event.create_event_id]


def _auth_answers(file: Json) -> tuple[Answers, bool]:
    """Judge events against states: the table `auth-v*`."""
    room_version = ROOM_VERSIONS[_as(str, file["room_version"])]

    def event(pdu: Json, name: str, prev_events: list[str]) -> Event:
        event_id = EventId(f"${name}:{server_name_of(_as(str, pdu['sender']))}")
        return Event.from_pdu(
            {"room_id": "!r:one.test", "prev_events": prev_events, **pdu}, room_version, event_id
        )

    state_events = [
        event(pdu, f"state{i}", []) for i, pdu in enumerate(_as(list, file["state_events"]))
    ]
    answers: list[object] = []
    ok = True
    for case in _as(list, file["cases"]):
        state = {state_events[i].key: state_events[i] for i in case["state"]}
        create = state_events[case["state"][0]]
        prev_event = create.event_id if case.get("prev_is_create") else "$another:one.test"
        answer = _allows(check_state_dependent, event(case["event"], "event", [prev_event]), state)
        answers.append(answer)
        ok &= case["allowed"] in (answer, None)  # None: Synapse raised an exception.
    return answers, ok


def _create_answers(file: Json) -> tuple[Answers, bool]:
    """Judge create events: the table `create`."""

    def answer(case: Json, room_version: RoomVersion) -> bool:
        event = Event.from_pdu(_as(dict, case["pdu"]), room_version)
        return _allows(check_state_independent, event, [])

    return _by_version(file["cases"], answer, lambda case: case["allowed"])


def _redact_answers(file: Json) -> tuple[Answers, bool]:
    """Redact: the table `redact`."""
    return _by_version(
        file["cases"],
        lambda case, room_version: redact(_as(dict, case["pdu"]), room_version),
        lambda case: case["redacted"],
    )


def _structure_answers(file: Json) -> tuple[Answers, bool]:
    """Find faults in auth events, hashes and signatures: the table `structure`."""
    answers: dict[str, list[object]] = {}
    ok = True
    for version, room in _as(dict, file["rooms"]).items():
        room_version = ROOM_VERSIONS[version]
        events = [Event.from_pdu(entry["pdu"], room_version) for entry in room["events"]]
        by_id = {event.event_id: event for event in events}
        rejected = {events[i].event_id for i in room["rejected"]}
        answers[version] = []
        for case in room["cases"]:
            event = Event.from_pdu(case["pdu"], room_version)
            auth_events = [by_id[e] for e in event.auth_event_ids if e in by_id]
            answer = {
                "auth": _allows(check_against_auth_events, event, auth_events, rejected),
                "hash": has_right_content_hash(event.pdu, room_version),
                "signature": _is_signed_by_sender(event, room["verify_keys"]),
            }
            answers[version].append(answer)
            ok &= all(case.get(name, value) == value for name, value in answer.items())
            ok &= case.get("event_id", event.event_id) == event.event_id
    return answers, ok


def _canonical_answers(file: Json) -> tuple[Answers, bool]:
    """Write Canonical JSON, or null where there is none: the table `canonical`."""
    answers: list[object] = []
    for case in _as(list, file["cases"]):
        try:
            answers.append(canonical_json.canonicalize(case["json"]).decode())
        except (canonical_json.JsonError, canonical_json.CanonicalJsonError):
            answers.append(None)
    return answers, answers == [case["canonical"] for case in _as(list, file["cases"])]


_TABLES: dict[str, Callable[[Json], tuple[Answers, bool]]] = {
    "minihs-auth/1": _auth_answers,
    "minihs-create/1": _create_answers,
    "minihs-redact/1": _redact_answers,
    "minihs-structure/1": _structure_answers,
    "minihs-canonical/1": _canonical_answers,
}


def _by_version(
    cases: object,
    answer: Callable[[Json, RoomVersion], object],
    expected: Callable[[Json], object],
) -> tuple[Answers, bool]:
    answers: dict[str, list[object]] = {}
    ok = True
    for version, listed in _as(dict, cases).items():
        answers[version] = [answer(case, ROOM_VERSIONS[version]) for case in listed]
        ok &= answers[version] == [expected(case) for case in listed]
    return answers, ok


def _allows(check: Callable[..., None], *arguments: object) -> bool:
    try:
        check(*arguments)
    except EventAuthError:
        return False
    return True


def _is_signed_by_sender(event: Event, verify_keys: Mapping[str, Mapping[str, str]]) -> bool:
    server_name = server_name_of(event.sender)
    decoded = {
        key_id: key
        for key_id, text in verify_keys.get(server_name, {}).items()
        if (key := decode_verify_key(text)) is not None
    }
    try:
        verify_event_signature(event, server_name, decoded)
    except SignatureError:
        return False
    return True


def _explain(file: Json, event_id: str) -> str:
    """Return, for people, how the state before an event came about, and the event's verdict."""
    if file.get("format") != "minihs-dag/1":
        raise ValueError("only a room can be explained")
    replay = Replay(file)
    if event_id not in replay.by_id:
        raise ValueError(f"no event {event_id} in this room")
    event = replay.by_id[EventId(event_id)]
    states = [replay._state_after[prev] for prev in event.prev_event_ids]  # noqa: SLF001  Ours.
    lines = [f"{_describe(event)}, room version {replay.room_version.identifier}"]
    if len(states) > 1:
        lines += _explain_resolution(explain(replay.room_version, states, replay.by_id), replay)
    else:
        lines.append("The state before it is the state after its one prev_event.")
    by_auth_events, by_state, error = replay.verdicts[replay.position[event.event_id]]
    lines.append(f"Verdict: by its auth events {by_auth_events}, by the state before it {by_state}")
    if error is not None:
        lines.append(f"  because {_why(error)}")
    return "\n".join(lines)


def _explain_resolution(resolution: Resolution, replay: Replay) -> list[str]:
    def describe(event_id: EventId) -> str:
        return _describe(replay.by_id[event_id])

    lines = [f"Not in conflict: {len(resolution.unconflicted)} entries of the state"]
    for key, event_ids in sorted(resolution.conflicted.items()):
        lines.append(f"In conflict: {key}")
        lines += [f"  {describe(event_id)}" for event_id in sorted(event_ids)]
    for name, listed in (*resolution.sets.items(), *resolution.orderings.items()):
        lines.append(f"The {name}:")
        in_order = (
            sorted(listed, key=replay.position.__getitem__) if isinstance(listed, set) else listed
        )
        lines += [f"  {describe(event_id)}" for event_id in in_order]
    lines.append("Checks:")
    for check in resolution.checks:
        outcome = "allowed" if check.error is None else f"refused, {_why(check.error)}"
        lines.append(f"  {check.step}: {describe(check.event_id)}: {outcome}")
    lines.append("Outcome:")
    for key in sorted(resolution.conflicted):
        winner = resolution.resolved.get(key)
        lines.append(f"  {key}: {'nothing' if winner is None else describe(winner)}")
    return lines


def _describe(event: Event) -> str:
    key = f" {event.state_key!r}" if event.is_state else ""
    return f"{event.event_id} ({event.type}{key} by {event.sender})"


def _why(error: EventAuthError | None) -> str | None:
    return None if error is None else f"{error.rule} ({error.passage}): {error.message}"


def _as(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"{value!r:.60} is not a {kind.__name__}")  # noqa: TRY004  A faulty file.
    return value
