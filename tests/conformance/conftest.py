"""The stories are told on the same stage as those of several servers."""

from __future__ import annotations

from tests.federation.conftest import alice, clock, evil, federation, hs1, room, version

__all__ = ["alice", "clock", "evil", "federation", "hs1", "room", "version"]
