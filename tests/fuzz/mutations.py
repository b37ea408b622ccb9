"""How valid JSON becomes something else: every choice is made by a `Random`, so a seed is a story.

`random.Random` and the one of `hypothesis.strategies.randoms` are both good for it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    Place = tuple[dict | list, object]

T = TypeVar("T")

NUMBERS: Sequence[object] = (
    0, 1, -1, 2, 100, 255, 2**31, 2**53 - 1, 2**53, -(2**53), 2**63 - 1, 2**63, 2**64, 10**30,
    1.0, -0.0, 1.5, 1e100, -1e-7,
)  # fmt: skip
TEXTS: Sequence[str] = (
    "", "\0", "a\0b", " ", "*", "?", "%00", "%2F", "..", "\n", '"', "\\", "'; --", "💥" * 64,
    "x" * 256, "x" * 70_000, "\u202e", "join", "leave", "ban", "invite", "knock", "public",
    "restricted", "1", "6", "12", "99", "m.room.member", "m.room.create", "m.room.power_levels",
    "@alice:hs1", "@mallory:evil", "@nobody:elsewhere", "@:", "@a:b:c:d", "!room:hs1", "!", "$",
    "$event:evil", "#alias:hs1", "evil", "hs1", "[::1]:8448", "ed25519:test", "m.thread",
    "null", "true", "-1", "1e3",
)  # fmt: skip
KEYS: Sequence[str] = (
    "type", "state_key", "sender", "room_id", "content", "depth", "prev_events", "auth_events",
    "hashes", "signatures", "unsigned", "origin", "origin_server_ts", "event_id", "redacts",
    "membership", "displayname", "avatar_url", "reason", "users", "users_default", "events",
    "events_default", "state_default", "ban", "kick", "redact", "invite", "notifications",
    "room_version", "predecessor", "additional_creators", "creator", "m.federate", "join_rule",
    "allow", "third_party_invite", "signed", "join_authorised_via_users_server", "deny",
    "m.relates_to", "m.new_content", "rel_type", "key", "body", "msgtype", "m.mentions",
    "user_ids", "room", "history_visibility", "alias", "alt_aliases", "via", "suggested", "order",
    "msc4354_sticky", "duration_ms", "sha256", "", "\0", "__proto__", "x" * 300,
)  # fmt: skip
TOKENS: Sequence[bytes] = (
    b"NaN", b"Infinity", b"-0", b"1e2", b"1.0", b"1e999", b"9" * 400, b"\\ud800", b"\\u0000",
    b"\xff", b"\xc0\x80", b"\x00", b"\xef\xbb\xbf", b'"', b"\\", b"{", b"}", b"[", b"]", b",",
    b":", b"null", b"[" * 300, b"[" * 20_000, b'{"a":' * 200, b"//", b"\xed\xa0\x80",
)  # fmt: skip
DEPTHS = (2, 20, 99, 101, 250, 260)


class Mutator:
    """Changes JSON. `words` are values that mean something where it is sent: ids, keys.

    `changes` counts the values that it has changed.
    """

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.words: list[object] = []
        self.changes = 0

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of some values."""
        return choices[self.chance.randrange(len(choices))]

    def often(self, permille: int) -> bool:
        """Return whether something happens that does so that often."""
        return self.chance.randrange(1000) < permille

    # --- values -----------------------------------------------------------------------------------

    def value(self) -> object:
        """Return a value of any type."""
        kind = self.chance.randrange(12)
        if kind < 3:
            return self.pick(TEXTS)
        if kind < 5:
            return self.pick(NUMBERS)
        if kind < 8 and self.words:
            return copy.deepcopy(self.pick(self.words))
        if kind == 8:
            value = self.pick((None, True, {}, []))
            for _ in range(self.pick(DEPTHS)):
                value = [value] if self.often(700) else {"a": value}
            return value
        if kind == 9:
            return [self.value() for _ in range(self.chance.randrange(4))]
        if kind == 10:
            return {self.pick(KEYS): self.value() for _ in range(self.chance.randrange(4))}
        return self.pick((None, True, False, [], {}))

    def json(self, value: object, times: int | None = None) -> object:
        """Return a changed copy of a JSON value."""
        box: list[object] = [copy.deepcopy(value)]
        self.changes += 1
        for _ in range(times or 1 + self.chance.randrange(3)):
            self._change(box)
        return box[0]

    def _change(self, box: list[object]) -> None:
        places = _places(box)
        container, key = places[self.chance.randrange(len(places))]
        old = container[key]  # type: ignore[index]
        change = self._CHANGES[self.chance.randrange(len(self._CHANGES))]
        change(self, places, container, key, old)

    def _replace(self, _places: list[Place], container: Any, key: Any, _old: Any) -> None:
        container[key] = self.value()

    def _swap(self, places: list[Place], container: Any, key: Any, old: Any) -> None:
        other, other_key = places[self.chance.randrange(len(places))]
        new = copy.deepcopy(other[other_key])  # type: ignore[index]
        if self.often(500):
            other[other_key] = copy.deepcopy(old)  # type: ignore[index]
        container[key] = new

    def _delete(self, _places: list[Place], container: Any, key: Any, _old: Any) -> None:
        if container is not _places[0][0]:
            del container[key]

    def _double(self, _places: list[Place], container: Any, key: Any, old: Any) -> None:
        if isinstance(container, list) and container is not _places[0][0]:
            times = self.pick((1, 2, 30))
            container[key:key] = [copy.deepcopy(old) for _ in range(times)]
        elif isinstance(container, dict):
            container[self.pick(KEYS)] = copy.deepcopy(old)

    def _rename(self, _places: list[Place], container: Any, key: Any, _old: Any) -> None:
        if isinstance(container, dict):
            container[self.pick(KEYS)] = container.pop(key)

    def _add(self, _places: list[Place], container: Any, key: Any, old: Any) -> None:
        if isinstance(old, dict):
            old[self.pick(KEYS)] = self.value()
        elif isinstance(old, list):
            old.insert(self.chance.randrange(len(old) + 1), self.value())
        else:
            self._twist(_places, container, key, old)

    def _wrap(self, _places: list[Place], container: Any, key: Any, old: Any) -> None:
        container[key] = [old] if self.often(500) else {self.pick(KEYS): old}

    def _twist(self, _places: list[Place], container: Any, key: Any, old: Any) -> None:
        """Change a value a little."""
        if isinstance(old, bool) or old is None:
            container[key] = not old
        elif isinstance(old, (int, float)):
            container[key] = self.pick((old + 1, old - 1, -old, str(old), old + 0.5, f" {old} "))
        elif isinstance(old, str):
            at = self.chance.randrange(len(old) + 1)
            container[key] = self.pick(
                (
                    old[:at], old[at:], old[:at] + str(self.pick(TEXTS)) + old[at:], old.upper(),
                    old[::-1], old + old, f" {old}", old.replace(":", ""), [old], len(old),
                )
            )  # fmt: skip
        elif isinstance(old, list):
            self.chance.shuffle(old)
        else:
            container[key] = list(old.items()) if isinstance(old, dict) else None

    _CHANGES: Sequence[Callable[..., None]] = (
        _replace, _replace, _swap, _delete, _double, _rename, _add, _wrap, _twist, _twist,
    )  # fmt: skip

    # --- bytes ------------------------------------------------------------------------------------

    def bytes(self, data: bytes) -> bytes:
        """Return changed bytes."""
        changed = bytearray(data)
        self.changes += 1
        for _ in range(1 + self.chance.randrange(3)):
            at, other = (self.chance.randrange(len(changed) + 1) for _ in range(2))
            end = min(at + 1 + self.chance.randrange(20), len(changed))
            kind = self.chance.randrange(7)
            if kind == 0 and at < len(changed):
                changed[at] ^= 1 << self.chance.randrange(8)
            elif kind == 1:
                del changed[at:end]
            elif kind == 2:
                changed[at:at] = self.pick(TOKENS)
            elif kind == 3:
                changed[other:other] = changed[at:end]
            elif kind == 4:
                changed[at:end] = self.pick(TOKENS)
            elif kind == 5 and self.often(200):
                del changed[at:]
            else:
                changed[at:at] = bytes([self.chance.randrange(256)])
        return bytes(changed)


def _places(box: list[object]) -> list[Place]:
    """Return where there are values, level by level; the first is the value itself."""
    found: list[Place] = []
    queue: list[object] = [box]
    for container in queue:
        keys = container if isinstance(container, dict) else range(len(container))  # type: ignore[arg-type]
        for key in keys:
            found.append((container, key))  # type: ignore[arg-type]
            value = container[key]  # type: ignore[index]
            if isinstance(value, (dict, list)):
                queue.append(value)
        if len(found) > 2_000:
            break
    return found
