"""Push rules. Spec: client-server-api#push-rules-api."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from minihs.base.errors import MissingParam
from minihs.protocol import push_rule_edits
from minihs.services.accounts import push_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from minihs.api.requests import Request


async def get_push_rules(request: Request) -> object:
    """GET /_matrix/client/v3/pushrules/.

    Spec: client-server-api#get_matrixclientv3pushrules
    """
    return await push_rules.get_push_rules(request.services, request.requester.user_id)


async def get_push_rules_global(request: Request) -> object:
    """GET /_matrix/client/v3/pushrules/global/.

    Spec: client-server-api#get_matrixclientv3pushrulesglobal
    """
    rules = await push_rules.get_push_rules(request.services, request.requester.user_id)
    return rules["global"]


async def get_push_rule(request: Request) -> object:
    """GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}.

    Spec: client-server-api#get_matrixclientv3pushrulesglobalkindruleid
    """
    return await _rule(request)


async def set_push_rule(request: Request) -> object:
    """PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}.

    Spec: client-server-api#put_matrixclientv3pushrulesglobalkindruleid
    """
    return await _edit(
        request,
        push_rule_edits.put_rule,
        body=await request.json_object(),
        before=request.query("before"),
        after=request.query("after"),
    )


async def delete_push_rule(request: Request) -> object:
    """DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}.

    Spec: client-server-api#delete_matrixclientv3pushrulesglobalkindruleid
    """
    return await _edit(request, push_rule_edits.delete_rule)


async def is_push_rule_enabled(request: Request) -> object:
    """GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled.

    Spec: client-server-api#get_matrixclientv3pushrulesglobalkindruleidenabled
    """
    return {"enabled": (await _rule(request))["enabled"]}


async def set_push_rule_enabled(request: Request) -> object:
    """PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled.

    Spec: client-server-api#put_matrixclientv3pushrulesglobalkindruleidenabled
    """
    enabled = await _required(request, "enabled")
    return await _edit(request, push_rule_edits.set_enabled, enabled=enabled)


async def get_push_rule_actions(request: Request) -> object:
    """GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions.

    Spec: client-server-api#get_matrixclientv3pushrulesglobalkindruleidactions
    """
    return {"actions": (await _rule(request))["actions"]}


async def set_push_rule_actions(request: Request) -> object:
    """PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions.

    Spec: client-server-api#put_matrixclientv3pushrulesglobalkindruleidactions
    """
    actions = await _required(request, "actions")
    return await _edit(request, push_rule_edits.set_actions, actions=actions)


async def _rule(request: Request) -> dict[str, object]:
    return await push_rules.get_push_rule(
        request.services, request.requester.user_id, request.path["kind"], request.path["ruleId"]
    )


async def _edit(
    request: Request, edit: Callable[..., push_rule_edits.Stored], **change: object
) -> object:
    kind, rule_id = request.path["kind"], request.path["ruleId"]
    await push_rules.edit_push_rules(
        request.services,
        request.requester.user_id,
        partial(edit, kind=kind, rule_id=rule_id, **change),
    )
    return {}


async def _required(request: Request, name: str) -> object:
    body = await request.json_object()
    if name not in body:
        raise MissingParam(f"{name} is missing.")
    return body[name]
