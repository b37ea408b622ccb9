"""What must hold before a server starts: its configuration, files and database.

Little is imported here: a process that only watches over workers needs no more than this.
"""

from __future__ import annotations

import functools
import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from minihs.base.config import Config, ConfigError, parse_address, refuse, without_password
from minihs.protocol.identifiers import parse_server_name
from minihs.protocol.room_versions import ROOM_VERSIONS
from minihs.remote.authorities import trust_own_authorities
from minihs.services import own_keys
from minihs.services.appservices.registration import load_registrations
from minihs.storage import facts, inspection
from minihs.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

POSTGRES_SCHEMES = ("postgresql", "postgres")


def check_config(config: Config) -> None:
    """Check what the types of the options cannot say.

    Raises:
        ConfigError: an option cannot be used.
    """
    refuse(_faults(config))


def _faults(config: Config) -> Iterator[str]:
    if parse_server_name(config.server_name) is None:
        yield f"server_name {config.server_name!r} is not a server name"
    if config.default_room_version not in ROOM_VERSIONS:
        yield f"default_room_version {config.default_room_version!r} is not known"
    for notary in config.notaries:
        if parse_server_name(notary) is None:
            yield f"trusted_key_servers: {notary!r} is not a server name"
    yield from _faults_of_database_url(config.database_url)
    if config.public_base_url and not _is_base_url(config.public_base_url):
        yield f"public_base_url {config.public_base_url!r} is not http(s)://…"
    yield from _faults_of_listeners(config)
    for option in ("federation_ca_file", "tls_cert", "tls_key"):
        if path := getattr(config, option):
            yield from _faults_of_file(option, path)
    try:
        load_registrations(config.registration_files, config.server_name)
    except ConfigError as error:
        yield str(error)


def check_files(config: Config) -> None:
    """Check what is in the files that a server reads at its start: keys and certificates.

    Raises:
        ConfigError: one of them cannot be used.
    """
    refuse(_faults_in_files(config))


def _faults_in_files(config: Config) -> Iterator[str]:
    trust = functools.partial(trust_own_authorities, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    readers: list[Callable[[Config], object]] = [trust]
    if config.federation_listen:
        readers.append(server_tls)
    for read in (*readers, own_keys.find_signing_key, own_keys.read_retired_keys):
        try:
            read(config)
        except ConfigError as error:
            yield str(error)


def _faults_of_database_url(database_url: str) -> Iterator[str]:
    shown = without_password(database_url)  # An error may quote a part of the password.
    if database_url and database_url.partition("://")[0] not in POSTGRES_SCHEMES:
        yield f"database_url {shown!r} is not postgresql://…"
        return
    try:
        parts = urlsplit(database_url)
        if "," not in parts.netloc:  # Else there are several hosts, each with its port.
            _ = parts.port
    except ValueError:
        yield (
            f"database_url {shown!r} has no such host, or a port that is no number "
            "(a password has %2F, %3A, %40, %3F and %23 for / : @ ? #)"
        )


def _faults_of_listeners(config: Config) -> Iterator[str]:
    if config.federation_listen and not (config.tls_cert and config.tls_key):
        yield "federation_listen needs tls_cert and tls_key"
    addresses = {"listen": config.listen}
    if config.federation_listen:
        addresses["federation_listen"] = config.federation_listen
    for option, address in addresses.items():
        try:
            parse_address(address)
        except ConfigError as error:
            yield f"{option}: {error}"


def _is_base_url(text: str) -> bool:
    """Return whether a client can append a path to it."""
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and not url.query
    except ValueError:  # Brackets that do not match.
        return False


def _faults_of_file(option: str, path: str) -> Iterator[str]:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        yield f"{option} {path} cannot be read: {error.strerror}"


async def check_database(config: Config, dsn: str, processes: int) -> bool:
    """Return whether there are users; warn about a database that may forget, or is too small.

    Raises:
        ConfigError: it is not ours, or the configuration cannot be used with it.
    """
    db = await Database.connect(dsn, connections=1)
    try:
        unsafe = await check_open_database(db, config)
        has_users = await inspection.has_users(db)
        connections_max = await inspection.count_connections(db)
    finally:
        await db.close()
    if unsafe:
        logger.warning(
            "PostgreSQL runs with %s: A CRASH CAN LOSE WHAT USERS WERE TOLD IS SENT. "
            "Only for tests; see `minihs doctor`.",
            ", ".join(unsafe),
        )
    needed = processes * (config.database_connections + inspection.SPARE_CONNECTIONS)
    if needed > connections_max:
        logger.warning(
            "%d processes use up to %d connections, and PostgreSQL takes %d: raise its "
            "max_connections, or lower database_connections or --workers",
            processes, needed, connections_max,
        )  # fmt: skip
    return has_users


async def check_open_database(db: Database, config: Config) -> list[str]:
    """Refuse a database that is not ours; return settings under which it may forget."""
    unsafe = await inspection.check_usable(db)
    await facts.check_server_name(db, config.server_name)
    if not config.signing_key_file.exists() and await inspection.has_events(db):
        raise ConfigError(
            f"the signing key {config.signing_key_file} is missing, but there are events that it "
            "signed: restore it from a backup. If it is lost for good: minihs new-signing-key"
        )
    return unsafe


def server_tls(config: Config) -> ssl.SSLContext:
    """Return what the TLS listener shows of us.

    Raises:
        ConfigError: its files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except OSError as error:  # An SSLError is one.
        files = f"tls_cert {config.tls_cert} and tls_key {config.tls_key}"
        raise ConfigError(f"{files} cannot be used: {error}") from error
    return context
