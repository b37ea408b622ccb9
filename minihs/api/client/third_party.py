"""Networks that application services bridge to. Spec: client-server-api#third-party-networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.appservices import third_party

if TYPE_CHECKING:
    from minihs.api.requests import Request


async def get_protocols(request: Request) -> object:
    """GET /_matrix/client/v3/thirdparty/protocols.

    Spec: client-server-api#get_matrixclientv3thirdpartyprotocols
    """
    return await third_party.get_protocols(request.services)


async def get_protocol_metadata(request: Request) -> object:
    """GET /_matrix/client/v3/thirdparty/protocol/{protocol}.

    Spec: client-server-api#get_matrixclientv3thirdpartyprotocolprotocol
    """
    return await third_party.get_protocol(request.services, request.path["protocol"])


async def query_location_by_protocol(request: Request) -> object:
    """GET /_matrix/client/v3/thirdparty/location/{protocol}.

    Spec: client-server-api#get_matrixclientv3thirdpartylocationprotocol
    """
    return await _by_fields(request, "location")


async def query_user_by_protocol(request: Request) -> object:
    """GET /_matrix/client/v3/thirdparty/user/{protocol}.

    Spec: client-server-api#get_matrixclientv3thirdpartyuserprotocol
    """
    return await _by_fields(request, "user")


async def query_location_by_alias(request: Request) -> object:
    """GET /_matrix/client/v3/thirdparty/location.

    Spec: client-server-api#get_matrixclientv3thirdpartylocation
    """
    query = [("alias", request.required_query("alias"))]
    return await third_party.look_up(request.services, "location", None, query)


async def query_user_by_id(request: Request) -> object:
    """GET /_matrix/client/v3/thirdparty/user.

    Spec: client-server-api#get_matrixclientv3thirdpartyuser
    """
    query = [("userid", request.required_query("userid"))]
    return await third_party.look_up(request.services, "user", None, query)


async def _by_fields(request: Request, kind: third_party.Kind) -> object:
    """Return what the services of a protocol find by the fields in the query."""
    # What says who asks is not for the services.
    fields = [(k, v) for k, v in request.http.query.items() if k not in third_party.NO_FIELDS]
    return await third_party.look_up(request.services, kind, request.path["protocol"], fields)
