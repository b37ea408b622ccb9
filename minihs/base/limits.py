"""What those outside may ask, send and store at most, with its unit and where it comes from.

How much a mechanism of ours does at once, keeps in memory or waits stands beside that mechanism.
"""

from __future__ import annotations

# Sizes of events, Spec: client-server-api#size-limits
PDU_BYTES_MAX = 65_536
IDENTIFIER_BYTES_MAX = 255

# Ours: a client body larger than an event can be is refused before it is parsed.
BODY_BYTES_MAX = 1_048_576
BODY_TIMEOUT_MS = 60_000  # From the headers to the body's end; ours.
# 50 PDUs of the largest size, and EDUs. Spec: server-server-api#transactions
SERVER_BODY_BYTES_MAX = 200 * PDU_BYTES_MAX
JSON_DEPTH_MAX = 100

# Ours, as other servers do.
TIMELINE_LIMIT_DEFAULT = 10
TIMELINE_LIMIT_MAX = 1_000
PAGE_LIMIT_DEFAULT = 10
PAGE_LIMIT_MAX = 1_000
CONTEXT_LIMIT_DEFAULT = 10
CONTEXT_LIMIT_MAX = 100
SPACE_PAGE_LIMIT_DEFAULT = 50
SPACE_PAGE_LIMIT_MAX = 100
SPACE_PAGE_MS = 15_000  # A page ends early when other servers took so long to tell of its rooms.
SPACE_DEPTH_MAX = 50
SPACE_ROOMS_MAX = 5_000  # Of one walk through a space, on all pages.
SPACE_CHILDREN_MAX = 1_000
SUMMARY_TIMEOUT_MS = 10_000
SUMMARY_KEPT_MS = 60_000  # What another server told of a room.
SYNC_TIMEOUT_MAX_MS = 300_000
SLIDING_LISTS_MAX = 100  # MSC4186#top-level; as many subscriptions.
SLIDING_TIMELINE_LIMIT_MAX = 100
SLIDING_WISHES_MAX = 5_000  # Elements of required state, and names in filters, of a request; ours.
STICKY_EVENTS_DEFAULT = 100  # MSC4480#proposal.
PREV_EVENTS_MAX = 10  # Spec allows 20 (server-server-api#pdus); fewer keep the DAG narrow.
PASSWORD_BYTES_MAX = 512
DEVICE_NAME_CHARS_MAX = 100
PROFILE_FIELD_BYTES_MAX = 65_536  # Spec: client-server-api#profiles: 64 KiB in all.
DISPLAYNAME_CHARS_MAX = 256
AVATAR_URL_CHARS_MAX = 1_000
REASON_CHARS_MAX = 2_000
INVITES_PER_CREATION_MAX = 1_000
INITIAL_STATE_EVENTS_MAX = 1_000
TYPING_TIMEOUT_MAX_MS = 120_000
STATUS_CHARS_MAX = 1_000
ACCOUNT_DATA_BYTES_MAX = 1_048_576
# What one user may store, and one room be called. Ours: nobody honest comes near.
ACCOUNT_DATA_OF_USER_MAX = 10_000
ACCOUNT_DATA_BYTES_OF_USER_MAX = 64 * 1_048_576
DEVICES_OF_USER_MAX = 5_000
ALIASES_OF_ROOM_MAX = 1_000

# Requests to other servers; ours, as others do. The time is for everything, connecting included.
REMOTE_TIMEOUT_MS = 30_000
REMOTE_QUERY_TIMEOUT_MS = 15_000  # Somebody waits, and there may be others to ask.
REMOTE_QUERIES_MS = 40_000  # Of all that are asked in turn: then nobody else is.
REMOTE_SEND_TIMEOUT_MS = 60_000  # A transaction; what it is owed meanwhile waits.
REMOTE_KEYS_TIMEOUT_MS = 10_000
REMOTE_STATE_TIMEOUT_MS = 120_000
REMOTE_ANSWER_BYTES_MAX = 16 * 1_048_576
REMOTE_KEYS_BYTES_MAX = 1_048_576
REMOTE_STATE_BYTES_MAX = 128 * 1_048_576

# Requests to application services; ours, as others do.
APPSERVICE_QUERY_TIMEOUT_MS = 20_000  # Somebody waits for the answer.
APPSERVICE_QUERY_AGAIN_TIMEOUTS_MS = (5_000, 5_000)  # The same of questions that are repeated.
APPSERVICE_TRANSACTION_TIMEOUT_MS = 60_000
APPSERVICE_ANSWER_BYTES_MAX = 4 * 1_048_576
