"""Registration files of application services: what each service is, and which names are its.

A file is read once, when the server starts; one that cannot be used keeps the server from starting,
with a message that says where it is wrong.

Spec: application-service-api#registration
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from minihs.base.config import ConfigError
from minihs.protocol.identifiers import (
    IDENTIFIER_BYTES_MAX,
    UserId,
    parse_user_id,
    server_name_of,
)
from minihs.protocol.unstable import (
    APPSERVICE_PUSH_EPHEMERAL,
    APPSERVICE_PUSH_EPHEMERAL_OLDER,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

REGEX_CHARS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Namespace:
    """Some names; `exclusive`: nobody else may make them. They begin as the pattern says."""

    pattern: re.Pattern[str]
    exclusive: bool


@dataclass(frozen=True, slots=True, repr=False)  # no repr: tokens belong in no log
class Registration:
    """One application service. `url` is None when it wants to hear nothing."""

    id: str
    url: str | None
    as_token: str
    hs_token: str
    sender: UserId
    users: tuple[Namespace, ...] = ()
    rooms: tuple[Namespace, ...] = ()
    aliases: tuple[Namespace, ...] = ()
    rate_limited: bool = True
    protocols: tuple[str, ...] = ()
    receive_ephemeral: bool = False

    def has_user(self, user_id: str) -> bool:
        """Return whether a user is one of the service's: only users of this server can be."""
        if server_name_of(user_id) != server_name_of(self.sender):
            return False
        return user_id == self.sender or _is_in(self.users, user_id)

    def has_room(self, room_id: str) -> bool:
        """Return whether the service wants everything that happens in a room."""
        return _is_in(self.rooms, room_id)

    def has_alias(self, alias: str) -> bool:
        """Return whether an alias is in one of the service's namespaces."""
        return _is_in(self.aliases, alias)

    def owns_user(self, user_id: str) -> bool:
        """Return whether nobody but the service may make this user of this server."""
        return user_id == self.sender or _is_in(self.users, user_id, exclusively=True)

    def owns_alias(self, alias: str) -> bool:
        """Return whether nobody but the service may make this alias."""
        return _is_in(self.aliases, alias, exclusively=True)


def _is_in(namespaces: Iterable[Namespace], name: str, *, exclusively: bool = False) -> bool:
    return any(
        namespace.pattern.match(name) is not None
        for namespace in namespaces
        if namespace.exclusive or not exclusively
    )


# --- reading files -------------------------------------------------------------------------------


class _Namespace(msgspec.Struct):
    regex: str
    exclusive: bool


class _Namespaces(msgspec.Struct):
    users: list[_Namespace] | None = None
    rooms: list[_Namespace] | None = None
    aliases: list[_Namespace] | None = None


class _File(msgspec.Struct, kw_only=True):
    """A registration file; keys that are not known are left alone."""

    id: str
    url: str | None
    as_token: str
    hs_token: str
    sender_localpart: str
    namespaces: _Namespaces
    rate_limited: bool | None = None
    protocols: list[str] | None = None
    receive_ephemeral: bool | None = None
    push_ephemeral: bool | None = msgspec.field(
        name=APPSERVICE_PUSH_EPHEMERAL.unstable, default=None
    )
    push_ephemeral_older: bool | None = msgspec.field(
        name=APPSERVICE_PUSH_EPHEMERAL_OLDER, default=None
    )


def load_registrations(paths: Iterable[Path], server_name: str) -> tuple[Registration, ...]:
    """Return the application services that files register with a server.

    Raises:
        ConfigError: a file cannot be read, is no registration, or two of them exclude each other;
            the message says which, and why.
    """
    found: list[Registration] = []
    for path in paths:
        service = _load(path, server_name)
        for other in found:
            if service.id == other.id:
                raise ConfigError(f"{path}: another application service has the id {service.id!r}")
            if service.as_token == other.as_token:
                raise ConfigError(f"{path}: {other.id!r} has the same as_token")
        found.append(service)
    return tuple(found)


def _load(path: Path, server_name: str) -> Registration:
    try:
        file = msgspec.yaml.decode(path.read_bytes(), type=_File)
        return _registration(file, server_name)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise ConfigError(f"application service {path} {reason}") from error
    except (msgspec.DecodeError, ConfigError) as error:
        raise ConfigError(f"application service {path}: {error}") from error


def _registration(file: _File, server_name: str) -> Registration:
    for name in ("id", "as_token", "hs_token"):
        if not getattr(file, name):
            raise ConfigError(f"{name} is empty")
    if "\0" in file.id or len(file.id.encode()) > IDENTIFIER_BYTES_MAX:
        raise ConfigError("id is too long, or has a NUL in it")
    for name in ("as_token", "hs_token"):
        token = getattr(file, name)
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(f"{name} has characters that no HTTP header takes")
    sender = parse_user_id(f"@{file.sender_localpart}:{server_name}")
    if sender is None or not file.sender_localpart:
        raise ConfigError(f"sender_localpart {file.sender_localpart!r} makes no user id")
    ephemeral = (file.receive_ephemeral, file.push_ephemeral, file.push_ephemeral_older)
    spaces = file.namespaces
    return Registration(
        id=file.id,
        url=_base_url(file.url),
        as_token=file.as_token,
        hs_token=file.hs_token,
        sender=sender,
        users=_namespaces("users", spaces.users),
        rooms=_namespaces("rooms", spaces.rooms),
        aliases=_namespaces("aliases", spaces.aliases),
        rate_limited=file.rate_limited is not False,
        protocols=tuple(file.protocols or ()),
        receive_ephemeral=next((flag for flag in ephemeral if flag is not None), False),
    )


def _base_url(url: str | None) -> str | None:
    """Return what the paths of requests are added to; None for a service that is sent nothing."""
    if not url:
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable, parts = False, urlsplit("")
    if not usable or parts.query or parts.fragment:
        raise ConfigError(f"url {url!r} is not an http or https URL, or has a query")
    return url.rstrip("/")


def _namespaces(kind: str, listed: list[_Namespace] | None) -> tuple[Namespace, ...]:
    found = []
    for number, namespace in enumerate(listed or ()):
        where = f"namespaces.{kind}[{number}].regex"
        if len(namespace.regex) > REGEX_CHARS_MAX:
            raise ConfigError(f"{where} is longer than {REGEX_CHARS_MAX} characters")
        try:
            pattern = re.compile(namespace.regex)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"{where} {namespace.regex!r}: {error}") from error
        found.append(Namespace(pattern, namespace.exclusive))
    return tuple(found)
