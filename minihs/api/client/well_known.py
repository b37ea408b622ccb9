"""Where this server is to be found: the files under `/.well-known/matrix/`.

Each is told only if it is configured: a proxy in front of us may have its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import NotFound

if TYPE_CHECKING:
    from minihs.api.requests import Request
    from minihs.base.config import Config


def client_information(config: Config) -> dict[str, object] | None:
    """Return what clients are told, at `/.well-known/matrix/client` and with each login.

    Spec: client-server-api#well-known-uris
    """
    if not config.public_base_url:
        return None
    return {"m.homeserver": {"base_url": config.public_base_url}}


async def get_wellknown(request: Request) -> object:
    """GET /.well-known/matrix/client.

    Spec: client-server-api#getwell-knownmatrixclient
    """
    information = client_information(request.services.config)
    if information is None:
        raise NotFound("This server does not say where clients should go.")
    return information


async def get_well_known(request: Request) -> object:
    """GET /.well-known/matrix/server.

    Spec: server-server-api#getwell-knownmatrixserver
    """
    config = request.services.config
    if not config.well_known_server:
        raise NotFound("This server does not delegate.")
    return {"m.server": config.well_known_server}


async def get_wellknown_support(request: Request) -> object:
    """GET /.well-known/matrix/support.

    Spec: client-server-api#getwell-knownmatrixsupport
    """
    contact = request.services.config.support_contact
    if not contact:
        raise NotFound("No contact is published.")
    kind = "matrix_id" if contact.startswith("@") else "email_address"
    return {"contacts": [{kind: contact, "role": "m.role.admin"}]}
