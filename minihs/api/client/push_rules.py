"""Push rules. Spec: client-server-api#push-rules-api."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from minihs.base.errors import MissingParam
from minihs.protocol import push_rule_edits
from minihs.services.accounts import push_rules

if TYPE_CHECKING:
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
    kind, rule_id = request.path["kind"], request.path["ruleId"]
    edit = partial(
        push_rule_edits.put_rule,
        kind=kind,
        rule_id=rule_id,
        body=await request.json_object(),
        before=request.query("before"),
        after=request.query("after"),
    )
    await push_rules.edit_push_rules(request.services, request.requester.user_id, edit)
    return {}


async def delete_push_rule(request: Request) -> object:
    """DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}.

    Spec: client-server-api#delete_matrixclientv3pushrulesglobalkindruleid
    """
    kind, rule_id = request.path["kind"], request.path["ruleId"]
    edit = partial(push_rule_edits.delete_rule, kind=kind, rule_id=rule_id)
    await push_rules.edit_push_rules(request.services, request.requester.user_id, edit)
    return {}


async def is_push_rule_enabled(request: Request) -> object:
    """GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled.

    Spec: client-server-api#get_matrixclientv3pushrulesglobalkindruleidenabled
    """
    return {"enabled": (await _rule(request))["enabled"]}


async def set_push_rule_enabled(request: Request) -> object:
    """PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled.

    Spec: client-server-api#put_matrixclientv3pushrulesglobalkindruleidenabled
    """
    kind, rule_id = request.path["kind"], request.path["ruleId"]
    enabled = await _required(request, "enabled")
    edit = partial(push_rule_edits.set_enabled, kind=kind, rule_id=rule_id, enabled=enabled)
    await push_rules.edit_push_rules(request.services, request.requester.user_id, edit)
    return {}


async def get_push_rule_actions(request: Request) -> object:
    """GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions.

    Spec: client-server-api#get_matrixclientv3pushrulesglobalkindruleidactions
    """
    return {"actions": (await _rule(request))["actions"]}


async def set_push_rule_actions(request: Request) -> object:
    """PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions.

    Spec: client-server-api#put_matrixclientv3pushrulesglobalkindruleidactions
    """
    kind, rule_id = request.path["kind"], request.path["ruleId"]
    actions = await _required(request, "actions")
    edit = partial(push_rule_edits.set_actions, kind=kind, rule_id=rule_id, actions=actions)
    await push_rules.edit_push_rules(request.services, request.requester.user_id, edit)
    return {}


async def _rule(request: Request) -> dict[str, object]:
    return await push_rules.get_push_rule(
        request.services, request.requester.user_id, request.path["kind"], request.path["ruleId"]
    )


async def _required(request: Request, name: str) -> object:
    body = await request.json_object()
    if name not in body:
        raise MissingParam(f"{name} is missing.")
    return body[name]
