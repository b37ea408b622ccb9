"""THE route table: every endpoint, its handler, and the specification's name for it.

A handler carries the specification's operationId in snake_case; `docs/spec/coverage.md` is made by
comparing this table with the specification's list. Order is the specification's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minihs.api import admin, health, metrics, welcome
from minihs.api.client import (
    account,
    account_data,
    appservices,
    auth_fallback,
    capabilities,
    delayed_events,
    devices,
    directory,
    filters,
    history,
    login,
    membership,
    openid,
    presence,
    profile,
    push_rules,
    receipts,
    registration,
    reports,
    room_creation,
    room_events,
    sliding_sync,
    spaces,
    sync,
    third_party,
    to_device,
    typing_notifications,
    user_redaction,
    versions,
    well_known,
)
from minihs.api.federation import events, joins, keys, queries, transactions, version
from minihs.api.inspector import pages as inspector
from minihs.protocol import unstable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from minihs.api.requests import Request

    Handler = Callable[[Request], Awaitable[object]]

# Who may call: anybody; anybody, told apart if there is a token; a user (or guest); a user, no guest;
# another server; another server, if the room in the path listens to it (its server ACL).
Access = Literal[
    "anybody", "anyone_or_user", "user_or_guest", "user", "server", "server_heard_in_room"
]

# Rate limit classes; see `minihs.api.rate_limits`.
LimitClass = Literal["none", "read", "write", "join", "create", "login", "register", "costly"]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint."""

    method: str
    path: str
    handler: Handler
    operation: str | None
    access: Access = "user"
    limit: LimitClass = "none"


V3 = "/_matrix/client/v3"
DELAYED = unstable.PATH_DELAYED_EVENTS.stable
DELAYED_UNSTABLE = unstable.PATH_DELAYED_EVENTS.unstable
KEY = "/_matrix/key/v2"
FEDERATION = "/_matrix/federation/v1"
FEDERATION_V2 = "/_matrix/federation/v2"
R0 = "/_matrix/client/r0"

# fmt: off
ROUTES: list[Route] = [
    Route("GET", "/_matrix/client/versions", versions.get_versions, "getVersions", "anyone_or_user"),
    # Server discovery and capabilities
    Route("GET", "/.well-known/matrix/client", well_known.get_wellknown, "getWellknown", "anybody", "none"),
    Route("GET", "/.well-known/matrix/server", well_known.get_well_known, "getWellKnown", "anybody", "none"),
    Route("GET", "/.well-known/matrix/support", well_known.get_wellknown_support, "getWellknownSupport", "anybody", "none"),
    Route("GET", V3 + "/capabilities", capabilities.get_capabilities, "getCapabilities", "user_or_guest", "read"),
    # Accounts and sessions
    Route("GET", V3 + "/login", login.get_login_flows, "getLoginFlows", "anybody", "read"),
    Route("POST", V3 + "/login", login.login, "login", "anybody", "login"),
    Route("POST", V3 + "/refresh", login.refresh, "refresh", "anybody", "write"),
    Route("POST", V3 + "/logout", login.logout, "logout", "user_or_guest", "write"),
    Route("POST", V3 + "/logout/all", login.logout_all, "logout_all", "user_or_guest", "write"),
    Route("POST", V3 + "/register", registration.register, "register", "anybody", "register"),
    Route("GET", V3 + "/register/available", registration.check_username_availability, "checkUsernameAvailability", "anybody", "costly"),
    Route("GET", "/_matrix/client/v1/register/m.login.registration_token/validity", registration.registration_token_validity, "registrationTokenValidity", "anybody", "register"),
    Route("GET", V3 + "/auth/{authType}/fallback/web", auth_fallback.get_page, None, "anybody", "read"),
    Route("POST", V3 + "/auth/{authType}/fallback/web", auth_fallback.complete_stage, None, "anybody", "login"),
    Route("GET", V3 + "/account/whoami", account.get_token_owner, "getTokenOwner", "user_or_guest", "read"),
    Route("POST", V3 + "/account/password", account.change_password, "changePassword", "user", "login"),
    Route("POST", V3 + "/account/deactivate", account.deactivate_account, "deactivateAccount", "user", "login"),
    Route("GET", V3 + "/account/3pid", account.get_account_3pids, "getAccount3PIDs", "user", "read"),
    Route("GET", V3 + "/devices", devices.get_devices, "getDevices", "user_or_guest", "read"),
    Route("GET", V3 + "/devices/{deviceId}", devices.get_device, "getDevice", "user_or_guest", "read"),
    Route("PUT", V3 + "/devices/{deviceId}", devices.update_device, "updateDevice", "user_or_guest", "write"),
    Route("DELETE", V3 + "/devices/{deviceId}", devices.delete_device, "deleteDevice", "user", "login"),
    Route("POST", V3 + "/delete_devices", devices.delete_devices, "deleteDevices", "user", "login"),
    # What users store
    Route("GET", V3 + "/profile/{userId}", profile.get_user_profile, "getUserProfile", "anybody", "read"),
    Route("GET", V3 + "/profile/{userId}/{keyName}", profile.get_profile_field, "getProfileField", "anybody", "read"),
    Route("PUT", V3 + "/profile/{userId}/{keyName}", profile.set_profile_field, "setProfileField", "user_or_guest", "write"),
    Route("DELETE", V3 + "/profile/{userId}/{keyName}", profile.delete_profile_field, "deleteProfileField", "user_or_guest", "write"),
    Route("POST", V3 + "/user/{userId}/filter", filters.define_filter, "defineFilter", "user_or_guest", "write"),
    Route("GET", V3 + "/user/{userId}/filter/{filterId}", filters.get_filter, "getFilter", "user_or_guest", "read"),
    Route("GET", V3 + "/user/{userId}/account_data/{type}", account_data.get_account_data, "getAccountData", "user", "read"),
    Route("PUT", V3 + "/user/{userId}/account_data/{type}", account_data.set_account_data, "setAccountData", "user", "write"),
    Route("GET", V3 + "/user/{userId}/rooms/{roomId}/account_data/{type}", account_data.get_account_data_per_room, "getAccountDataPerRoom", "user", "read"),
    Route("PUT", V3 + "/user/{userId}/rooms/{roomId}/account_data/{type}", account_data.set_account_data_per_room, "setAccountDataPerRoom", "user", "write"),
    Route("GET", V3 + "/user/{userId}/rooms/{roomId}/tags", account_data.get_room_tags, "getRoomTags", "user", "read"),
    Route("PUT", V3 + "/user/{userId}/rooms/{roomId}/tags/{tag}", account_data.set_room_tag, "setRoomTag", "user", "write"),
    Route("DELETE", V3 + "/user/{userId}/rooms/{roomId}/tags/{tag}", account_data.delete_room_tag, "deleteRoomTag", "user", "write"),
    Route("GET", V3 + "/pushrules", push_rules.get_push_rules, "getPushRules", "user", "read"),
    Route("GET", V3 + "/pushrules/global", push_rules.get_push_rules_global, "getPushRulesGlobal", "user", "read"),
    Route("GET", V3 + "/pushrules/global/{kind}/{ruleId}", push_rules.get_push_rule, "getPushRule", "user", "read"),
    Route("PUT", V3 + "/pushrules/global/{kind}/{ruleId}", push_rules.set_push_rule, "setPushRule", "user", "write"),
    Route("DELETE", V3 + "/pushrules/global/{kind}/{ruleId}", push_rules.delete_push_rule, "deletePushRule", "user", "write"),
    Route("GET", V3 + "/pushrules/global/{kind}/{ruleId}/enabled", push_rules.is_push_rule_enabled, "isPushRuleEnabled", "user", "read"),
    Route("PUT", V3 + "/pushrules/global/{kind}/{ruleId}/enabled", push_rules.set_push_rule_enabled, "setPushRuleEnabled", "user", "write"),
    Route("GET", V3 + "/pushrules/global/{kind}/{ruleId}/actions", push_rules.get_push_rule_actions, "getPushRuleActions", "user", "read"),
    Route("PUT", V3 + "/pushrules/global/{kind}/{ruleId}/actions", push_rules.set_push_rule_actions, "setPushRuleActions", "user", "write"),
    Route("POST", V3 + "/user/{userId}/openid/request_token", openid.request_open_id_token, "requestOpenIdToken", "user_or_guest", "write"),
    # Syncing
    Route("GET", V3 + "/sync", sync.sync, "sync", "user_or_guest", "read"),
    Route("POST", unstable.PATH_SLIDING_SYNC.stable, sliding_sync.sliding_sync, None, "user_or_guest", "read"),
    Route("POST", unstable.PATH_SLIDING_SYNC.unstable, sliding_sync.unstable_sliding_sync, None, "user_or_guest", "read"),
    # Application services, and the networks that they bridge to
    Route("POST", "/_matrix/client/v1/appservice/{appserviceId}/ping", appservices.ping_appservice, "pingAppservice", "user_or_guest", "write"),
    Route("PUT", V3 + "/directory/list/appservice/{networkId}/{roomId}", appservices.update_appservice_room_directory_visibility, "updateAppserviceRoomDirectoryVisibility", "user", "write"),
    Route("GET", V3 + "/thirdparty/protocols", third_party.get_protocols, "getProtocols", "user", "costly"),
    Route("GET", V3 + "/thirdparty/protocol/{protocol}", third_party.get_protocol_metadata, "getProtocolMetadata", "user", "costly"),
    Route("GET", V3 + "/thirdparty/location/{protocol}", third_party.query_location_by_protocol, "queryLocationByProtocol", "user", "costly"),
    Route("GET", V3 + "/thirdparty/user/{protocol}", third_party.query_user_by_protocol, "queryUserByProtocol", "user", "costly"),
    Route("GET", V3 + "/thirdparty/location", third_party.query_location_by_alias, "queryLocationByAlias", "user", "costly"),
    Route("GET", V3 + "/thirdparty/user", third_party.query_user_by_id, "queryUserByID", "user", "costly"),
    # Rooms: making, sending, membership
    Route("POST", V3 + "/createRoom", room_creation.create_room, "createRoom", "user", "create"),
    Route("PUT", V3 + "/rooms/{roomId}/send/{eventType}/{txnId}", room_events.send_message, "sendMessage", "user_or_guest", "write"),
    Route("PUT", V3 + "/rooms/{roomId}/redact/{eventId}/{txnId}", room_events.redact_event, "redactEvent", "user", "write"),
    Route("POST", unstable.PATH_REDACT_USER.stable, user_redaction.redact_user, None, "user", "write"),
    Route("POST", unstable.PATH_REDACT_USER.unstable, user_redaction.redact_user, None, "user", "write"),
    Route("PUT", V3 + "/rooms/{roomId}/state/{eventType}", room_events.set_room_state_with_key, "setRoomStateWithKey", "user_or_guest", "write"),
    Route("PUT", V3 + "/rooms/{roomId}/state/{eventType}/{stateKey}", room_events.set_room_state_with_key, "setRoomStateWithKey", "user_or_guest", "write"),
    # Delayed events (MSC4140)
    Route("PUT", unstable.PATH_DELAYED_EVENT.stable, delayed_events.schedule_delayed_event, None, "user_or_guest", "write"),
    Route("PUT", unstable.PATH_DELAYED_EVENT.unstable, delayed_events.schedule_delayed_event_unstable, None, "user_or_guest", "write"),
    Route("GET", DELAYED, delayed_events.get_delayed_events, None, "user_or_guest", "read"),
    Route("GET", DELAYED + "/{delayId}", delayed_events.get_delayed_event, None, "user_or_guest", "read"),
    Route("POST", DELAYED + "/{delayId}/{action}", delayed_events.manage_delayed_event, None, "user_or_guest", "write"),
    Route("GET", DELAYED_UNSTABLE, delayed_events.get_delayed_events_unstable, None, "user_or_guest", "read"),
    Route("GET", unstable.PATH_DELAYED_EVENTS_LIST, delayed_events.get_delayed_events_filtered, None, "user_or_guest", "read"),
    Route("GET", DELAYED_UNSTABLE + "/{delayId}", delayed_events.get_delayed_event_unstable, None, "user_or_guest", "read"),
    Route("POST", DELAYED_UNSTABLE + "/{delayId}", delayed_events.manage_delayed_event_unstable, None, "anyone_or_user", "write"),
    Route("POST", DELAYED_UNSTABLE + "/{delayId}/{action}", delayed_events.manage_delayed_event_unstable, None, "anyone_or_user", "write"),
    Route("GET", V3 + "/joined_rooms", membership.get_joined_rooms, "getJoinedRooms", "user_or_guest", "read"),
    Route("POST", V3 + "/rooms/{roomId}/invite", membership.invite_user, "inviteUser", "user", "join"),
    Route("POST", V3 + "/join/{roomIdOrAlias}", membership.join_room, "joinRoom", "user_or_guest", "join"),
    Route("POST", V3 + "/rooms/{roomId}/join", membership.join_room_by_id, "joinRoomById", "user_or_guest", "join"),
    Route("POST", V3 + "/knock/{roomIdOrAlias}", membership.knock_room, "knockRoom", "user", "join"),
    Route("POST", V3 + "/rooms/{roomId}/leave", membership.leave_room, "leaveRoom", "user_or_guest", "write"),
    Route("POST", V3 + "/rooms/{roomId}/forget", membership.forget_room, "forgetRoom", "user_or_guest", "write"),
    Route("POST", V3 + "/rooms/{roomId}/kick", membership.kick, "kick", "user", "write"),
    Route("POST", V3 + "/rooms/{roomId}/ban", membership.ban, "ban", "user", "write"),
    Route("POST", V3 + "/rooms/{roomId}/unban", membership.unban, "unban", "user", "write"),
    Route("POST", V3 + "/rooms/{roomId}/upgrade", room_creation.upgrade_room, "upgradeRoom", "user", "create"),
    # Finding rooms, reporting
    Route("PUT", V3 + "/directory/room/{roomAlias}", directory.set_room_alias, "setRoomAlias", "user", "write"),
    Route("GET", V3 + "/directory/room/{roomAlias}", directory.get_room_id_by_alias, "getRoomIdByAlias", "anyone_or_user", "read"),
    Route("DELETE", V3 + "/directory/room/{roomAlias}", directory.delete_room_alias, "deleteRoomAlias", "user", "write"),
    Route("GET", V3 + "/rooms/{roomId}/aliases", directory.get_local_aliases, "getLocalAliases", "user", "read"),
    Route("GET", V3 + "/directory/list/room/{roomId}", directory.get_room_visibility_on_directory, "getRoomVisibilityOnDirectory", "anyone_or_user", "read"),
    Route("PUT", V3 + "/directory/list/room/{roomId}", directory.set_room_visibility_on_directory, "setRoomVisibilityOnDirectory", "user", "write"),
    Route("GET", V3 + "/publicRooms", directory.get_public_rooms, "getPublicRooms", "anyone_or_user", "costly"),
    Route("POST", V3 + "/publicRooms", directory.query_public_rooms, "queryPublicRooms", "user_or_guest", "costly"),
    Route("GET", "/_matrix/client/v1/rooms/{roomId}/hierarchy", spaces.get_space_hierarchy, "getSpaceHierarchy", "user_or_guest", "costly"),
    Route("GET", "/_matrix/client/v1/room_summary/{roomIdOrAlias}", spaces.get_room_summary, "getRoomSummary", "anyone_or_user", "costly"),
    Route("POST", V3 + "/rooms/{roomId}/report", reports.report_room, "reportRoom", "user", "write"),
    Route("POST", V3 + "/rooms/{roomId}/report/{eventId}", reports.report_event, "reportEvent", "user", "write"),
    Route("POST", V3 + "/users/{userId}/report", reports.report_user, "reportUser", "user", "write"),
    # Reading rooms
    Route("GET", V3 + "/rooms/{roomId}/event/{eventId}", history.get_one_room_event, "getOneRoomEvent", "user_or_guest", "read"),
    Route("GET", V3 + "/rooms/{roomId}/joined_members", history.get_joined_members_by_room, "getJoinedMembersByRoom", "user_or_guest", "read"),
    Route("GET", V3 + "/rooms/{roomId}/members", history.get_members_by_room, "getMembersByRoom", "user_or_guest", "read"),
    Route("GET", V3 + "/rooms/{roomId}/state", history.get_room_state, "getRoomState", "user_or_guest", "read"),
    Route("GET", V3 + "/rooms/{roomId}/state/{eventType}", history.get_room_state_with_key, "getRoomStateWithKey", "user_or_guest", "read"),
    Route("GET", V3 + "/rooms/{roomId}/state/{eventType}/{stateKey}", history.get_room_state_with_key, "getRoomStateWithKey", "user_or_guest", "read"),
    Route("GET", V3 + "/rooms/{roomId}/initialSync", history.room_initial_sync, "roomInitialSync", "user_or_guest", "costly"),
    Route("GET", V3 + "/events", sync.get_events, "getEvents", "user_or_guest", "read"),
    Route("GET", V3 + "/rooms/{roomId}/messages", history.get_room_events, "getRoomEvents", "user_or_guest", "read"),
    Route("GET", V3 + "/rooms/{roomId}/context/{eventId}", history.get_event_context, "getEventContext", "user_or_guest", "read"),
    Route("GET", "/_matrix/client/v1/rooms/{roomId}/timestamp_to_event", history.get_event_by_timestamp, "getEventByTimestamp", "user_or_guest", "costly"),
    # Receipts, read markers, typing
    Route("POST", V3 + "/rooms/{roomId}/receipt/{receiptType}/{eventId}", receipts.post_receipt, "postReceipt", "user_or_guest", "write"),
    Route("POST", V3 + "/rooms/{roomId}/read_markers", receipts.set_read_marker, "setReadMarker", "user_or_guest", "write"),
    Route("PUT", V3 + "/rooms/{roomId}/typing/{userId}", typing_notifications.set_typing, "setTyping", "user_or_guest", "write"),
    # Presence, messages to devices
    Route("GET", V3 + "/presence/{userId}/status", presence.get_presence, "getPresence", "user_or_guest", "read"),
    Route("PUT", V3 + "/presence/{userId}/status", presence.set_presence, "setPresence", "user_or_guest", "write"),
    Route("PUT", V3 + "/sendToDevice/{eventType}/{txnId}", to_device.send_to_device, "sendToDevice", "user_or_guest", "write"),
    # Server to server: who we are
    Route("GET", FEDERATION + "/version", version.get_version, "getVersion", "anybody", "read"),
    Route("GET", KEY + "/server", keys.get_server_key, "getServerKey", "anybody", "read"),
    Route("GET", KEY + "/server/{keyId}", keys.get_server_key, None, "anybody", "read"),
    Route("GET", KEY + "/query/{serverName}", keys.perspectives_key_query, "perspectivesKeyQuery", "anybody", "costly"),
    Route("POST", KEY + "/query", keys.bulk_perspectives_key_query, "bulkPerspectivesKeyQuery", "anybody", "costly"),
    # Server to server: transactions
    Route("PUT", FEDERATION + "/send/{txnId}", transactions.send_transaction, "sendTransaction", "server"),
    # Operation
    Route("GET", "/", welcome.get_welcome, None, "anybody"),
    Route("GET", "/health", health.get_health, None, "anybody"),
    Route("GET", "/ready", health.get_ready, None, "anybody"),
    Route("GET", "/metrics", metrics.get_metrics, None, "anybody"),
    Route("GET", "/_minihs/inspect", inspector.get_rooms, None, "anybody", "read"),
    Route("GET", "/_minihs/inspect/style.css", inspector.get_stylesheet, None, "anybody", "read"),
    Route("POST", "/_minihs/inspect/login", inspector.sign_in, None, "anybody", "login"),
    Route("POST", "/_minihs/inspect/logout", inspector.sign_out, None, "anybody", "write"),
    Route("GET", "/_minihs/inspect/rooms/{roomId}", inspector.get_room, None, "anybody", "read"),
    Route("GET", "/_minihs/inspect/rooms/{roomId}/events/{eventId}", inspector.get_event, None, "anybody", "read"),
    # Server to server: events and states
    Route("GET", FEDERATION + "/event_auth/{roomId}/{eventId}", events.get_event_auth, "getEventAuth", "server_heard_in_room"),
    Route("GET", FEDERATION + "/backfill/{roomId}", events.backfill_room, "backfillRoom", "server_heard_in_room"),
    Route("POST", FEDERATION + "/get_missing_events/{roomId}", events.get_missing_previous_events, "getMissingPreviousEvents", "server_heard_in_room"),
    Route("GET", FEDERATION + "/event/{eventId}", events.get_event, "getEvent", "server"),
    Route("GET", FEDERATION + "/state/{roomId}", events.get_room_state, "getRoomState", "server_heard_in_room"),
    Route("GET", FEDERATION + "/state_ids/{roomId}", events.get_room_state_ids, "getRoomStateIds", "server_heard_in_room"),
    Route("GET", FEDERATION + "/timestamp_to_event/{roomId}", events.get_event_by_timestamp, "getEventByTimestamp", "server_heard_in_room"),
    # Server to server: joining, knocking, inviting, leaving
    Route("GET", FEDERATION + "/make_join/{roomId}/{userId}", joins.make_join, "makeJoin", "server_heard_in_room"),
    Route("PUT", FEDERATION + "/send_join/{roomId}/{eventId}", joins.send_join_v1, None, "server_heard_in_room"),
    Route("PUT", FEDERATION_V2 + "/send_join/{roomId}/{eventId}", joins.send_join_v2, "sendJoinV2", "server_heard_in_room"),
    Route("GET", FEDERATION + "/make_knock/{roomId}/{userId}", joins.make_knock, "makeKnock", "server_heard_in_room"),
    Route("PUT", FEDERATION + "/send_knock/{roomId}/{eventId}", joins.send_knock, "sendKnock", "server_heard_in_room"),
    Route("PUT", FEDERATION + "/invite/{roomId}/{eventId}", joins.send_invite_v1, "sendInviteV1", "server_heard_in_room"),
    Route("PUT", FEDERATION_V2 + "/invite/{roomId}/{eventId}", joins.send_invite_v2, "sendInviteV2", "server_heard_in_room"),
    Route("GET", FEDERATION + "/make_leave/{roomId}/{userId}", joins.make_leave, "makeLeave", "server_heard_in_room"),
    Route("PUT", FEDERATION + "/send_leave/{roomId}/{eventId}", joins.send_leave_v1, None, "server_heard_in_room"),
    Route("PUT", FEDERATION_V2 + "/send_leave/{roomId}/{eventId}", joins.send_leave_v2, "sendLeaveV2", "server_heard_in_room"),
    # Server to server: questions
    Route("GET", FEDERATION + "/publicRooms", queries.get_public_rooms, "getPublicRooms", "server"),
    Route("POST", FEDERATION + "/publicRooms", queries.query_public_rooms, "queryPublicRooms", "server"),
    Route("GET", FEDERATION + "/hierarchy/{roomId}", queries.get_space_hierarchy, "getSpaceHierarchy", "server"),
    Route("GET", FEDERATION + "/query/directory", queries.query_room_directory, "queryRoomDirectory", "server"),
    Route("GET", FEDERATION + "/query/profile", queries.query_profile, "queryProfile", "server"),
    Route("GET", FEDERATION + "/openid/userinfo", queries.exchange_open_id_token, "exchangeOpenIdToken", "anybody", "read"),
    Route("GET", FEDERATION + "/user/devices/{userId}", queries.get_user_devices, "getUserDevices", "server"),
    Route("POST", FEDERATION + "/user/keys/claim", queries.claim_user_encryption_keys, "claimUserEncryptionKeys", "server"),
    Route("POST", FEDERATION + "/user/keys/query", queries.query_user_encryption_keys, "queryUserEncryptionKeys", "server"),
    # Administration, as tools know it
    Route("GET", "/_synapse/admin/v1/register", admin.get_registration_nonce, None, "anybody", "register"),
    Route("POST", "/_synapse/admin/v1/register", admin.register_with_shared_secret, None, "anybody", "register"),
    Route("GET", "/_synapse/admin/v1/deactivate/{userId}", admin.get_deactivation, None, "user", "read"),
    Route("POST", "/_synapse/admin/v1/deactivate/{userId}", admin.deactivate_account, None, "user", "write"),
    Route("GET", "/_synapse/admin/v1/registration_tokens", admin.get_registration_tokens, None, "user", "read"),
    Route("POST", "/_synapse/admin/v1/registration_tokens/new", admin.create_registration_token, None, "user", "write"),
    Route("GET", "/_synapse/admin/v1/registration_tokens/{token}", admin.get_registration_token, None, "user", "read"),
    Route("PUT", "/_synapse/admin/v1/registration_tokens/{token}", admin.update_registration_token, None, "user", "write"),
    Route("DELETE", "/_synapse/admin/v1/registration_tokens/{token}", admin.delete_registration_token, None, "user", "write"),
]
# fmt: on
