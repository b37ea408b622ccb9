"""The specification's schemas, held against what the server answers.

The schemas are reference material beside the checkout (`../shared/openapi`), not part of it; where
they are absent nothing is checked, and `available` says so.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema_rs
import orjson

if TYPE_CHECKING:
    from tests.helpers.homeserver import Response

BUNDLE = Path(__file__).parents[2].parent / "shared" / "openapi" / "openapi-client.json"


def available() -> bool:
    """Return whether the schemas are there."""
    return BUNDLE.exists()


def faults(method: str, path: str, response: Response) -> list[str]:
    """Return how an answer differs from the schema of its endpoint; nothing for other endpoints."""
    endpoint = _endpoint(method, path)
    if endpoint is None:
        return []
    answer = endpoint["responses"].get(str(response.status))
    if answer is None:
        if response.status < 400:
            return [f"{method} {path}: status {response.status} is not the specification's"]
        schema = _bundle()["error"]
    else:
        schema = answer["content"].get("application/json")
    if schema is None:
        return []
    return [
        f"{method} {path} {response.status}: {error.message} at {error.instance_path}"
        for error in _validator(orjson.dumps(schema)).iter_errors(response.json)
        # GET /state/{type}/{key}?format=event: a whole event is an object, too.
        if "valid under more than one" not in error.message
    ]


@functools.cache
def _bundle() -> dict:
    return orjson.loads(BUNDLE.read_bytes())


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], dict]]:
    # The more literal a path is, the sooner it is tried.
    order = sorted(_bundle()["endpoints"], key=lambda e: (e["path"].count("{"), -len(e["path"])))
    return [(re.compile(endpoint["pattern"]), endpoint) for endpoint in order]


def _endpoint(method: str, path: str) -> dict | None:
    for candidate in (path, path + "/"):
        for pattern, endpoint in _patterns():
            if endpoint["method"] == method and pattern.match(candidate):
                return endpoint
    return None


@functools.cache
def _validator(schema: bytes) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(orjson.loads(schema))
