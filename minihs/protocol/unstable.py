"""Names of unmerged and freshly merged MSCs: the only file that spells an unstable one.

A `Name` pairs the stable and the unstable spelling of one thing. Requests are read in either
spelling (`read`), and two spellings that disagree are reported, not guessed about. What we write
depends on how far the MSC has come: an unmerged MSC is written under its unstable name only,
because a stable key in a signed event can never be taken back; a merged one is written under
both, so that clients of either age understand us.

The file knows names only. What a name means is decided where its MSC is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Name:
    """One name of an MSC in both spellings; `merged` says whether both are written."""

    stable: str
    unstable: str
    merged: bool = False

    @property
    def written(self) -> tuple[str, ...]:
        """Return the spellings under which we write this name."""
        return (self.unstable, self.stable) if self.merged else (self.unstable,)

    @property
    def spellings(self) -> tuple[str, str]:
        """Return both spellings, the one that is in use today first."""
        return (self.unstable, self.stable)

    def either(self, source: Mapping[str, object]) -> object:
        """Return the value under the unstable name, else under the stable one, else None.

        For signed events, where a disagreement cannot be answered with an error: the unstable
        name is the one that other servers read.
        """
        if self.unstable in source:
            return source[self.unstable]
        return source.get(self.stable)

    def is_in(self, source: Mapping[str, object]) -> bool:
        """Return whether `source` has this name in either spelling."""
        return self.unstable in source or self.stable in source

    def write(self, value: object) -> dict[str, object]:
        """Return `{spelling: value}` for every spelling under which we write this name."""
        return dict.fromkeys(self.written, value)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Both spellings of one name were given, with different values: `400 M_INVALID_PARAM`."""

    name: Name

    @property
    def message(self) -> str:
        """Return the sentence for the `error` field."""
        return f"{self.name.stable} and {self.name.unstable} disagree"


def read(source: Mapping[str, object], name: Name) -> object | Disagreement | None:
    """Return the value that a request gives under either spelling; None when it gives none.

    `source` is a JSON object or the query parameters. A `Disagreement` is returned when both
    spellings are there with different values.
    """
    if name.unstable not in source:
        return source.get(name.stable)
    value = source[name.unstable]
    if name.stable in source and not _same(value, source[name.stable]):
        return Disagreement(name)
    return value


def _same(one: object, other: object) -> bool:
    # In Python True == 1 and 1.0 == 1; in JSON they are different values.
    return type(one) is type(other) and one == other


def strip(source: Mapping[str, object], name: Name) -> dict[str, object]:
    """Return a copy of `source` without `name` in any spelling."""
    return {key: value for key, value in source.items() if key not in name.spellings}


# MSC4267, automatic forgetting (merged).
FORGET_FORCED_UPON_LEAVE = Name(
    "m.forget_forced_upon_leave", "org.matrix.msc4267.forget_forced_upon_leave", merged=True
)

# Ours: which rooms were forgotten since; in `rooms` of /sync, and as an extension of sliding sync.
FORGOTTEN_SECTION = "dev.minihs.forgotten"
FORGOTTEN_EXTENSION = "dev.minihs.forgotten_rooms"

# MSC3759, leave metadata for deactivated users.
DEACTIVATED = Name("m.deactivated", "org.matrix.msc3759.deactivated")
ERASED = "dev.minihs.erased"  # Ours, beside it: the user asked that what they said be erased.

# MSC4293, redact on kick and ban; MSC4298, the room version that keeps the flag; MSC4194,
# batch redaction.
REDACT_EVENTS = Name("redact_events", "org.matrix.msc4293.redact_events")
ROOM_VERSION_KEEPING_REDACT_EVENTS = "org.matrix.msc4298.v1"
FLAG_BATCH_REDACTION = "org.matrix.msc4194"
PATH_REDACT_USER = Name(
    "/_matrix/client/v1/rooms/{roomId}/redact/user/{userId}",
    "/_matrix/client/unstable/org.matrix.msc4194/rooms/{roomId}/redact/user/{userId}",
)

# MSC4354, sticky events; MSC4480, their sliding sync extension.
FLAG_STICKY_EVENTS = "org.matrix.msc4354"
STICKY = Name("sticky", "msc4354_sticky")  # Top level of a PDU and of a client event.
STICKY_SYNC_SECTION = Name("sticky", "msc4354_sticky")  # rooms.join.{roomId} of /sync.
STICKY_DURATION_PARAMETER = Name("sticky_duration_ms", "org.matrix.msc4354.sticky_duration_ms")
STICKY_TTL = Name("sticky_duration_ttl_ms", "msc4354_sticky_duration_ttl_ms")
STICKY_KEY = Name("sticky_key", "msc4354_sticky_key")
STICKY_EXTENSION = Name("sticky_events", "org.matrix.msc4354.sticky_events")

# MSC4140, delayed events (merged); MSC4486, their list.
FLAG_DELAYED_EVENTS = "org.matrix.msc4140"
FLAG_DELAYED_EVENTS_STABLE = "org.matrix.msc4140.stable"
FLAG_DELAYED_EVENTS_LIST = "org.matrix.msc4486"
DELAYED_EVENTS_CAPABILITY = Name(
    "m.delayed_events", "org.matrix.msc4140.delayed_events", merged=True
)
DELAY_ID = Name("delay_id", "org.matrix.msc4140.delay_id", merged=True)
DELAY_PARAMETER = "org.matrix.msc4140.delay"  # Former shape: a query parameter of /send, /state.
DELAY_MS = Name("delay_ms", "delay")  # In a body at the unstable path.
DELAY_ERRCODE = "org.matrix.msc4140.errcode"
DELAY_MAX = "org.matrix.msc4140.max_delay"  # Beside the former's M_MAX_DELAY_EXCEEDED.
PATH_DELAYED_EVENT = Name(
    "/_matrix/client/v3/rooms/{roomId}/delayed_event/{eventType}/{txnId}",
    "/_matrix/client/unstable/org.matrix.msc4140/rooms/{roomId}/delayed_event/{eventType}/{txnId}",
    merged=True,
)
PATH_DELAYED_EVENTS = Name(
    "/_matrix/client/v1/delayed_events",
    "/_matrix/client/unstable/org.matrix.msc4140/delayed_events",
    merged=True,
)
PATH_DELAYED_EVENTS_LIST = "/_matrix/client/unstable/org.matrix.msc4486/delayed_events"
LIST_PREFIX = "org.matrix.msc4486."  # Of the list's query parameters.
LIST_NEXT_BATCH = Name("next_batch", "org.matrix.msc4486.next_batch", merged=True)

# MSC4169, redactions through /send in every room version (merged).
FLAG_REDACTION_BY_SEND = "com.beeper.msc4169"

# MSC4186, simplified sliding sync (merged; the unstable endpoint has the older shapes).
FLAG_SLIDING_SYNC = "org.matrix.simplified_msc3575"
PATH_SLIDING_SYNC = Name(
    "/_matrix/client/v4/sync",
    "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
    merged=True,
)

# MSC4222, the state at the end of the timeline (merged). Each spelling of the parameter is answered
# with its own spelling of the section: matrix-js-sdk knows the unstable pair only.
USE_STATE_AFTER = Name("use_state_after", "org.matrix.msc4222.use_state_after")
STATE_AFTER = Name("state_after", "org.matrix.msc4222.state_after")

# MSC4115, the reader's membership in `unsigned` (merged).
MEMBERSHIP_ON_EVENT = Name("membership", "io.element.msc4115.membership", merged=True)

# MSC3773, threaded notification counts; MSC3874, filtering /messages by relation type.
UNREAD_THREAD_NOTIFICATIONS = Name(
    "unread_thread_notifications", "org.matrix.msc3773.unread_thread_notifications", merged=True
)
RELATION_TYPES = Name("rel_types", "org.matrix.msc3874.rel_types")
NOT_RELATION_TYPES = Name("not_rel_types", "org.matrix.msc3874.not_rel_types")

# MSC3440, relation filters of the threads proposal (merged).
RELATED_BY_SENDERS = Name("related_by_senders", "io.element.relation_senders", merged=True)
RELATED_BY_RELATION_TYPES = Name("related_by_rel_types", "io.element.relation_types", merged=True)

# MSC2409, what application services are sent beside events; MSC3202, acting as a device.
APPSERVICE_EPHEMERAL = Name("ephemeral", "de.sorunome.msc2409.ephemeral", merged=True)
APPSERVICE_PUSH_EPHEMERAL = Name(
    "receive_ephemeral", "de.sorunome.msc2409.push_ephemeral", merged=True
)
APPSERVICE_PUSH_EPHEMERAL_OLDER = "push_ephemeral"
APPSERVICE_TO_DEVICE = Name("to_device", "de.sorunome.msc2409.to_device", merged=True)
APPSERVICE_DEVICE_ID_PARAMETER = Name("device_id", "org.matrix.msc3202.device_id", merged=True)

# MSC3381, polls, and MSC3930, their push rules.
POLL_START = Name("m.poll.start", "org.matrix.msc3381.poll.start")
POLL_RESPONSE = Name("m.poll.response", "org.matrix.msc3381.poll.response")
POLL_END = Name("m.poll.end", "org.matrix.msc3381.poll.end")
POLL_RULE_RESPONSE = Name(".m.rule.poll_response", ".org.matrix.msc3930.rule.poll_response")
POLL_RULE_START_ONE_TO_ONE = Name(
    ".m.rule.poll_start_one_to_one", ".org.matrix.msc3930.rule.poll_start_one_to_one"
)
POLL_RULE_START = Name(".m.rule.poll_start", ".org.matrix.msc3930.rule.poll_start")
POLL_RULE_END_ONE_TO_ONE = Name(
    ".m.rule.poll_end_one_to_one", ".org.matrix.msc3930.rule.poll_end_one_to_one"
)
POLL_RULE_END = Name(".m.rule.poll_end", ".org.matrix.msc3930.rule.poll_end")

# MSC4309, outcomes of delayed events in /sync and its filter.
DELAYED_EVENT_OUTCOMES = Name(
    "delayed_events_finalised", "org.matrix.msc4140.finalised_delayed_events"
)
