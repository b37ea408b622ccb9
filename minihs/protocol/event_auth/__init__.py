"""May this event be in this room? The authorization rules of every room version.

Two questions are asked of an event. Do the events that it names as its `auth_events` allow it
(`check_against_auth_events`)? And does a state of the room allow it (`check_state_dependent`): the
state before the event, or the current state? Every rejection is an `EventAuthError` that names the
rule and the passage.

Spec: server-server-api#authorisation-rules,
rooms/v1#authorisation-rules … rooms/v12#authorisation-rules
"""

from __future__ import annotations

from minihs.protocol.event_auth.errors import EventAuthError
from minihs.protocol.event_auth.selection import select_auth_keys, select_auth_keys_of
from minihs.protocol.event_auth.state_dependent import check_state_dependent
from minihs.protocol.event_auth.state_independent import (
    check_against_auth_events,
    check_signers,
    check_state_independent,
)

__all__ = [
    "EventAuthError",
    "check_against_auth_events",
    "check_signers",
    "check_state_dependent",
    "check_state_independent",
    "select_auth_keys",
    "select_auth_keys_of",
]
