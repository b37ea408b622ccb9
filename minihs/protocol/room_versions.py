"""What differs between room versions: a table of named rule facts.

A room version is written as its difference from the version it builds on, as the specification
does. The rest of the package asks for a fact by its name and never compares version numbers.

Spec: rooms/v1 … rooms/v12; MSC4298#proposal for `org.matrix.msc4298.v1`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from minihs.protocol.unstable import REDACT_EVENTS, ROOM_VERSION_KEEPING_REDACT_EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

PDU_BYTES_MAX: Final = 65_536
"""The largest PDU, as Canonical JSON with signatures. Spec: client-server-api#size-limits."""

FIELD_LENGTH_MAX: Final = 255
"""The longest sender, room ID, state key, type or event ID. Spec: client-server-api#size-limits."""

PREV_EVENTS_MAX: Final = 20
"""The most prev_events of a PDU. Spec: rooms/v1#event-format."""

AUTH_EVENTS_MAX: Final = 10
"""The most auth_events of a PDU. Spec: rooms/v1#event-format."""

EVERY_KEY: Final = "*"
"""Among the content keys that redaction keeps: all of them are kept."""


@dataclass(frozen=True, slots=True)
class RoomVersion:
    """The rules of one room version, by name."""

    identifier: str
    is_stable: bool
    page: str
    """The page of the specification that has its rules, for instance `rooms/v11`."""

    # Format of events.
    event_id_source: Literal["server", "hash", "hash-urlsafe"]
    """Who names an event: its server (v1, v2), or its reference hash (v3; URL-safe since v4)."""
    room_id_is_create_event_id: bool
    """Since v12: the room ID is the ID of the create event with the sigil `!`."""
    enforces_canonical_json: bool
    """Since v6: events outside Canonical JSON are discarded."""
    measures_fields_in_bytes: bool
    """Since v11 the longest fields count bytes; older rooms hold events that count code points."""
    redacts_is_in_content: bool
    """Since v11: a redaction names its target in `content`."""

    # Signing keys.
    enforces_key_validity: bool
    """Since v5: a signing key must have been valid at the event's `origin_server_ts`."""

    # State resolution.
    state_resolution: Literal["v1", "v2", "v2.1"]

    # Authorization rules.
    creator_is_in_content: bool
    """Until v10 `content.creator` of the create event names the creator; since then its sender."""
    creators_are_privileged: bool
    """Since v12: creators (there may be more) have infinite power and cannot be demoted."""
    aliases_belong_to_servers: bool
    """Until v5: `m.room.aliases` is allowed for the server that its state key names."""
    redactions_are_authorized: bool
    """Until v2 (rule 11): a redaction needs the redact level, or the target's server."""
    limits_notification_levels: bool
    """Since v6: changes under `notifications` of the power levels are checked like `events`."""
    knows_knocking: bool
    """Since v7: the membership and the join rule `knock`."""
    knows_restricted_joins: bool
    """Since v8: the join rule `restricted`."""
    knows_knock_restricted: bool
    """Since v10: the join rule `knock_restricted`."""
    requires_integer_levels: bool
    """Since v10: levels are integers; before, strings (and floats, where JSON has them) pass."""

    # Redaction.
    kept_keys: frozenset[str]
    """The top-level keys that redaction keeps."""
    kept_content: Mapping[str, frozenset[str]]
    """Per event type the keys of `content` that redaction keeps; types not listed keep nothing."""
    keeps_signed_third_party_invite: bool
    """Since v11: `third_party_invite.signed` of a membership is kept."""


V1 = RoomVersion(
    identifier="1",
    is_stable=True,
    page="rooms/v1",
    event_id_source="server",
    room_id_is_create_event_id=False,
    enforces_canonical_json=False,
    measures_fields_in_bytes=False,
    redacts_is_in_content=False,
    enforces_key_validity=False,
    state_resolution="v1",
    creator_is_in_content=True,
    creators_are_privileged=False,
    aliases_belong_to_servers=True,
    redactions_are_authorized=True,
    limits_notification_levels=False,
    knows_knocking=False,
    knows_restricted_joins=False,
    knows_knock_restricted=False,
    requires_integer_levels=False,
    kept_keys=frozenset(
        {
            "event_id", "type", "room_id", "sender", "state_key", "content", "hashes",
            "signatures", "depth", "prev_events", "prev_state", "auth_events", "origin",
            "origin_server_ts", "membership",
        }
    ),
    kept_content=MappingProxyType(
        {
            "m.room.member": frozenset({"membership"}),
            "m.room.create": frozenset({"creator"}),
            "m.room.join_rules": frozenset({"join_rule"}),
            "m.room.power_levels": frozenset(
                {
                    "ban", "events", "events_default", "kick", "redact", "state_default",
                    "users", "users_default",
                }
            ),
            "m.room.aliases": frozenset({"aliases"}),
            "m.room.history_visibility": frozenset({"history_visibility"}),
        }
    ),
    keeps_signed_third_party_invite=False,
)  # fmt: skip


def _content(
    base: RoomVersion, *, more: Mapping[str, frozenset[str]], without: str = ""
) -> Mapping[str, frozenset[str]]:
    """Return the kept content keys of `base`, with `more` added and one type left out."""
    kept = {kind: keys for kind, keys in base.kept_content.items() if kind != without}
    for kind, keys in more.items():
        kept[kind] = kept.get(kind, frozenset()) | keys
    return MappingProxyType(kept)


V2 = replace(V1, identifier="2", page="rooms/v2", state_resolution="v2")

V3 = replace(
    V2, identifier="3", page="rooms/v3", event_id_source="hash", redactions_are_authorized=False
)

V4 = replace(V3, identifier="4", page="rooms/v4", event_id_source="hash-urlsafe")

V5 = replace(V4, identifier="5", page="rooms/v5", enforces_key_validity=True)

V6 = replace(
    V5,
    identifier="6",
    page="rooms/v6",
    enforces_canonical_json=True,
    aliases_belong_to_servers=False,
    limits_notification_levels=True,
    kept_content=_content(V5, more={}, without="m.room.aliases"),
)

V7 = replace(V6, identifier="7", page="rooms/v7", knows_knocking=True)

V8 = replace(
    V7,
    identifier="8",
    page="rooms/v8",
    knows_restricted_joins=True,
    kept_content=_content(V7, more={"m.room.join_rules": frozenset({"allow"})}),
)

V9 = replace(
    V8,
    identifier="9",
    page="rooms/v9",
    kept_content=_content(
        V8, more={"m.room.member": frozenset({"join_authorised_via_users_server"})}
    ),
)

V10 = replace(
    V9, identifier="10", page="rooms/v10", knows_knock_restricted=True, requires_integer_levels=True
)

V11 = replace(
    V10,
    identifier="11",
    page="rooms/v11",
    measures_fields_in_bytes=True,
    redacts_is_in_content=True,
    creator_is_in_content=False,
    kept_keys=V10.kept_keys - {"origin", "membership", "prev_state"},
    kept_content=_content(
        V10,
        more={
            "m.room.create": frozenset({EVERY_KEY}),
            "m.room.power_levels": frozenset({"invite"}),
            "m.room.redaction": frozenset({"redacts"}),
        },
    ),
    keeps_signed_third_party_invite=True,
)

V12 = replace(
    V11,
    identifier="12",
    page="rooms/v12",
    room_id_is_create_event_id=True,
    state_resolution="v2.1",
    creators_are_privileged=True,
)

# Redacting a ban must not take away that it redacts (MSC4298#proposal). The unstable spelling of
# MSC4293 is kept as well, since that is what moderators write today.
MSC4298 = replace(
    V11,
    identifier=ROOM_VERSION_KEEPING_REDACT_EVENTS,
    is_stable=False,
    kept_content=_content(V11, more={"m.room.member": frozenset(REDACT_EVENTS.spellings)}),
)

ROOM_VERSIONS: Final[Mapping[str, RoomVersion]] = MappingProxyType(
    {
        version.identifier: version
        for version in (V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12, MSC4298)
    }
)
