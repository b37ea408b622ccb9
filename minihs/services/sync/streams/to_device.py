"""Messages to the device that syncs: given, and deleted when the client says that it has them.

Spec: client-server-api#send-to-device-messaging
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from minihs.storage import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.services.accounts.authentication import Requester
    from minihs.services.context import Services
    from minihs.services.sync.views import UserView

MESSAGES_MAX: Final = 100  # Spec: client-server-api#server-behaviour-7


@dataclass(frozen=True, slots=True)
class Messages:
    """The next messages, oldest first; there are more after position `left_after`, if not None."""

    events: Sequence[orjson.Fragment]
    left_after: int | None = None


NOTHING: Final = Messages(())


async def acknowledge(
    services: Services, requester: Requester, view: UserView, received: int
) -> None:
    """Delete the messages up to a position: the device has them."""
    inbox = view.inboxes.get(requester.device_nid)
    if inbox is None or inbox.first > received:
        return
    await to_device.delete_received(services.db, requester.device_nid, received)
    if inbox.last > received:
        inbox.first = received + 1
    else:
        view.inboxes.pop(requester.device_nid, None)


async def read(
    services: Services,
    requester: Requester,
    view: UserView,
    received: int,
    upto: int,
    limit: int = MESSAGES_MAX,
) -> Messages:
    """Return the messages in (received, upto]. It costs nothing where nothing waits."""
    nid = requester.device_nid
    inbox = view.inboxes.get(nid)
    if inbox is None or inbox.last <= received:
        return NOTHING
    rows = await to_device.list_messages(services.db, nid, received, upto, limit + 1)
    left_after = rows[limit - 1][0] if len(rows) > limit else None
    return Messages([orjson.Fragment(json) for _, json in rows[:limit]], left_after)
