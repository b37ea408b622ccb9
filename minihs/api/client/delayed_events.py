"""Delayed events, in both generations of their API: the merged one, and what clients use today.

The former schedules by a query parameter of the ordinary endpoints, knows older names of what it
answers, and other error codes. MSC4140#proposal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.api.client.appservices import massaged_ts
from minihs.api.client.sticky_events import sticky_duration_ms
from minihs.base.errors import (
    BadJson,
    InvalidParam,
    MatrixError,
    MissingParam,
    MissingToken,
    Unrecognized,
)
from minihs.protocol import unstable
from minihs.protocol.identifiers import parse_room_id
from minihs.services.rooms import delayed_events
from minihs.services.rooms.delayed_events import (
    AlreadyFinalised,
    DelayedDraft,
    DelayTooLong,
    Wanted,
)
from minihs.services.rooms.origins import ClientTransaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minihs.api.requests import Request
    from minihs.protocol.identifiers import UserId

DIGITS_MAX = 15
LIST_PARAMETERS = ("from_ts", "to_ts", "dir", "from", "room_id", "type", "status")
STATUSES = ("scheduled", "sent", "cancelled", "failed")
FORMER_FINALISED = "finalised"  # Of any of the latter three.
ACTIONS = {
    "send": delayed_events.send_now,
    "cancel": delayed_events.cancel,
    "restart": delayed_events.restart,
}


# --- scheduling --------------------------------------------------------------------------------


async def schedule_delayed_event(request: Request) -> object:
    """PUT /_matrix/client/v3/rooms/{roomId}/delayed_event/{eventType}/{txnId}.

    MSC4140#scheduling-a-delayed-event
    """
    return await _schedule(request, former=False)


async def schedule_delayed_event_unstable(request: Request) -> object:
    """PUT /_matrix/client/unstable/org.matrix.msc4140/rooms/{roomId}/delayed_event/{eventType}/{txnId}.

    `delay_ms` may have its former name, `delay`, as matrix-rust-sdk gives it.
    MSC4140#scheduling-a-delayed-event
    """  # noqa: E501
    return await _schedule(request, former=True)


async def _schedule(request: Request, *, former: bool) -> object:
    path, requester = request.path, request.requester
    event_type, room_id = path["eventType"], path["roomId"]
    transaction = ClientTransaction(
        requester.device_nid, path["txnId"], f"delayed_event/{event_type}"
    )
    known = await delayed_events.find_scheduled(request.services, room_id, transaction)
    if known is not None:
        return {"delay_id": known}
    body = await request.json_object()
    if former and unstable.DELAY_MS.is_in(body):
        delay = unstable.read(body, unstable.DELAY_MS)
        if isinstance(delay, unstable.Disagreement):
            raise InvalidParam(delay.message)
        body = {**body, "delay_ms": delay}
    match body:
        case {"delay_ms": int(delay_ms), "content": dict(content), **others} if not isinstance(
            delay_ms, bool
        ) and isinstance(others.get("state_key", ""), str):
            pass
        case _:
            raise BadJson(
                "Wanted: delay_ms (a number), content (an object), state_key (if any, text)."
            )
    if delay_ms <= 0:
        raise InvalidParam("delay_ms must be positive.")
    state_key = str(others["state_key"]) if "state_key" in others else None
    draft = DelayedDraft(
        room_id,
        event_type,
        state_key,
        content,
        delay_ms,
        sticky_duration_ms(request),
        massaged_ts(request),
    )
    return {
        "delay_id": await delayed_events.schedule(
            request.services, requester.user_id, draft, transaction
        )
    }


async def schedule_by_parameter(
    request: Request, state_key: str | None, transaction: ClientTransaction | None
) -> object:
    """Answer a request of `/send` or `/state` that has the parameter for a delay.

    A repetition need not even have a body.
    MSC4140#reusing-the-sendstate-endpoints
    """
    services, path = request.services, request.path
    if transaction is not None:
        known = await delayed_events.find_scheduled(services, path["roomId"], transaction)
        if known is not None:
            return {"delay_id": known}
    text = request.required_query(unstable.DELAY_PARAMETER)
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS_MAX and int(text) > 0):
        raise InvalidParam(f"{unstable.DELAY_PARAMETER} must be a positive number of milliseconds.")
    draft = DelayedDraft(
        path["roomId"],
        path["eventType"],
        state_key,
        await request.json_object(),
        int(text),
        sticky_duration_ms(request),
        massaged_ts(request),
    )
    try:
        delay_id = await delayed_events.schedule(
            services, request.requester.user_id, draft, transaction
        )
    except DelayTooLong as error:
        refused = MatrixError(error.message)  # As those clients know it.
        refused.fields[unstable.DELAY_ERRCODE] = "M_MAX_DELAY_EXCEEDED"
        refused.fields[unstable.DELAY_MAX] = services.config.delayed_events_max_delay_ms
        raise refused from error
    return {"delay_id": delay_id}


# --- managing ----------------------------------------------------------------------------------


async def manage_delayed_event(request: Request) -> object:
    """POST /_matrix/client/v1/delayed_events/{delayId}/{action}.

    MSC4140#managing-scheduled-delayed-events
    """
    return await _manage(request, request.requester.user_id, request.path["action"])


async def manage_delayed_event_unstable(request: Request) -> object:
    """POST /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}[/{action}].

    The action may be in the body, and no token is needed where the configuration says so. A client
    of that generation understands `M_NOT_FOUND` of what is finalised: it begins anew.
    MSC4140#management-endpoint-action-in-request-body, MSC4140#delegating-scheduled-delayed-events
    """
    requester, owner = request.maybe_requester, None
    if requester is not None:
        owner = requester.user_id
    elif not request.services.config.delayed_events_unauthenticated_management:
        raise MissingToken("Missing access token.")
    action: object = request.path.get("action")
    if action is None:
        action = (await request.json_object()).get("action")
        if not isinstance(action, str):
            raise MissingParam("The body has no action.")
        if action not in ACTIONS:
            raise InvalidParam(f"action must be one of {', '.join(ACTIONS)}.")
    try:
        return await _manage(request, owner, str(action))
    except AlreadyFinalised as error:
        raise AlreadyFinalised(error.message, errcode="M_NOT_FOUND") from error


async def _manage(request: Request, owner: UserId | None, action: str) -> object:
    carry_out = ACTIONS.get(action)
    if carry_out is None:
        raise Unrecognized("Unrecognized action.")
    await carry_out(request.services, owner, request.path["delayId"])
    return {}


# --- looking up --------------------------------------------------------------------------------


async def get_delayed_event(request: Request) -> object:
    """GET /_matrix/client/v1/delayed_events/{delayId}. MSC4140#getting-a-single-delayed-event."""
    return await delayed_events.get_delayed_event(
        request.services, request.requester.user_id, request.path["delayId"]
    )


async def get_delayed_event_unstable(request: Request) -> object:
    """GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}.

    MSC4140#getting-a-single-delayed-event
    """
    described = await delayed_events.get_delayed_event(
        request.services, request.requester.user_id, request.path["delayId"]
    )
    return _with_former_names(described)


async def get_delayed_events(request: Request) -> object:
    """GET /_matrix/client/v1/delayed_events. MSC4140#getting-a-list-of-delayed-events."""
    answer, _ = await _list(request, former=False, everything=False)
    return answer


async def get_delayed_events_unstable(request: Request) -> object:
    """GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events.

    The list is told twice: also as a draft of 2025 had it and matrix-js-sdk reads it, what is
    scheduled and what is finalised apart.
    MSC4140#getting-a-list-of-delayed-events
    """
    answer, events = await _list(request, former=True, everything=False)
    scheduled = [event for event in events if "finalised" not in event]
    finalised = [_former_outcome(event) for event in events if "finalised" in event]
    return {"scheduled": scheduled, "finalised": finalised, **answer}


async def get_delayed_events_filtered(request: Request) -> object:
    """GET /_matrix/client/unstable/org.matrix.msc4486/delayed_events. MSC4486#proposal."""
    answer, _ = await _list(request, former=True, everything=True)
    return answer


async def _list(
    request: Request, *, former: bool, everything: bool
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Return an answer with a page of the requester's delayed events; and that page.

    MSC4140 knows no filters and lists what is scheduled; with any filter of MSC4486, and at its own
    path, what is finalised is listed too, unless the filter says otherwise.
    """
    wanted = _wanted(request, STATUSES if not former else (*STATUSES, FORMER_FINALISED))
    if wanted == Wanted() and not everything:
        wanted = Wanted(status="scheduled")
    events, place = await delayed_events.list_delayed_events(
        request.services, request.requester.user_id, wanted
    )
    if former:
        events = [_with_former_names(event) for event in events]
    answer: dict[str, object] = {"delayed_events": events}
    if place is not None:
        token = f"{place[0]}_{place[1]}"
        answer |= dict.fromkeys(unstable.LIST_NEXT_BATCH.written, token)
    return answer, events


def _wanted(request: Request, statuses: Sequence[str]) -> Wanted:
    """Return what the query parameters of MSC4486 ask for.

    Raises:
        InvalidParam: a value is none that there is, or the two spellings of a parameter disagree.
    """
    given: dict[str, str] = {}
    for name in LIST_PARAMETERS:
        spellings = [f"{unstable.LIST_PREFIX}{name}", name]
        values = {value for spelling in spellings if (value := request.query(spelling)) is not None}
        if len(values) > 1:
            raise InvalidParam(f"{' and '.join(spellings)} disagree")
        for value in values:
            given[name] = value
    if given.get("status", "sent") not in statuses:
        raise InvalidParam(f"status must be one of {', '.join(statuses)}.")
    if given.get("dir", "f") not in ("f", "b"):
        raise InvalidParam("dir must be f or b.")
    if parse_room_id(given.get("room_id", "!any")) is None:
        raise InvalidParam("room_id is no room id.")
    every = Wanted()
    after: tuple[int, str] | None = None
    if "from" in given:
        due, _, delay_id = given["from"].partition("_")
        after = _time("from", due), delay_id
    return Wanted(
        status=given.get("status"),
        from_ms=_time("from_ts", given["from_ts"]) if "from_ts" in given else every.from_ms,
        to_ms=_time("to_ts", given["to_ts"]) if "to_ts" in given else every.to_ms,
        room_id=given.get("room_id"),
        type=given.get("type"),
        backward=given.get("dir") == "b",
        after=after,
    )


def _time(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS_MAX):
        raise InvalidParam(f"{name} is no time in milliseconds, or no token of ours.")
    return int(text)


def _with_former_names(described: dict[str, object]) -> dict[str, object]:
    """Return a description that clients of either generation understand."""
    outcome = described.get("finalised")
    return {
        **described,
        "delay": described["delay_ms"],
        "running_since": described["delayed_since_ts"],
        "scheduled_at": described["delayed_since_ts"],
        **(outcome if isinstance(outcome, dict) else {}),
    }


def _former_outcome(described: dict[str, object]) -> dict[str, object]:
    """Return what became of a delayed event as the draft of 2025 told it."""
    match described:
        case {"error": error}:
            return {
                "delayed_event": described,
                "outcome": "cancel",
                "reason": "error",
                "error": error,
            }
        case {
            "event_id": event_id,
            "finalised_ts": int(ts),
            "delay": int(delay_ms),
            "running_since": int(since),
        }:
            return {
                "delayed_event": described,
                "outcome": "send",
                "reason": "delay" if ts >= since + delay_ms else "action",
                "event_id": event_id,
                "origin_server_ts": ts,
            }
        case _:
            return {"delayed_event": described, "outcome": "cancel", "reason": "action"}
