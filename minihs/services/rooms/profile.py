"""What a member event says of its user's profile. Spec: client-server-api#profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.storage import profiles

if TYPE_CHECKING:
    from minihs.services.context import Services

MEMBER_FIELDS = ("displayname", "avatar_url")


async def member_profile(services: Services, user_id: str) -> dict[str, object]:
    """Return what goes into a user's member events; nothing for users of other servers."""
    if not services.is_local(user_id):
        return {}
    fields = await profiles.list_profile_fields(services.db, user_id)
    return {name: fields[name] for name in MEMBER_FIELDS if isinstance(fields.get(name), str)}
