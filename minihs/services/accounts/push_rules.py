"""A user's push rules: read, edited, and stored as account data of type `m.push_rules`.

Stored is only what the user changed (`protocol.push_rule_edits`); clients are always shown whole
rulesets. Spec: client-server-api#push-rules-api
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.errors import MatrixError
from minihs.protocol import push_rule_edits
from minihs.protocol.push_rule_edits import PushRuleError
from minihs.services.accounts import account_data

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from minihs.protocol.identifiers import UserId
    from minihs.services.context import Services
    from minihs.storage.database import Queries

    Edit = Callable[[Mapping[str, object]], dict[str, object]]


async def get_push_rules(services: Services, user_id: UserId) -> dict[str, object]:
    """Return all rules: `{"global": ruleset}`, the content of `m.push_rules` for clients."""
    return push_rule_edits.rules_json(await _stored(services.db, user_id), user_id)


async def get_push_rule(
    services: Services, user_id: UserId, kind: str, rule_id: str
) -> dict[str, object]:
    """Return one rule.

    Raises:
        MatrixError: M_NOT_FOUND.
    """
    try:
        return push_rule_edits.rule_json(
            await _stored(services.db, user_id), kind, rule_id, user_id
        )
    except PushRuleError as error:
        raise _answer(error) from None


async def edit_push_rules(services: Services, user_id: UserId, edit: Edit) -> None:
    """Let a function of `push_rule_edits` change the stored rules; clients are told by /sync.

    Raises:
        MatrixError: what the edit objects to.
    """
    async with account_data.changing(services, user_id) as tx:
        stored = await _stored(tx, user_id)
        try:
            edited = edit(stored)
        except PushRuleError as error:
            raise _answer(error) from None
        if edited != stored:
            await account_data.write_account_data(
                services, user_id, "", account_data.PUSH_RULES, edited
            )


async def _stored(queries: Queries, user_id: UserId) -> dict[str, object]:
    found = await account_data.find_account_data(queries, user_id, "", account_data.PUSH_RULES)
    return found or {}


def _answer(error: PushRuleError) -> MatrixError:
    return MatrixError(error.message, status=error.status, errcode=error.errcode)
