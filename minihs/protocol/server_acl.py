"""Server ACLs: which servers a room listens to.

The content of `m.room.server_acl` is compiled once per event and then asked for every request of
every server. Most entries of a long list are plain names or begin with `*.`, so those are looked
up; only the others are matched one by one, in linear time: a list of 50,000 names costs a few
look-ups per question.

Spec: client-server-api#server-access-control-lists-acls-for-rooms
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minihs.protocol.globs import Glob, compile_glob

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_PORT = re.compile(r":[0-9]{1,5}\Z")


@dataclass(frozen=True, slots=True)
class _Names:
    """A list of globs, prepared for asking."""

    exact: frozenset[str]
    suffixes: frozenset[str]
    """What follows the `*` of entries like `*.example.org`: a dot, and labels."""
    globs: tuple[Glob, ...] = field(repr=False)
    everything: bool

    @staticmethod
    def of(entries: Iterable[str]) -> _Names:
        exact, suffixes, globs = set(), set(), []
        everything = False
        for entry in {entry.lower() for entry in entries}:
            rest = entry.lstrip("*")
            if entry and not rest:
                everything = True
            elif "*" not in entry and "?" not in entry:
                exact.add(entry)
            elif entry.startswith("*.") and "*" not in rest and "?" not in rest:
                suffixes.add(rest)
            else:
                globs.append(compile_glob(entry))
        return _Names(frozenset(exact), frozenset(suffixes), tuple(globs), everything)

    def has(self, name: str) -> bool:
        if self.everything or name in self.exact:
            return True
        if self.suffixes:
            dot = name.find(".")
            while dot >= 0:
                if name[dot:] in self.suffixes:
                    return True
                dot = name.find(".", dot + 1)
        return any(glob.matches(name) for glob in self.globs)


@dataclass(frozen=True, slots=True)
class ServerAcl:
    """A compiled `m.room.server_acl`; keep it as long as the event stays the same."""

    allow: _Names
    deny: _Names
    allow_ip_literals: bool

    def allows(self, server_name: str) -> bool:
        """Return whether the room listens to a server. Its port does not matter, nor does case.

        Spec: client-server-api#mroomserver_acl
        """
        host = host_of(server_name)
        if not self.allow_ip_literals and is_ip_literal(host):
            return False
        return not self.deny.has(host) and self.allow.has(host)


def compile_server_acl(content: Mapping[str, object]) -> ServerAcl:
    """Return the compiled ACL of a content.

    Entries that are no strings are left out, and a list that is no list is empty: an ACL without
    anything to allow closes the room to everyone. `allow_ip_literals` is true unless it is false.

    Spec: client-server-api#mroomserver_acl
    """
    return ServerAcl(
        allow=_Names.of(_strings(content.get("allow"))),
        deny=_Names.of(_strings(content.get("deny"))),
        allow_ip_literals=content.get("allow_ip_literals") is not False,
    )


def _strings(value: object) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def host_of(server_name: str) -> str:
    """Return a server name without its port, in lower case. An IPv6 literal keeps its brackets.

    Spec: appendices#server-name
    """
    return _PORT.sub("", server_name).lower()


def is_ip_literal(host: str) -> bool:
    """Return whether a host is an IPv4 or a bracketed IPv6 address and not a name.

    Spec: appendices#server-name
    """
    return host.startswith("[") or _IPV4.fullmatch(host) is not None
