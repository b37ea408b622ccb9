"""The schema: the only description of the tables (decision D8); Alembic keeps its history.

Theory, in the order in which a reader needs it:

* **The stream** (D1). `stream.position` is one number for the whole server. A row that `/sync` or
  federation must notice carries the position it got in its transaction, so `position` columns of
  all tables together are one sequence without gaps, in commit order.
* **Order in a room.** An event that arrived while the server was in the room has
  `order_major = position` and `order_minor = 0`. History fetched later takes the major of the event
  before which it belongs, and negative minors, so every page of history has one fixed order that
  no sender can influence (`depth` is never used for it).
* **States** (D3). A state is a delta on its parent; messages share their predecessor's state.
* **Raw events** are the exact JSON text (D6), as `text`: U+0000 arrives escaped and stays so.

Identifiers of Matrix are text; `*_nid` are surrogate keys that never leave `storage`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


def _bigint(name: str, comment: str, *, null: bool = False, **options: object) -> Column[int]:
    return Column(name, BigInteger, nullable=null, comment=comment, **options)  # type: ignore[arg-type]


def _text(name: str, comment: str, *, null: bool = False, **options: object) -> Column[str]:
    return Column(name, Text, nullable=null, comment=comment, **options)  # type: ignore[arg-type]


def _flag(name: str, comment: str, *, default: str = "false") -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text(default), comment=comment)


# --- the stream, rooms, events ---------------------------------------------------------------

stream = Table(
    "stream",
    metadata,
    _bigint("position", "The last position handed out"),
    Column(
        "only_row", Boolean, primary_key=True, server_default=text("true"), comment="Always true"
    ),
    CheckConstraint("only_row", name="only_row"),
    comment="The one stream (D1): its row lock makes position order equal commit order",
)

server_facts = Table(
    "server_facts",
    metadata,
    _text("name", "What", primary_key=True),
    _text("value", "Its value"),
    comment="What must not change under a database: the server name it belongs to",
)

rooms = Table(
    "rooms",
    metadata,
    _bigint("room_nid", "Surrogate key", primary_key=True, autoincrement=False),
    _text("room_id", "As in Matrix"),
    _text("room_version", "From our copy of the create event"),
    _bigint("version", "Counts changes of the forward extremities; writers verify it (D2)"),
    Column(
        "extremities",
        ARRAY(BigInteger),
        nullable=False,
        comment="event_nid of each forward extremity",
    ),
    _bigint("state_id", "The current state: the state after the extremities, resolved"),
    _bigint("main_count", "How many events outside threads notified by default rules so far"),
    _flag("published", "In the room directory"),
    Index("rooms_room_id_key", "room_id", unique=True),
    Index("rooms_published", "room_nid", postgresql_where=text("published")),
    # Updated with every event: leave room on the page for the new row version.
    postgresql_with={"fillfactor": 70},
    comment="Rooms that this server is or was in",
)

events = Table(
    "events",
    metadata,
    _bigint("event_nid", "Surrogate key", primary_key=True, autoincrement=False),
    _text("event_id", "As in Matrix"),
    _bigint(
        "room_nid",
        "The room",
    ),
    _bigint("position", "In the stream; null: an outlier or fetched history", null=True),
    _bigint("order_major", "Order in the room (see above); null: an outlier", null=True),
    Column("order_minor", Integer, nullable=False, server_default="0", comment="See order_major"),
    Column(
        "status",
        SmallInteger,
        nullable=False,
        server_default="0",
        comment="0 accepted, 1 soft-failed, 2 rejected",
    ),
    _bigint("key_nid", "The state key of a state event", null=True),
    _bigint("state_before", "The state before the event", null=True),
    _bigint("state_after", "The state after the event: with it, if it is state", null=True),
    _bigint("room_state_before", "The room's current state when the event came in", null=True),
    _bigint("room_state_after", "The room's current state with the event in it", null=True),
    Column(
        "auth_nids",
        ARRAY(BigInteger),
        nullable=True,
        comment="event_nid of the auth events, of state events only: for walking auth chains",
    ),
    _bigint("main_count", "rooms.main_count with this event in it", null=True),
    _text("thread_root", "Event id of the root of the thread it is in", null=True),
    _flag("notifies", "It counts as unread for users with default push rules"),
    _bigint("device_nid", "The local device that sent it", null=True),
    _text(
        "txn_id",
        "That device's transaction id; of a delayed event, which no device sent, its delay id",
        null=True,
    ),
    _text(
        "txn_scope", "What else of the request's path must be equal to be a repetition", null=True
    ),
    _text("redacted_by", "Event id of the redaction that applies", null=True),
    _bigint("sticky_until_ms", "The moment its stickiness ends (MSC4354)", null=True),
    _bigint("sent_ms", "When its sender says that it was sent"),
    _text("json", "The PDU: the exact text that was signed"),
    Index("events_event_id_key", "event_id", unique=True),
    Index("events_order", "room_nid", "order_major", "order_minor"),
    Index(
        "events_sent_ms",
        "room_nid",
        "sent_ms",
        postgresql_where=text("status = 0 AND order_major IS NOT NULL"),
    ),
    Index("events_position_key", "position", unique=True),
    Index(
        "events_transaction_key",
        "device_nid",
        "txn_id",
        "room_nid",
        "txn_scope",
        unique=True,
        postgresql_where=text("device_nid IS NOT NULL"),
    ),
    Index(
        "events_thread",
        "room_nid",
        "thread_root",
        "position",
        postgresql_where=text("thread_root IS NOT NULL"),
    ),
    Index(
        "events_state_key",
        "room_nid",
        "key_nid",
        "position",
        postgresql_where=text("key_nid IS NOT NULL"),
    ),
    comment="Every PDU, accepted or not",
)

sticky_events = Table(
    "sticky_events",
    metadata,
    _text("event_id", "The event", primary_key=True),
    _bigint("room_nid", "The room"),
    _text("sender", "Its sender"),
    _bigint("until_ms", "The moment its stickiness ends"),
    _bigint("position", "When it became deliverable; null: it is soft-failed, or waits", null=True),
    _bigint("checked_state", "Of a soft-failed one: the current state that refused it", null=True),
    _text("waits_for", "The server that sent too many at once: it waits its turn", null=True),
    _bigint(
        "told_from",
        "Of a redaction: where the sticky event lay that it redacts; who had that is told",
        null=True,
    ),
    Index(
        "sticky_events_held",
        "room_nid",
        postgresql_where=text("position IS NULL AND waits_for IS NULL"),
    ),
    Index(
        "sticky_events_waiting",
        "waits_for",
        "room_nid",
        "until_ms",
        postgresql_where=text("position IS NULL AND waits_for IS NOT NULL"),
    ),
    Index("sticky_events_room", "room_nid", "position"),
    Index("sticky_events_position", "position"),
    Index("sticky_events_until", "until_ms"),
    comment="Events that are sticky now, or were until lately (MSC4354)",
)

unignored = Table(
    "unignored",
    metadata,
    _text("user_id", "Who ignores somebody no longer", primary_key=True),
    _text("sender", "Whom", primary_key=True),
    _bigint("until_ms", "Until when anything may be sticky that was ignored"),
    _bigint("position", "In the stream"),
    Index("unignored_position", "position"),
    Index("unignored_until", "until_ms"),
    comment="Users who were ignored till lately: what of theirs is sticky is delivered (MSC4354)",
)

rejections = Table(
    "rejections",
    metadata,
    _bigint("event_nid", "The event", primary_key=True, autoincrement=False),
    _text("rule", "The rule that refused it, in the specification's words"),
    _text("passage", "Where the specification says so"),
    _text("message", "For people"),
    Column("deciding", ARRAY(Text), nullable=False, comment="Event ids that decided"),
    comment="Why an event was rejected or soft-failed (D13)",
)

redactions = Table(
    "redactions",
    metadata,
    _text("event_id", "The event to be redacted, known here or not", primary_key=True),
    _text("redaction_id", "The redaction event", primary_key=True),
    _bigint("room_nid", "The room of the redaction"),
    comment="Accepted redactions, so that an event which comes later is redacted on arrival",
)

redacted_stays = Table(
    "redacted_stays",
    metadata,
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    _text("user_id", "Whose stay it was", primary_key=True),
    _text("because_id", "The kick or ban that ended it, and redacts it", primary_key=True),
    _text("first_join_id", "The join that began it"),
    Column(
        "join_ids",
        ARRAY(Text),
        nullable=False,
        comment="The joins of the stay that are known: its events cite one of them",
    ),
    Column(
        "spared_ids",
        ARRAY(Text),
        nullable=False,
        comment="Events of it that stay: state that kept the room safe at that moment",
    ),
    Column(
        "replaces",
        ARRAY(Text),
        nullable=False,
        comment="Kicks and bans in whose place this one is named where both redact an event",
    ),
    _bigint("position", "In the stream, when it was last changed"),
    _bigint("upto", "What came after this position was judged when it came"),
    _bigint("created_ms", "When"),
    _bigint("next_major", "The purge goes on before this place in the room (order_major)"),
    Column("next_minor", Integer, nullable=False, comment="The same, order_minor"),
    _bigint(
        "next_nid",
        "It goes on after this event_nid among events without a place; null: places come first",
        null=True,
    ),
    _flag("purged", "The content of whatever it covers is gone"),
    Index("redacted_stays_unpurged", "room_nid", postgresql_where=text("NOT purged")),
    Index("redacted_stays_position", "position"),
    comment="Stays in rooms that a kick or ban redacted (MSC4293): a row, however much was said",
)

state_keys = Table(
    "state_keys",
    metadata,
    Column(
        "key_nid",
        BigInteger,
        primary_key=True,
        autoincrement=True,
        comment="Surrogate key",
    ),
    _text("type", "Event type"),
    _text("state_key", "State key"),
    Index("state_keys_type_state_key_key", "type", "state_key", unique=True),
    comment="Each pair of type and state key that ever occurred",
)

states = Table(
    "states",
    metadata,
    _bigint("state_id", "Surrogate key", primary_key=True, autoincrement=False),
    _bigint("parent_id", "The state that this one changes; null: it is a full snapshot", null=True),
    Column("chain", Integer, nullable=False, comment="Deltas between this state and its snapshot"),
    Column("size", Integer, nullable=False, comment="Entries of the whole state"),
    comment="States of rooms, as deltas on one another (D3)",
)

state_entries = Table(
    "state_entries",
    metadata,
    _bigint("state_id", "The state that has it", primary_key=True, autoincrement=False),
    _bigint("key_nid", "Type and state key", primary_key=True, autoincrement=False),
    _bigint("event_nid", "The event; null: the parent's entry is gone", null=True),
    comment="What a state sets, beside what its parent has",
)

memberships = Table(
    "memberships",
    metadata,
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    _text("user_id", "The member", primary_key=True),
    _text("membership", "As in the event"),
    _text("event_id", "The member event"),
    _text("sender", "Its sender"),
    _bigint("position", "Its position"),
    _bigint("order_major", "Its order in the room"),
    _bigint("joined_position", "Since when the membership has been what it is, without a break"),
    _flag("local", "Whether the user is one of this server's", default="false"),
    _flag("forgotten", "The user has forgotten the room (MSC4267)"),
    _bigint("forgotten_position", "In the stream, when they last did", null=True),
    _text("display_name", "From the event", null=True),
    _text("avatar_url", "From the event", null=True),
    _bigint("read_position", "Unthreaded read receipt: everything up to here is read"),
    _bigint("read_main_position", "Everything outside threads up to here is read"),
    _bigint("read_main_count", "rooms.main_count at read_main_position"),
    Index("memberships_user_id", "user_id", "membership"),
    Index("memberships_user_position", "user_id", "position"),
    Index("memberships_forgotten", "forgotten_position", postgresql_where=text("forgotten")),
    Index(
        "memberships_local",
        "room_nid",
        postgresql_where=text("local AND membership = 'join'"),
    ),
    # The server of a user id is what follows its first colon: the rooms that a server is in, and
    # those that it was made to leave.
    Index(
        "memberships_servers_joined",
        text("substr(user_id, strpos(user_id, ':') + 1)"),
        "room_nid",
        postgresql_where=text("membership = 'join' AND NOT local"),
    ),
    Index(
        "memberships_servers_left",
        text("substr(user_id, strpos(user_id, ':') + 1)"),
        "position",
        postgresql_where=text("membership <> 'join' AND NOT local"),
    ),
    postgresql_with={"fillfactor": 80},
    comment="Current membership of each user that a room's state names, and what they have read",
)

forgotten_rooms = Table(
    "forgotten_rooms",
    metadata,
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    _bigint("since_ms", "When it was noticed that nobody here remembers it"),
    comment="Rooms that every user of this server has forgotten: after a while they are purged",
)

room_purges = Table(
    "room_purges",
    metadata,
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    _bigint("began_ms", "When"),
    _bigint("position", "In the stream; null: not announced yet", null=True),
    _flag("done", "Nothing of the room is left but its number"),
    Index("room_purges_position", "position"),
    comment="Rooms that are being purged, or were lately: who needs one finishes its purge first",
)

invite_states = Table(
    "invite_states",
    metadata,
    _text("room_id", "The room", primary_key=True),
    _text("user_id", "Who was invited or knocks", primary_key=True),
    _text("json", "The stripped state to show them, a JSON list"),
    comment="Stripped state that came with invites and knocks",
)

event_pushes = Table(
    "event_pushes",
    metadata,
    _text("user_id", "The local user", primary_key=True),
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    _bigint("position", "The event's position", primary_key=True, autoincrement=False),
    _text("thread_root", "The thread it is in; empty: none"),
    Column(
        "notify_delta",
        SmallInteger,
        nullable=False,
        comment="1 or -1 where the user's rules differ from the default rules, else 0",
    ),
    _flag("highlight", "The user is mentioned"),
    comment="Where an event counts for one user otherwise than for users with default rules",
)

thread_reads = Table(
    "thread_reads",
    metadata,
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    _text("user_id", "The reader", primary_key=True),
    _text("thread_root", "The thread", primary_key=True),
    _bigint("position", "Everything in the thread up to here is read"),
    comment="Threaded read receipts, as positions",
)

# --- ephemeral and personal ------------------------------------------------------------------

receipts = Table(
    "receipts",
    metadata,
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    _text("user_id", "The reader", primary_key=True),
    _text("receipt_type", "m.read or m.read.private", primary_key=True),
    _text("thread_id", "The thread, `main`, or empty: unthreaded", primary_key=True),
    _text("event_id", "The event read"),
    _bigint("ts_ms", "When"),
    _bigint("position", "In the stream"),
    Index("receipts_position", "position"),
    Index("receipts_room_position", "room_nid", "position"),
    comment="The newest receipt of each user, room, type and thread",
)

typing = Table(
    "typing",
    metadata,
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    _bigint("position", "When the set of those who type changed last"),
    Column("user_ids", ARRAY(Text), nullable=False, comment="Who types"),
    Column(
        "expires_ms", ARRAY(BigInteger), nullable=False, comment="Until when, in the same order"
    ),
    Index("typing_position", "position"),
    prefixes=["UNLOGGED"],
    comment="Who types where; lost in a crash, as it should be",
)

presence = Table(
    "presence",
    metadata,
    _text("user_id", "Whose", primary_key=True),
    _text("presence", "online, unavailable or offline"),
    _text("status_msg", "In the user's words", null=True),
    _bigint("last_active_ms", "When they last did something; 0: never", server_default="0"),
    _flag("currently_active", "They are doing something"),
    _bigint("until_ms", "Without another sign of life they are offline from then on"),
    _flag("by_poll", "It is how a client polls that made them online or unavailable"),
    _flag("local", "Whether the user is one of this server's"),
    _bigint("written_ms", "When it was written"),
    _bigint("position", "In the stream"),
    Index("presence_position", "position"),
    Index("presence_until_ms", "until_ms", postgresql_where=text("presence <> 'offline'")),
    Index(
        "presence_last_active_ms",
        "last_active_ms",
        postgresql_where=text("presence = 'online' AND local"),
    ),
    Index(
        "presence_written_ms",
        "written_ms",
        postgresql_where=text("presence <> 'offline' AND local"),
    ),
    prefixes=["UNLOGGED"],
    comment="Who is there; lost in a crash, and told again by those who are",
)

account_data = Table(
    "account_data",
    metadata,
    _text("user_id", "Whose", primary_key=True),
    _text("room_id", "The room; empty: global", primary_key=True),
    _text("type", "The type", primary_key=True),
    _text("json", "The content"),
    _bigint("position", "In the stream"),
    Index("account_data_position", "position"),
    Index("account_data_user_position", "user_id", "position"),
    comment="Account data, tags (m.tag), read markers (m.fully_read), push rules (m.push_rules)",
)

filters = Table(
    "filters",
    metadata,
    _text("user_id", "Whose", primary_key=True),
    _bigint("filter_id", "Counts from 0 for each user", primary_key=True, autoincrement=False),
    _text("json", "The filter, canonical"),
    Index("filters_user_id_json_key", "user_id", text("md5(json)"), unique=True),
    comment="Stored filters",
)

# --- accounts --------------------------------------------------------------------------------

accounts = Table(
    "accounts",
    metadata,
    _text("user_id", "The user", primary_key=True),
    _text("password_hash", "argon2id, PHC string; null: no password", null=True),
    _bigint("created_ms", "When"),
    _flag("admin", "Server administrator"),
    _flag("guest", "A guest account"),
    _text("appservice_id", "The application service that made it", null=True),
    _bigint("deactivated_ms", "When it was deactivated", null=True),
    _flag("erased", "Erasure was asked for"),
    _bigint("parting_due_ms", "When to go on with a deactivation; null: it is done", null=True),
    Index(
        "accounts_parting_due",
        "parting_due_ms",
        postgresql_where=text("parting_due_ms IS NOT NULL"),
    ),
    comment="Users of this server",
)

profiles = Table(
    "profiles",
    metadata,
    _text("user_id", "Whose", primary_key=True),
    _text("field", "displayname, avatar_url, or another field", primary_key=True),
    _text("json", "The value, as JSON"),
    comment="Profile fields of users of this server",
)

devices = Table(
    "devices",
    metadata,
    Column("device_nid", BigInteger, primary_key=True, autoincrement=True, comment="Surrogate key"),
    _text("user_id", "Whose"),
    _text("device_id", "As in Matrix"),
    _text("display_name", "For people", null=True),
    _bigint("last_seen_ms", "When it was used last, to within minutes", null=True),
    _text("last_seen_ip", "From where", null=True),
    Index("devices_user_id_device_id_key", "user_id", "device_id", unique=True),
    comment="Devices; a session belongs to one",
)

to_device_messages = Table(
    "to_device_messages",
    metadata,
    Column(
        "device_nid",
        BigInteger,
        ForeignKey("devices.device_nid", ondelete="CASCADE"),
        primary_key=True,
        comment="The device that it is for",
    ),
    _bigint("position", "In the stream", primary_key=True, autoincrement=False),
    _text("sender", "Who sent it"),
    _text("json", "The event, as the client gets it"),
    Index("to_device_messages_position", "position"),
    comment="Messages that devices of this server have not received yet",
)

to_device_outbox = Table(
    "to_device_outbox",
    metadata,
    _text("server_name", "The other server", primary_key=True),
    _bigint("position", "In the stream", primary_key=True, autoincrement=False),
    _text("json", "The content of the EDU"),
    Index("to_device_outbox_position", "position"),
    comment="Messages to devices that other servers have not taken yet",
)

to_device_sends = Table(
    "to_device_sends",
    metadata,
    _text("scope", "Whose: the server, or device_nid and event type", primary_key=True),
    _text("txn_id", "The transaction id, or message_id of the server", primary_key=True),
    _bigint("sent_ms", "When"),
    Index("to_device_sends_sent_ms", "sent_ms"),
    comment="Requests to send messages to devices: a repetition sends nothing",
)

device_lists = Table(
    "device_lists",
    metadata,
    _text("user_id", "Whose", primary_key=True),
    _bigint("position", "In the stream, when their devices or keys changed last"),
    Index("device_lists_position", "position"),
    comment="Users whose devices changed, as their servers say",
)

sliding_states = Table(
    "sliding_states",
    metadata,
    Column("state_nid", BigInteger, primary_key=True, autoincrement=True, comment="Surrogate key"),
    Column(
        "device_nid",
        BigInteger,
        ForeignKey("devices.device_nid", ondelete="CASCADE"),
        nullable=False,
        comment="The device",
    ),
    _text("conn_id", "Which of the device's connections; empty: the one without a name"),
    _text("json", "Which rooms it was sent, how far, and with what of them"),
    Index("sliding_states_device", "device_nid", "state_nid"),
    comment="Sliding sync: what connections were sent; rows are never changed (MSC4186)",
)

access_tokens = Table(
    "access_tokens",
    metadata,
    Column("token_hash", Text, primary_key=True, comment="SHA-256 of the token, hexadecimal"),
    Column(
        "device_nid",
        BigInteger,
        ForeignKey("devices.device_nid", ondelete="CASCADE"),
        nullable=False,
        comment="The device",
    ),
    _bigint("expires_ms", "From when it is invalid; null: never", null=True),
    _text("retires", "The refresh token that ends when this token is first used", null=True),
    Index("access_tokens_device_nid", "device_nid"),
    comment="Access tokens, hashed",
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("token_hash", Text, primary_key=True, comment="SHA-256 of the token, hexadecimal"),
    Column(
        "device_nid",
        BigInteger,
        ForeignKey("devices.device_nid", ondelete="CASCADE"),
        nullable=False,
        comment="The device",
    ),
    _text("next_hash", "The refresh token that replaced it", null=True),
    _bigint("created_ms", "When"),
    Index("refresh_tokens_device_nid", "device_nid"),
    comment="Refresh tokens, hashed; one stays valid until its successor is used",
)

inspector_sessions = Table(
    "inspector_sessions",
    metadata,
    _text("session_hash", "SHA-256 of the cookie's value, hexadecimal", primary_key=True),
    Column(
        "token_hash",
        Text,
        ForeignKey("access_tokens.token_hash", ondelete="CASCADE"),
        nullable=False,
        comment="The access token that began it, without which it ends",
    ),
    _bigint("expires_ms", "From when it is invalid"),
    Index("inspector_sessions_token_hash", "token_hash"),
    Index("inspector_sessions_expires_ms", "expires_ms"),
    comment="Browsers in which an administrator looks at the inspector",
)

registration_tokens = Table(
    "registration_tokens",
    metadata,
    _text("token", "As the user types it", primary_key=True),
    _bigint("uses_allowed", "How often it may be used; null: without end", null=True),
    _bigint("completed", "Registrations done with it"),
    _bigint("expires_ms", "Until when; null: for ever", null=True),
    comment="Tokens that allow registration",
)

user_interactive_sessions = Table(
    "user_interactive_sessions",
    metadata,
    _text("session_hash", "SHA-256 of the session id, hexadecimal", primary_key=True),
    _text("binding", "HMAC, keyed with the session id, of endpoint, user and body without `auth`"),
    Column("completed", ARRAY(Text), nullable=False, comment="Stages done"),
    _text("registration_token", "The token that was shown", null=True),
    _text("proved_user_id", "Whose password was typed into a page of ours", null=True),
    _bigint("created_ms", "When"),
    Index("user_interactive_sessions_created_ms", "created_ms"),
    comment="User-interactive authentication under way; never a password",
)

# --- other servers ---------------------------------------------------------------------------

server_keys = Table(
    "server_keys",
    metadata,
    _text("server_name", "Whose", primary_key=True),
    _text("key_id", "As in Matrix", primary_key=True),
    Column("key", LargeBinary, nullable=False, comment="The public key"),
    _bigint("valid_until_ms", "The last moment at which it signs events"),
    _flag("is_old", "The server no longer uses it; it signs no requests"),
    comment="Public keys of other servers: validity records, replaced only by newer ones",
)

server_key_objects = Table(
    "server_key_objects",
    metadata,
    _text("server_name", "Whose", primary_key=True),
    _bigint("valid_until_ms", "Until when to believe it"),
    _text("json", "The key object as its server signed it, canonical"),
    comment="The newest key object of each server, which we pass on as a notary",
)

# --- what other servers send -----------------------------------------------------------------

gaps = Table(
    "gaps",
    metadata,
    _bigint(
        "event_nid", "An event whose prev_events we lack", primary_key=True, autoincrement=False
    ),
    _bigint("room_nid", "Its room"),
    Index("gaps_room_nid", "room_nid"),
    comment="Where what we have of a room begins anew: what precedes can be fetched",
)

early_redactions = Table(
    "early_redactions",
    metadata,
    _text("event_id", "The event to be redacted, which is not here yet", primary_key=True),
    _text("redaction_id", "The redaction event, which may not be here yet", primary_key=True),
    comment="Redactions that came before their events; whether they apply is seen then",
)

federation_transactions = Table(
    "federation_transactions",
    metadata,
    _text("origin", "The server that sent it", primary_key=True),
    _text("txn_id", "Its transaction id", primary_key=True),
    _bigint("received_ms", "When"),
    _text("answer", "What we answered, as JSON"),
    Index("federation_transactions_received_ms", "received_ms"),
    comment="Transactions of other servers: a repetition gets the same answer",
)

# --- what is to be sent later ----------------------------------------------------------------

delayed_events = Table(
    "delayed_events",
    metadata,
    _text("delay_id", "As in Matrix", primary_key=True),
    _text("user_id", "Whose"),
    _text("room_id", "Where it goes, known here or not"),
    _text("type", "Event type"),
    _text("state_key", "State key of a state event", null=True),
    _text("content", "The event's content, canonical JSON"),
    _bigint("sticky_ms", "For how long it will be sticky (MSC4354)", null=True),
    _bigint("sent_ms", "The origin_server_ts that an application service wants", null=True),
    _bigint("delay_ms", "The delay"),
    _bigint("since_ms", "When it was scheduled, or restarted last"),
    _bigint("due_ms", "since_ms + delay_ms"),
    _bigint("device_nid", "The local device that scheduled it", null=True),
    _text("txn_id", "That device's transaction id", null=True),
    _text("txn_scope", "As in events", null=True),
    _bigint("finalised_ms", "When it was sent, cancelled, or could not be sent", null=True),
    _text("event_id", "What it was sent as", null=True),
    _text("error", "Why it could not be sent, as JSON", null=True),
    _bigint("position", "When its owner was told that it was sent, or could not be", null=True),
    Index("delayed_events_due", "due_ms", postgresql_where=text("finalised_ms IS NULL")),
    Index(
        "delayed_events_user_due",
        "user_id",
        "due_ms",
        postgresql_where=text("finalised_ms IS NULL"),
    ),
    Index(
        "delayed_events_finalised",
        "finalised_ms",
        postgresql_where=text("finalised_ms IS NOT NULL"),
    ),
    Index(
        "delayed_events_user_finalised",
        "user_id",
        "finalised_ms",
        postgresql_where=text("finalised_ms IS NOT NULL"),
    ),
    Index(
        "delayed_events_position",
        "position",
        postgresql_where=text("position IS NOT NULL"),
    ),
    Index(
        "delayed_events_user_position",
        "user_id",
        "position",
        postgresql_where=text("position IS NOT NULL"),
    ),
    Index(
        "delayed_events_transaction_key",
        "device_nid",
        "txn_id",
        "room_id",
        "txn_scope",
        unique=True,
        postgresql_where=text("txn_id IS NOT NULL"),
    ),
    comment="Delayed events (MSC4140): scheduled ones, and for a while what became of them",
)

# --- the directory, reports, housekeeping ----------------------------------------------------

room_aliases = Table(
    "room_aliases",
    metadata,
    _text("alias", "The alias", primary_key=True),
    _text("room_id", "Where it points"),
    _text("creator", "Who made it"),
    Index("room_aliases_room_id", "room_id"),
    comment="Aliases of this server",
)

appservices = Table(
    "appservices",
    metadata,
    _text("service_id", "Its id in its registration", primary_key=True),
    _bigint("position", "Everything in the stream up to here was delivered or is not owed"),
    _bigint("txn_id", "The id of its newest transaction"),
    _bigint("txn_upto", "Up to where that brings it, once taken; null: it was taken", null=True),
    _text("txn_body", "That transaction as it is sent, time after time", null=True),
    Column(
        "failures", Integer, nullable=False, server_default="0", comment="Since the last success"
    ),
    _bigint("retry_at_ms", "It is left alone until then", server_default="0"),
    comment="Application services: how far each has been served, and when to try again",
)

appservice_rooms = Table(
    "appservice_rooms",
    metadata,
    _text("service_id", "The application service", primary_key=True),
    _text("network_id", "Which of its networks", primary_key=True),
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    Index("appservice_rooms_room_nid", "room_nid"),
    comment="The room directories of application services",
)

reports = Table(
    "reports",
    metadata,
    Column("report_id", BigInteger, primary_key=True, autoincrement=True, comment="Surrogate key"),
    _bigint("received_ms", "When"),
    _text("reporter", "Who reports"),
    _text("room_id", "The room, if it is about one", null=True),
    _text("event_id", "The event, if it is about one", null=True),
    _text("user_id", "The user, if it is about one", null=True),
    _text("reason", "In the reporter's words"),
    comment="Reports of rooms, events and users to the server's administrators",
)

jobs = Table(
    "jobs",
    metadata,
    _text("name", "The loop", primary_key=True),
    _text("holder", "The process that runs it"),
    _bigint("until_ms", "How long the lease holds"),
    comment="Leases of loops that run in one process at a time (D4)",
)

# --- federation: what is owed to other servers -----------------------------------------------

destinations = Table(
    "destinations",
    metadata,
    _text("server_name", "The other server", primary_key=True),
    Column("shard", SmallInteger, nullable=False, comment="Which of delivery_shards it is in"),
    _bigint("position", "Everything in the stream up to here was delivered or is not owed"),
    _flag("behind", "What it is owed since then must be looked up: it is caught up on it"),
    Column(
        "failures", Integer, nullable=False, server_default="0", comment="Since the last success"
    ),
    _bigint("retry_at_ms", "It is left alone until then", server_default="0"),
    _flag("is_down", "It did not answer at all"),
    _bigint("last_success_ms", "When it last took something", null=True),
    _text("txn_id", "The transaction that must be repeated before any other", null=True),
    Column(
        "txn_positions",
        ARRAY(BigInteger),
        nullable=False,
        server_default="{}",
        comment="The positions of that transaction's PDUs",
    ),
    Index("destinations_behind", "shard", "retry_at_ms", postgresql_where=text("behind")),
    Index("destinations_shard", "shard", "position"),
    comment="Servers that we send to: how far each has been served, and when to try again (D5)",
)

delivery_shards = Table(
    "delivery_shards",
    metadata,
    Column("shard", SmallInteger, primary_key=True, autoincrement=False, comment="Its number"),
    _bigint("position", "What destinations of it that are not behind have been served up to"),
    _text("holder", "The process that serves it"),
    _bigint("until_ms", "How long the lease holds"),
    comment="Destinations by a hash of their names: each shard is served by one process at a time",
)

sent_rooms = Table(
    "sent_rooms",
    metadata,
    _bigint("room_nid", "The room", primary_key=True, autoincrement=False),
    _bigint("position", "The newest event that we owe somebody who is behind"),
    comment="Where those who are behind must be caught up",
)
