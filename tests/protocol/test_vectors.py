"""Every room and table with expected answers gets the expected answers."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from minihs.__main__ import _dag
from minihs.protocol import canonical_json, dag
from minihs.protocol.events import Event
from minihs.protocol.identifiers import EventId, StateKey
from minihs.protocol.redaction import redact
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.state_resolution import resolve
from minihs.protocol.state_resolution.state_maps import conflicted_state_subgraph

if TYPE_CHECKING:
    from minihs.protocol.room_versions import RoomVersion

OWN = Path(__file__).parent / "vectors"
SHARED = Path(__file__).parents[2].parent / "shared" / "vectors"


def content(*paths: Path) -> dict[str, bytes]:
    files = {str(path): path.read_bytes() for path in paths}
    return {n: gzip.decompress(f) if n.endswith(".gz") else f for n, f in files.items()}


OWN_FILES = sorted(path for path in OWN.glob("*.gz") if not path.name.startswith("public-"))
SHARED_FILES = sorted([*SHARED.glob("*.json.gz"), *SHARED.glob("tables/*.json.gz")])


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: path.name)
def test_minihs_dag_agrees_with_the_file(path: Path) -> None:
    _, agrees = dag.run(content(path))
    assert agrees


@pytest.mark.skipif(not SHARED_FILES, reason="the folder ../shared/vectors is not there")
def test_minihs_dag_agrees_with_every_file_of_the_reference_folder() -> None:
    differing = [path.name for path in SHARED_FILES if not dag.run(content(path))[1]]
    assert differing == []


def test_a_wrong_answer_in_a_file_is_noticed(tmp_path: Path) -> None:
    file = canonical_json.decode(gzip.decompress((OWN / "v12-A-7f3-7-100.json.gz").read_bytes()))
    assert isinstance(file, dict)
    verdict = file["events"][50]["verdict"]
    verdict["auth"] = not verdict["auth"]
    path = tmp_path / "wrong.json"
    path.write_bytes(canonical_json.encode(file))
    assert dag.run(content(path))[1] is False


def test_a_merge_is_explained_for_people() -> None:
    path = OWN / "v12-A-7f3-7-100.json.gz"
    file = canonical_json.decode(gzip.decompress(path.read_bytes()))
    assert isinstance(file, dict)
    merge = next(entry for entry in file["resolutions"] if entry["kind"] == "merge")
    event_id = file["events"][merge["event"]]["event_id"]
    text, _ = dag.run(content(path), event_id)
    assert event_id in text
    for heading in ("In conflict:", "The auth difference:", "The mainline ordering:", "Outcome:"):
        assert heading in text


def test_several_files_are_answered_by_path() -> None:
    paths = [OWN / "create.json.gz", OWN / "redact.json.gz"]
    text, agrees = dag.run(content(*paths))
    output = canonical_json.decode(text)
    assert agrees
    assert isinstance(output, dict)
    assert list(output) == [str(path) for path in paths]


def public(name: str) -> object:
    return canonical_json.decode_lenient(
        gzip.decompress((OWN / f"public-{name}.json.gz").read_bytes())
    )


def resolution_cases() -> list[dict[str, object]]:
    cases = public("resolve")
    assert isinstance(cases, list)
    return cases


State = dict[StateKey, EventId]


def read_case(
    case: dict[str, list[dict[str, object]]],
) -> tuple[RoomVersion, list[State], dict[EventId, Event], State]:
    """Return a case's room version, states and events, and what the states resolve to."""
    room_version = ROOM_VERSIONS[str(case["room_version"])]
    room_id = "!" + _event_id(case["events"][0]["event_id"])[1:]
    events = {}
    for pdu in case["events"]:
        references = {
            name: [_event_id(label) for label in _labels(pdu[name])]
            for name in ("prev_events", "auth_events")
        }
        named = {"room_id": room_id} if pdu["type"] != "m.room.create" else {}
        event_id = _event_id(pdu["event_id"])
        events[event_id] = Event.from_pdu({**pdu, **references, **named}, room_version, event_id)

    def state_map(labels: object) -> dict[StateKey, EventId]:
        listed = [events[_event_id(label)] for label in _labels(labels)]
        return {event.key: event.event_id for event in listed}

    states = [state_map(labels) for labels in case["states"]]
    return room_version, states, events, state_map(case["resolved"])


@pytest.mark.spec("rooms/v2#state-resolution", "rooms/v12#state-resolution")
@pytest.mark.parametrize("case", resolution_cases(), ids=lambda case: str(case["name"]))
def test_public_cases_of_state_resolution(case: dict[str, list[dict[str, object]]]) -> None:
    room_version, states, events, resolved = read_case(case)
    assert resolve(room_version, states, events) == resolved


@pytest.mark.spec("rooms/v2#state-resolution", "rooms/v12#state-resolution")
@pytest.mark.parametrize("case", resolution_cases(), ids=lambda case: str(case["name"]))
def test_A06_resets_of_the_state_come_out_alike_in_any_order(
    case: dict[str, list[dict[str, object]]],
) -> None:
    """More than a thousand orders in all of states, of entries in a state, and of events."""
    room_version, states, events, resolved = read_case(case)
    chance = Random(str(case["name"]))

    def shuffled(mapping: dict) -> dict:
        return dict(chance.sample(list(mapping.items()), len(mapping)))

    for _ in range(40):
        given = [shuffled(state) for state in chance.sample(states, len(states))]
        given += chance.choices(given, k=chance.randrange(2))
        assert resolve(room_version, given, shuffled(events)) == resolved


def test_A06_the_cases_have_each_shape() -> None:
    names = " ".join(str(case["name"]) for case in resolution_cases())
    shapes = ["problem_a", "problem_b", "conflicted subgraph", "mainline", "ban_vs_power_levels"]
    assert [shape for shape in shapes if shape not in names] == []
    assert len(resolution_cases()) * 40 > 1_000


def _event_id(label: object) -> EventId:
    return EventId("$" + str(label).removeprefix("$"))


def _labels(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


@pytest.mark.spec("rooms/v12#definitions")
def test_public_cases_of_the_conflicted_state_subgraph() -> None:
    file = public("subgraph")
    assert isinstance(file, dict)
    auth_events = file["auth_events"]
    for case in file["cases"]:
        assert conflicted_state_subgraph(case["conflicted"], auth_events.__getitem__) == set(
            case["subgraph"]
        )


@pytest.mark.spec("rooms/v11#redactions")
def test_public_cases_of_redaction() -> None:
    cases = public("redact")
    assert isinstance(cases, list)
    for case in cases:
        for version in case["versions"]:
            top = case.get("top", {})
            pdu = {"type": case["type"], "content": case["content"], **top}
            kept = {key: top[key] for key in case.get("top_kept", ())}
            assert redact(pdu, ROOM_VERSIONS[version]) == {
                "type": case["type"], "content": case["kept"], **kept,
            }, (version, case)  # fmt: skip


def test_the_command_prints_and_tells_by_its_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _dag([OWN / "create.json.gz"], None) == 0
    assert canonical_json.decode(capsys.readouterr().out)
    (tmp_path / "odd.json").write_text('{"format":"odd/1"}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.json").write_text('{"format":"minihs-dag/1"}')
    (tmp_path / "plain.json.gz").write_text("{}")
    (tmp_path / "torn.json.gz").write_bytes(gzip.compress(b"{}")[:10] + b"\xff" * 8)
    for name, told in (
        ("odd.json", "cannot be replayed: unknown format 'odd/1'"),
        ("broken.json", "cannot be replayed: "),
        ("empty.json", "lacks something that it refers to: 'room_version'"),
        ("absent.json", "cannot be read: No such file or directory"),
        ("plain.json.gz", "cannot be read: Not a gzipped file"),
        ("torn.json.gz", "cannot be read: Error -3"),
    ):
        path = tmp_path / name
        for files in ([path], [OWN / "create.json.gz", path]):
            assert _dag(files, None) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"minihs dag: {path} {told}"), said
        assert _dag([path], "$event") == 2
        assert capsys.readouterr().err.startswith(f"minihs dag: {path} ")
