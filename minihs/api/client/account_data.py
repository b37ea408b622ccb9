"""Account data and tags. Spec: client-server-api#client-config, client-server-api#room-tagging."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.accounts import account_data, push_rules

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.protocol.identifiers import RoomId, UserId


async def get_account_data(request: Request) -> object:
    """GET /_matrix/client/v3/user/{userId}/account_data/{type}.

    Spec: client-server-api#get_matrixclientv3useruseridaccount_datatype
    """
    user_id = account_data.check_own(request.requester, request.path["userId"])
    data_type = request.path["type"]
    if data_type == account_data.PUSH_RULES:  # What is stored are the changes only.
        return await push_rules.get_push_rules(request.services, user_id)
    return await account_data.get_account_data(request.services, user_id, "", data_type)


async def set_account_data(request: Request) -> object:
    """PUT /_matrix/client/v3/user/{userId}/account_data/{type}.

    Spec: client-server-api#put_matrixclientv3useruseridaccount_datatype
    """
    user_id = account_data.check_own(request.requester, request.path["userId"])
    content = await request.content()
    await account_data.set_account_data(
        request.services, user_id, "", request.path["type"], content
    )
    return {}


async def get_account_data_per_room(request: Request) -> object:
    """GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}.

    Spec: client-server-api#get_matrixclientv3useruseridroomsroomidaccount_datatype
    """
    user_id, room_id = _whose_and_where(request)
    return await account_data.get_account_data(
        request.services, user_id, room_id, request.path["type"]
    )


async def set_account_data_per_room(request: Request) -> object:
    """PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}.

    Spec: client-server-api#put_matrixclientv3useruseridroomsroomidaccount_datatype
    """
    user_id, room_id = _whose_and_where(request)
    content = await request.content()
    await account_data.set_account_data(
        request.services, user_id, room_id, request.path["type"], content
    )
    return {}


async def get_room_tags(request: Request) -> object:
    """GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags.

    Spec: client-server-api#get_matrixclientv3useruseridroomsroomidtags
    """
    user_id, room_id = _whose_and_where(request)
    return {"tags": await account_data.get_tags(request.services, user_id, room_id)}


async def set_room_tag(request: Request) -> object:
    """PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}.

    Spec: client-server-api#put_matrixclientv3useruseridroomsroomidtagstag
    """
    user_id, room_id = _whose_and_where(request)
    details = await request.json_object()
    await account_data.set_tag(request.services, user_id, room_id, request.path["tag"], details)
    return {}


async def delete_room_tag(request: Request) -> object:
    """DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}.

    Spec: client-server-api#delete_matrixclientv3useruseridroomsroomidtagstag
    """
    user_id, room_id = _whose_and_where(request)
    await account_data.delete_tag(request.services, user_id, room_id, request.path["tag"])
    return {}


def _whose_and_where(request: Request) -> tuple[UserId, RoomId]:
    user_id = account_data.check_own(request.requester, request.path["userId"])
    return user_id, account_data.check_room(request.path["roomId"])
