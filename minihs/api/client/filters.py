"""Stored filters. Spec: client-server-api#filtering."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.accounts import account_data, filters

if TYPE_CHECKING:
    from minihs.api.requests import Request


async def define_filter(request: Request) -> object:
    """POST /_matrix/client/v3/user/{userId}/filter.

    Spec: client-server-api#post_matrixclientv3useruseridfilter
    """
    user_id = account_data.check_own(request.requester, request.path["userId"])
    definition = await request.json_object()
    return {"filter_id": await filters.define_filter(request.services, user_id, definition)}


async def get_filter(request: Request) -> object:
    """GET /_matrix/client/v3/user/{userId}/filter/{filterId}.

    Spec: client-server-api#get_matrixclientv3useruseridfilterfilterid
    """
    user_id = account_data.check_own(request.requester, request.path["userId"])
    return await filters.get_filter(request.services, user_id, request.path["filterId"])
