"""Networks beyond Matrix: whoever asks about them is answered by the services that bridge to them.

Spec: application-service-api#third-party-networks
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from minihs.base.errors import NotFound
from minihs.protocol.unstable import APPSERVICE_DEVICE_ID_PARAMETER
from minihs.remote.appservices import V1, json_of
from minihs.remote.transport import RemoteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.services.appservices.registration import Registration
    from minihs.services.context import Services

logger = logging.getLogger(__name__)

Kind = Literal["location", "user"]

OLDER = "/_matrix/app/unstable"
NO_FIELDS = frozenset({"access_token", "user_id", *APPSERVICE_DEVICE_ID_PARAMETER.spellings})


async def get_protocols(services: Services) -> dict[str, dict[str, object]]:
    """Return every protocol that services bridge to, as far as they tell about it.

    Spec: client-server-api#get_matrixclientv3thirdpartyprotocols
    """
    names = list(dict.fromkeys(p for s in services.appservices.all for p in s.protocols))
    found = await asyncio.gather(*(_protocol(services, name) for name in names))
    return {name: told for name, told in zip(names, found, strict=True) if told is not None}


async def get_protocol(services: Services, name: str) -> dict[str, object]:
    """Return what the services tell of a protocol.

    Spec: client-server-api#get_matrixclientv3thirdpartyprotocolprotocol

    Raises:
        NotFound: none does.
    """
    told = await _protocol(services, name)
    if told is None:
        raise NotFound("This server knows no such protocol.")
    return told


async def look_up(
    services: Services, kind: Kind, protocol: str | None, query: Sequence[tuple[str, str]]
) -> list[dict[str, object]]:
    """Return the locations or users that services find, of one protocol or of any.

    Spec: client-server-api#get_matrixclientv3thirdpartylocationprotocol
    Spec: client-server-api#get_matrixclientv3thirdpartylocation

    Raises:
        NotFound: nobody bridges to the protocol.
    """
    asked = _services_of(services, protocol)
    if protocol is not None and not asked:
        raise NotFound("This server knows no such protocol.")
    path = f"/thirdparty/{kind}" + (f"/{quote(protocol, safe='')}" if protocol is not None else "")
    answers = await asyncio.gather(*(_ask(services, one, path, query) for one in asked))
    name = "userid" if kind == "user" else "alias"
    return [
        found
        for answer in answers
        for found in (answer if isinstance(answer, list) else ())
        if isinstance(found, dict) and isinstance(found.get(name), str)
    ]


async def _protocol(services: Services, name: str) -> dict[str, object] | None:
    """Return what services tell of a protocol: the first of them, with the instances of all."""
    path = f"/thirdparty/protocol/{quote(name, safe='')}"
    asked = _services_of(services, name)
    answers = await asyncio.gather(*(_ask(services, one, path, ()) for one in asked))
    told: dict[str, object] | None = None
    instances: list[object] = []
    for service, answer in zip(asked, answers, strict=True):
        if not isinstance(answer, dict):
            continue
        told = told or answer
        listed = answer.get("instances")
        instances += (
            [_instance(service, instance) for instance in listed if isinstance(instance, dict)]
            if isinstance(listed, list)
            else []
        )
    return None if told is None else {**told, "instances": instances}


def _instance(service: Registration, instance: dict[str, object]) -> dict[str, object]:
    """Return an instance with the id by which its directory is asked for."""
    network_id = instance.get("network_id")
    if isinstance(network_id, str):
        return {**instance, "instance_id": instance_id_of(service.id, network_id)}
    return instance


def instance_id_of(service_id: str, network_id: str) -> str:
    """Return by which id clients ask for the directory of a service's network."""
    return f"{service_id}|{network_id}"


def _services_of(services: Services, protocol: str | None) -> list[Registration]:
    return [
        service
        for service in services.appservices.listening
        if (service.protocols if protocol is None else protocol in service.protocols)
    ]


async def _ask(
    services: Services, service: Registration, path: str, query: Sequence[tuple[str, str]]
) -> object:
    """Return the JSON that a service answers; None: nothing of use."""
    answer = await services.appservices.remote.request(
        service, "GET", V1 + path, legacy=OLDER + path, query=query
    )
    if isinstance(answer, RemoteError):
        if answer.status != 404:
            logger.info("no answer about a network: %s", answer.describe())
        return None
    return json_of(answer)
