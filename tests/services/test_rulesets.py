"""The push rules that a process knows follow the stream, also where it skips a part of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.services.rooms import notifications
from minihs.storage import account_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from minihs.storage.database import Queries
    from tests.helpers.homeserver import Homeserver


async def test_rules_that_changed_in_a_part_that_was_skipped_are_read_again(
    homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
):
    """They were being read when the process fell behind."""
    alice = await homeserver.register("alice")
    services = homeserver.services
    rulesets = notifications.Rulesets(services.db)
    real, reads = account_data.list_of_type, 0

    async def list_of_type(queries: Queries, users: Sequence[str], kind: str) -> dict[str, str]:
        nonlocal reads
        found = await real(queries, users, kind)
        reads += 1
        if reads == 1:
            rule = {"actions": [], "pattern": "tea"}
            await alice.call("PUT", "/pushrules/global/content/tea", rule)
            rulesets.reset()
        return found

    monkeypatch.setattr(account_data, "list_of_type", list_of_type)

    custom = await rulesets.custom({alice.user_id: None})

    assert [user_id for user_id, _ in custom] == [alice.user_id]
