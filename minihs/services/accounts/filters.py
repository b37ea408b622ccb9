"""Stored filters. Spec: client-server-api#filtering."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import BadJson, InvalidParam, NotFound, QuotaExceeded
from minihs.protocol import canonical_json
from minihs.protocol.filter_reading import InvalidFilterError, parse_filter
from minihs.storage import filters

if TYPE_CHECKING:
    from minihs.protocol.filters import Filter
    from minihs.protocol.identifiers import UserId
    from minihs.services.context import Services

FILTERS_PER_USER_MAX = 10_000
FILTER_ID_DIGITS_MAX = 18


async def define_filter(services: Services, user_id: UserId, definition: object) -> str:
    """Return the id of a filter; the same filter has the same id.

    Spec: client-server-api#post_matrixclientv3useruseridfilter

    Raises:
        BadJson: it is not a filter; the message says where.
        QuotaExceeded: the user has too many.
    """
    try:
        parse_filter(definition)
    except InvalidFilterError as error:
        raise BadJson(str(error)) from None
    text = canonical_json.encode(definition).decode()
    filter_id = await filters.upsert_filter(services.db, user_id, text, FILTERS_PER_USER_MAX)
    if filter_id is None:
        raise QuotaExceeded("You have too many filters.")
    return str(filter_id)


async def get_filter(services: Services, user_id: UserId, filter_id: str) -> dict[str, object]:
    """Return a stored filter as it was defined.

    Spec: client-server-api#get_matrixclientv3useruseridfilterfilterid

    Raises:
        NotFound: the user has no such filter.
    """
    text = None
    if filter_id.isascii() and filter_id.isdigit() and len(filter_id) <= FILTER_ID_DIGITS_MAX:
        text = await filters.fetch_filter(services.db, user_id, int(filter_id))
    definition = canonical_json.decode(text) if text is not None else None
    if not isinstance(definition, dict):
        raise NotFound("No such filter.")
    return definition


async def load_filter(services: Services, user_id: UserId, filter_id: str) -> Filter:
    """Return a stored filter, parsed. Filters never change, so parsed ones are kept.

    Raises:
        NotFound: the user has no such filter.
    """
    key = (user_id, filter_id)
    parsed = services.parsed_filters.get(key)
    if parsed is None:
        parsed = parse_filter(await get_filter(services, user_id, filter_id))
        services.parsed_filters.put(key, parsed)
    return parsed


def read_filter(services: Services, text: str) -> Filter:
    """Return a filter that is given inline, as JSON.

    Raises:
        BadJson: it is not a filter; the message says where.
        InvalidParam: it is not JSON.
    """
    parsed = services.parsed_filters.get(("", text))
    if parsed is None:
        try:
            parsed = parse_filter(canonical_json.decode(text))
        except InvalidFilterError as error:
            raise BadJson(str(error)) from None
        except ValueError as error:
            raise InvalidParam(f"The filter is not JSON: {error}") from None
        services.parsed_filters.put(("", text), parsed)
    return parsed
