"""What this server can do for a user. Spec: client-server-api#capabilities-negotiation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.protocol.unstable import DELAYED_EVENTS_CAPABILITY, FORGET_FORCED_UPON_LEAVE

if TYPE_CHECKING:
    from minihs.api.requests import Request


async def get_capabilities(request: Request) -> object:
    """GET /_matrix/client/v3/capabilities.

    Spec: client-server-api#get_matrixclientv3capabilities, MSC4267#proposal,
    MSC4140#delayed-event-limits-as-a-capability
    """
    config = request.services.config
    versions = {
        name: "stable" if version.is_stable else "unstable"
        for name, version in ROOM_VERSIONS.items()
    }
    return {
        "capabilities": {
            "m.room_versions": {"default": config.default_room_version, "available": versions},
            "m.change_password": {"enabled": True},
            "m.set_displayname": {"enabled": True},
            "m.set_avatar_url": {"enabled": True},
            "m.profile_fields": {"enabled": True},
            "m.3pid_changes": {"enabled": False},
            "m.get_login_token": {"enabled": False},
            **FORGET_FORCED_UPON_LEAVE.write({"enabled": config.forget_rooms_on_leave}),
            **DELAYED_EVENTS_CAPABILITY.write(
                {
                    "max_delay_ms": config.delayed_events_max_delay_ms,
                    "max_scheduled": config.delayed_events_max_scheduled,
                }
            ),
        }
    }
