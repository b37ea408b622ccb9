"""The authorization rules of `m.room.member`: joining, inviting, leaving, banning, knocking.

One function per membership, its paragraphs in the order of the room version pages.

Spec: rooms/v12#authorisation-rules (rule 5), rooms/v11#authorisation-rules (rule 4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.canonical_json import CanonicalJsonError
from minihs.protocol.event_auth.errors import EventAuthError, rejection
from minihs.protocol.power_levels import creators_of
from minihs.protocol.signatures import SignatureError, decode_verify_key, verify_json

if TYPE_CHECKING:
    from minihs.protocol.event_auth.room_state import AuthState
    from minihs.protocol.events import Event


def check_membership(event: Event, auth: AuthState) -> None:
    """Refuse a membership event that this state of the room does not allow.

    Raises:
        EventAuthError: With the rule that rejects it.
    """
    membership = event.content.get("membership")
    if event.state_key is None or not isinstance(membership, str):
        raise rejection(event, "member.form", "no state_key, or no membership in content")
    if membership == "join" and _is_creator_joining(event, auth):
        return
    _check_target_federation(event, auth)
    match membership:
        case "join":
            _check_join(event, auth)
        case "invite":
            _check_invite(event, auth)
        case "leave":
            _check_leave(event, auth)
        case "ban":
            _check_ban(event, auth)
        case "knock" if event.room_version.knows_knocking:  # Since v7.
            _check_knock(event, auth)
        case _:
            raise rejection(event, "member.unknown", f"unknown membership {membership!r}")


def _is_creator_joining(event: Event, auth: AuthState) -> bool:
    """The first join: straight after the create event, by its creator."""
    create = auth.create
    if create is None or event.prev_event_ids != (create.event_id,):
        return False
    if event.room_version.creator_is_in_content:  # v1–v10
        return event.state_key in creators_of(create)
    return event.state_key == create.sender


def _check_target_federation(event: Event, auth: AuthState) -> None:
    """Not in the text: Synapse keeps *targets* of other servers out of a closed room, too."""
    if not auth.lets_in(event.state_key or ""):
        raise _no(event, "federate", "the room is closed to users of other servers")


def _check_join(event: Event, auth: AuthState) -> None:
    room_version = event.room_version
    if event.sender != event.state_key:
        raise _no(event, "join.sender", "nobody can make another user join")
    membership = auth.membership(event.sender)
    if membership == "ban":
        raise _no(event, "join.banned", f"{event.sender} is banned")

    join_rule = auth.join_rule
    if join_rule == "public":
        return
    is_invited = membership in ("invite", "join")
    if join_rule == "invite" or (join_rule == "knock" and room_version.knows_knocking):
        if not is_invited:
            raise _no(event, "join.invite", f"{event.sender} is not invited")
        return
    if (join_rule == "restricted" and room_version.knows_restricted_joins) or (
        join_rule == "knock_restricted" and room_version.knows_knock_restricted
    ):
        if not is_invited:
            _check_authorising_user(event, auth)
        return
    raise _no(event, "join.rule", f"the join rule {join_rule!r} lets nobody in")


def _check_authorising_user(event: Event, auth: AuthState) -> None:
    """Since v8: a member who may invite vouches that the user meets the room's conditions."""
    authorising_user = event.content.get("join_authorised_via_users_server")
    if not isinstance(authorising_user, str):
        raise _no(event, "join.restricted", "nobody vouches for the join")
    if auth.membership(authorising_user) != "join":
        raise _no(event, "join.restricted", f"{authorising_user} is not in the room")
    if auth.level(authorising_user) < auth.power_levels.invite:
        raise _no(event, "join.restricted", f"{authorising_user} may not invite")


def _check_invite(event: Event, auth: AuthState) -> None:
    if "third_party_invite" in event.content:
        _check_third_party_invite(event, auth)
        return
    _check_sender_joined(event, auth, "invite")
    target = auth.membership(event.state_key)
    if target in ("join", "ban"):
        raise _no(event, "invite.target", f"{event.state_key} has membership {target}")
    if auth.level(event.sender) < auth.power_levels.invite:
        raise _no(event, "invite.level", f"{event.sender} may not invite")


def _check_third_party_invite(event: Event, auth: AuthState) -> None:
    """The invitation was sent to an address, and its owner proves to be this user."""
    if auth.membership(event.state_key) == "ban":
        raise _no(event, "invite.third-party.banned", f"{event.state_key} is banned")
    match event.content:
        case {
            "third_party_invite": {
                "signed": {"mxid": mxid, "token": str(token), "signatures": dict()} as signed
            }
        }:
            pass
        case _:
            raise _no(event, "invite.third-party.form", "no mxid, token and signatures are signed")
    if mxid != event.state_key:
        raise _no(event, "invite.third-party.mxid", "the invitation was accepted by another user")
    invite = auth.state.get(("m.room.third_party_invite", token))
    if invite is None:
        raise _no(event, "invite.third-party.token", "there is no such invitation")
    if invite.sender != event.sender:
        raise _no(event, "invite.third-party.sender", "the invitation is by another sender")
    if not any(_is_signed_by(signed, key) for key in _public_keys(invite)):
        raise _no(event, "invite.third-party.signature", "no key of the invitation has signed")


def _public_keys(invite: Event) -> list[bytes]:
    """Return the keys that a third-party invite says its proof is signed with."""
    listed = invite.content.get("public_keys")
    objects = [invite.content, *(listed if isinstance(listed, list) else ())]
    keys = [decode_verify_key(item.get("public_key")) for item in objects if isinstance(item, dict)]
    return [key for key in keys if key is not None]


def _is_signed_by(signed: dict[str, object], public_key: bytes) -> bool:
    """Return whether any signature of the object, by whatever server and ID, is of this key."""
    signatures = signed.get("signatures")
    for server_name, by_key_id in signatures.items() if isinstance(signatures, dict) else ():
        for key_id in by_key_id if isinstance(by_key_id, dict) else ():
            try:
                verify_json(signed, server_name, {key_id: public_key})
            except (SignatureError, CanonicalJsonError):
                continue
            return True
    return False


def _check_leave(event: Event, auth: AuthState) -> None:
    membership = auth.membership(event.sender)
    if event.sender == event.state_key:
        may_leave = ["invite", "join"]
        if event.room_version.knows_knocking:  # Since v7.
            may_leave.append("knock")
        if membership not in may_leave:
            raise _no(event, "leave.own", f"{event.sender} has membership {membership}")
        return
    _check_sender_joined(event, auth, "leave")
    sender_level = auth.level(event.sender)
    if auth.membership(event.state_key) == "ban" and sender_level < auth.power_levels.ban:
        raise _no(event, "leave.unban", f"{event.sender} may not lift bans")
    if sender_level < auth.power_levels.kick:
        raise _no(event, "leave.kick", f"{event.sender} may not kick")
    if sender_level <= auth.level(event.state_key):
        raise _no(event, "leave.kick", f"{event.state_key} has as much power as the sender")


def _check_ban(event: Event, auth: AuthState) -> None:
    _check_sender_joined(event, auth, "ban")
    sender_level = auth.level(event.sender)
    if sender_level < auth.power_levels.ban:
        raise _no(event, "ban.level", f"{event.sender} may not ban")
    if sender_level <= auth.level(event.state_key):
        raise _no(event, "ban.level", f"{event.state_key} has as much power as the sender")


def _check_knock(event: Event, auth: AuthState) -> None:
    rules = ["knock"]
    if event.room_version.knows_knock_restricted:  # Since v10.
        rules.append("knock_restricted")
    if auth.join_rule not in rules:
        raise _no(event, "knock.rule", f"the join rule is {auth.join_rule!r}")
    if event.sender != event.state_key:
        raise _no(event, "knock.sender", "nobody can knock for another user")
    membership = auth.membership(event.sender)
    if membership in ("ban", "invite", "join"):
        raise _no(event, "knock.membership", f"{event.sender} has membership {membership}")


def _check_sender_joined(event: Event, auth: AuthState, membership: str) -> None:
    if auth.membership(event.sender) != "join":
        raise _no(event, f"{membership}.sender", f"{event.sender} is not in the room")


def _no(event: Event, rule: str, message: str) -> EventAuthError:
    return rejection(event, f"member.{rule}", message)
