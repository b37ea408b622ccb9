"""Devices. Deleting one deletes its access and refresh tokens with it (foreign keys)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minihs.storage.sessions import ANNOUNCE_LOGOUT
from minihs.storage.sql import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.storage.database import Queries


@dataclass(frozen=True, slots=True)
class Device:
    """A device as its user sees it."""

    device_id: str
    display_name: str | None
    last_seen_ms: int | None
    last_seen_ip: str | None


# Index devices_user_id_device_id_key, as all that follow but the one by device_nid. The name of a
# known device is its user's: a login does not change it.
UPSERT = statement(
    "devices.upsert",
    """
    INSERT INTO devices (user_id, device_id, display_name, last_seen_ms, last_seen_ip)
    SELECT $1, $2, $3, $4, $5
    WHERE EXISTS (SELECT FROM devices WHERE user_id = $1 AND device_id = $2)
       OR (SELECT count(*) FROM (SELECT FROM devices WHERE user_id = $1 LIMIT $6) AS own) < $6
    ON CONFLICT (user_id, device_id)
    DO UPDATE SET last_seen_ms = excluded.last_seen_ms, last_seen_ip = excluded.last_seen_ip
    RETURNING device_nid
    """,
)

LIST = statement(
    "devices.list",
    """
    SELECT device_id, display_name, last_seen_ms, last_seen_ip
    FROM devices
    WHERE user_id = $1
    ORDER BY device_nid
    """,
)

FETCH = statement(
    "devices.fetch",
    """
    SELECT device_id, display_name, last_seen_ms, last_seen_ip
    FROM devices
    WHERE user_id = $1 AND device_id = $2
    """,
)

RENAME = statement(
    "devices.rename",
    """
    UPDATE devices
    SET display_name = coalesce($3, display_name)
    WHERE user_id = $1 AND device_id = $2
    RETURNING true
    """,
)

DELETE = statement(
    "devices.delete",
    f"""
    WITH gone AS (
      DELETE FROM devices WHERE user_id = $1 AND device_id = ANY($2::text[])
      RETURNING device_nid, user_id
    )
    {ANNOUNCE_LOGOUT}
    """,  # noqa: S608  # a constant
)

DELETE_OTHERS = statement(
    "devices.delete_others",
    f"""
    WITH gone AS (
      DELETE FROM devices WHERE user_id = $1 AND device_nid IS DISTINCT FROM $2
      RETURNING device_nid, user_id
    )
    {ANNOUNCE_LOGOUT}
    """,  # noqa: S608  # a constant
)

# Primary key.
SEEN = statement(
    "devices.seen",
    """
    UPDATE devices
    SET last_seen_ms = $2, last_seen_ip = $3
    WHERE device_nid = $1 AND last_seen_ms IS DISTINCT FROM $2
    """,
)


async def upsert_device(
    queries: Queries,
    user_id: str,
    device_id: str,
    display_name: str | None,
    now_ms: int,
    ip: str,
    count_max: int,
) -> int | None:
    """Return the surrogate key of a device in use, made with this name if it was not there.

    None: the user has too many.
    """
    row = (user_id, device_id, display_name, now_ms, ip)
    nid = await queries.fetchval(UPSERT, *row, count_max)
    return nid if isinstance(nid, int) else None


async def list_devices(queries: Queries, user_id: str) -> Sequence[Device]:
    """Return a user's devices, the oldest first."""
    return [Device(*row) for row in await queries.fetch(LIST, user_id)]


async def fetch_device(queries: Queries, user_id: str, device_id: str) -> Device | None:
    """Return one device of a user."""
    row = await queries.fetchrow(FETCH, user_id, device_id)
    return Device(*row) if row is not None else None


async def mark_device_name(
    queries: Queries, user_id: str, device_id: str, display_name: str | None
) -> bool:
    """Rename a device (None: leave its name); return whether there is one."""
    return await queries.fetchval(RENAME, user_id, device_id, display_name) is True


async def mark_device_seen(queries: Queries, device_nid: int, now_ms: int, ip: str) -> None:
    """Remember when and from where a device was used."""
    await queries.execute(SEEN, device_nid, now_ms, ip)


async def delete_devices(queries: Queries, user_id: str, device_ids: Sequence[str]) -> None:
    """Delete those of a user's devices that exist."""
    await queries.execute(DELETE, user_id, device_ids)


async def delete_devices_except(queries: Queries, user_id: str, device_nid: int | None) -> None:
    """Delete all of a user's devices but one (None: all of them)."""
    await queries.execute(DELETE_OTHERS, user_id, device_nid)
