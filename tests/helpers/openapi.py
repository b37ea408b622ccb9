"""The specification's schemas, held against what the server asks and answers.

The schemas are reference material beside the checkout (`../shared/openapi`), not part of it; where
they are absent nothing is checked, and `available` says so.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jsonschema_rs
import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

Side = Literal["client", "federation"]

DIRECTORY = Path(__file__).parents[2].parent / "shared" / "openapi"
# Where minihs sends null for a string that is not there, and why: see
# `minihs.services.rooms.state_reading.joined_members`.
NULLS = re.compile(r"/joined_members: null is not of type \"string\" at .*_(name|url)'\]$")


def available() -> bool:
    """Return whether the schemas are there."""
    return DIRECTORY.is_dir()


def answer_faults(side: Side, method: str, path: str, status: int, body: object) -> list[str]:
    """Return how an answer differs from the schema of its endpoint; nothing for other endpoints."""
    endpoint = _endpoint(side, method, path)
    if endpoint is None or _is_delayed(body):
        return []
    answer = endpoint["responses"].get(str(status))
    if answer is None:
        if status < 400:
            return [f"{method} {path}: status {status} is not the specification's"]
        schema = _bundle(side)["error"]
    else:
        schema = answer["content"].get("application/json")
    return list(_faults(schema, body, f"answer {status} to {method} {path}"))


def request_faults(side: Side, method: str, path: str, body: object) -> list[str]:
    """Return how the body of a request differs from the schema of its endpoint."""
    endpoint = _endpoint(side, method, path)
    if endpoint is None:
        return [f"{method} {path} is not in the specification"]
    schema = (endpoint["request"] or {}).get("content", {}).get("application/json")
    return list(_faults(schema, body, f"{method} {path}"))


def _is_delayed(body: object) -> bool:
    """Return whether an answer to `/send` or `/state` names what is to be sent later (MSC4140)."""
    return isinstance(body, dict) and "delay_id" in body


def _faults(schema: dict | None, body: object, what: str) -> Iterator[str]:
    if schema is None:
        return
    for error in _validator(orjson.dumps(schema)).iter_errors(body):
        fault = f"{what}: {error.message} at {error.instance_path}"
        # GET /state/{type}/{key}?format=event: a whole event is an object, too.
        if "valid under more than one" not in fault and NULLS.search(fault) is None:
            yield fault


@functools.cache
def _bundle(side: Side) -> dict:
    return orjson.loads((DIRECTORY / f"openapi-{side}.json").read_bytes())


@functools.cache
def _patterns(side: Side) -> list[tuple[re.Pattern[str], dict]]:
    # The more literal a path is, the sooner it is tried.
    order = sorted(
        _bundle(side)["endpoints"], key=lambda e: (e["path"].count("{"), -len(e["path"]))
    )
    return [(re.compile(endpoint["pattern"]), endpoint) for endpoint in order]


def _endpoint(side: Side, method: str, path: str) -> dict | None:
    for candidate in (path, path + "/"):
        for pattern, endpoint in _patterns(side):
            if endpoint["method"] == method and pattern.match(candidate):
                return endpoint
    return None


@functools.cache
def _validator(schema: bytes) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(orjson.loads(schema))
