"""Put the schema's history into the wheel as `minihs/_migrations`.

In a checkout (an editable install) it is read from `migrations/`, so nothing is copied there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from typing import Any


class MigrationsHook(BuildHookInterface):  # type: ignore[misc]  # hatchling is there only at build time
    """Called by hatchling for each wheel it builds."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the directory to every wheel but an editable one."""
        if version != "editable":
            build_data["force_include"]["migrations"] = "minihs/_migrations"
