"""Every answer that a test of the API gets is held against the specification's schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers import openapi
from tests.helpers.homeserver import CLIENT, Homeserver, Response

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@pytest.fixture(autouse=True)
def answers_follow_the_schemas(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Fail a test at its end when an answer broke its schema (where the schemas are at hand).

    A test marked `shapes_events` asks for events of another shape than the schemas'.
    """
    faults: list[str] = []
    original = Homeserver.request

    async def checked(
        self: Homeserver,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        response = await original(self, method, path, body, query, headers)
        full = path if path.startswith(("/_", "/.well-known")) else CLIENT + path
        faults.extend(openapi.faults(method, full, response))
        return response

    if openapi.available():
        monkeypatch.setattr(Homeserver, "request", checked)
    yield
    if request.node.get_closest_marker("shapes_events") is not None:
        return
    assert faults == []
