"""What this server is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs import __version__

if TYPE_CHECKING:
    from minihs.api.requests import Request


async def get_version(_request: Request) -> object:
    """GET /_matrix/federation/v1/version: our name and version.

    Spec: server-server-api#get_matrixfederationv1version
    """
    return {"server": {"name": "minihs", "version": __version__}}
