"""Which versions of the specification this server speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.protocol import unstable

if TYPE_CHECKING:
    from minihs.api.requests import Request

SPEC_VERSIONS = [
    "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9",
    "v1.10", "v1.11", "v1.12", "v1.13", "v1.14", "v1.15", "v1.16",
]  # fmt: skip

UNSTABLE_FEATURES = {
    unstable.FLAG_BATCH_REDACTION: True,
    unstable.FLAG_DELAYED_EVENTS: True,
    unstable.FLAG_DELAYED_EVENTS_LIST: True,
    unstable.FLAG_DELAYED_EVENTS_STABLE: True,
    unstable.FLAG_REDACTION_BY_SEND: True,
    unstable.FLAG_SLIDING_SYNC: True,
    unstable.FLAG_STICKY_EVENTS: True,
}


async def get_versions(request: Request) -> object:
    """GET /_matrix/client/versions.

    Spec: client-server-api#get_matrixclientversions
    """
    del request
    return {"versions": SPEC_VERSIONS, "unstable_features": UNSTABLE_FEATURES}
