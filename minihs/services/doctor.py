"""`minihs doctor`: is everything as the server needs it, and if not, what to do?

Every check is a function that returns findings. Nothing is changed: the database is only read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from minihs.base.config import ConfigError, parse_address
from minihs.services import own_keys
from minihs.storage import inspection
from minihs.storage.migrate import HEAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minihs.base.config import Config
    from minihs.storage.inspection import DatabaseFacts

CLOCK_DIFFERENCE_MS_MAX = 5_000
EARLIEST_MS = 1_735_689_600_000  # 2025: no clock that is right shows less.
DISK_BYTES_LOW, DISK_BYTES_MIN = 2 * 1024**3, 200 * 1024**2
CERTIFICATE_LEFT_MS_LOW = 14 * 86_400_000
X509_V_FLAG_NO_CHECK_TIME = 0x200000  # OpenSSL's; the module ssl has no name for it.

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `fix` says what to do where it is not as it should be."""

    level: Level
    subject: str
    message: str
    fix: str = ""


async def examine(config: Config, dsn: str | None, now_ms: int) -> list[Finding]:
    """Return everything there is to say about a configuration and its database, if there is one."""
    findings = [
        *check_clock(now_ms),
        *check_disk(config),
        *check_listeners(config),
        *check_certificate(config, now_ms),
        *check_exposure(config),
    ]
    if dsn is None:
        message = f"there is none in {config.data_dir} yet; the first start makes it"
        findings.append(Finding("ok", "database", message))
        return [*findings, *check_signing_key(config, has_events=False)]
    try:
        facts = await inspection.examine(dsn)
    except Exception as error:  # Whatever it is: the database cannot be used.
        findings.append(
            Finding(
                "error",
                "database",
                f"it cannot be reached: {error}",
                "is PostgreSQL running, and does database_url name it, a user and a database?",
            )
        )
        return [*findings, *check_signing_key(config, has_events=False)]
    findings += check_signing_key(config, has_events=facts.has_events)
    findings += check_database(config, facts)
    findings += check_durability(facts)
    findings += check_clock_of_database(now_ms, facts)
    return findings


def check_signing_key(config: Config, *, has_events: bool) -> list[Finding]:
    """Is the key there, readable, and nobody else's?"""
    path, subject = config.signing_key_file, "signing key"
    try:
        key = own_keys.find_signing_key(config)
    except ConfigError as error:
        fix = "restore it from a backup, readable for the user that minihs runs as"
        return [Finding("error", subject, str(error).removeprefix(f"{subject} "), fix)]
    if key is None:
        if has_events:
            return [
                Finding(
                    "error",
                    subject,
                    f"{path} is missing, but there are events that it signed",
                    "restore it from a backup; if it is lost for good: minihs new-signing-key",
                )
            ]
        return [Finding("ok", subject, f"{path} will be made at the first start")]
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = f"{path} can be read by others, who could speak in the server's name"
        return [Finding("warning", subject, message, f"chmod 600 {path}")]
    return [Finding("ok", subject, f"{path} holds {key.key_id}")]


def check_disk(config: Config) -> list[Finding]:
    """Is there room, and may we write?"""
    path = Path(config.data_dir).absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        fix = "make data_dir a directory of the user that minihs runs as"
        return [Finding("error", "disk", f"{path} cannot be written to", fix)]
    free = shutil.disk_usage(path).free
    message = f"{free / 1024**3:.1f} GiB free at {path}"
    if free < DISK_BYTES_MIN:
        return [Finding("error", "disk", message, "make room: a full disk stops every write")]
    if free < DISK_BYTES_LOW:
        return [Finding("warning", "disk", message, "make room before it is needed")]
    return [Finding("ok", "disk", message)]


def check_listeners(config: Config) -> list[Finding]:
    """Can the addresses be listened on?"""
    findings: list[Finding] = []
    for option, address in (
        ("listen", config.listen),
        ("federation_listen", config.federation_listen),
    ):
        if not address:
            continue
        host, port = parse_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                message = f"{option} {address}: {error.strerror}"
                fix = "fine if that is minihs itself; else stop the other program or change it"
                findings.append(Finding("warning", "listener", message, fix))
            else:
                findings.append(Finding("ok", "listener", f"{option} {address} is free"))
    return findings


def check_certificate(config: Config, now_ms: int) -> list[Finding]:
    """Is the certificate usable, in date, for our name, and one that others can trust?"""
    if not config.federation_listen:
        return []
    subject, path = "certificate", config.tls_cert
    try:
        certificate = _presented_certificate(config)
    except (OSError, ssl.SSLError) as error:
        message = f"tls_cert and tls_key cannot be used: {error}"
        fix = "both must be PEM files that belong together, readable for minihs"
        return [Finding("error", subject, message, fix)]
    findings: list[Finding] = []
    end = str(certificate["notAfter"])
    left_ms = int(ssl.cert_time_to_seconds(end)) * 1000 - now_ms
    if left_ms <= 0:
        fix = "renew it, and restart minihs: no other server talks to this one"
        findings.append(Finding("error", subject, f"{path} has expired: {end}", fix))
    elif left_ms < CERTIFICATE_LEFT_MS_LOW:
        fix = "renew it, and restart minihs"
        findings.append(Finding("warning", subject, f"{path} expires soon: {end}", fix))
    host = (config.well_known_server or config.server_name).partition("]")[0].lstrip("[")
    host = host if host.count(":") > 1 else host.partition(":")[0]
    try:
        _presented_certificate(config, host)
    except ssl.SSLCertVerificationError:
        fix = "get one with that name, unless /.well-known/matrix/server names another host"
        findings.append(Finding("warning", subject, f"{path} is not for {host}", fix))
    if certificate["subject"] == certificate["issuer"]:
        fix = "get one of an authority that other servers trust, such as Let's Encrypt"
        findings.append(Finding("warning", subject, f"{path} is signed by itself", fix))
    return findings or [Finding("ok", subject, f"{path} is for {host}, until {end}")]


def _presented_certificate(config: Config, host: str | None = None) -> Mapping[str, object]:
    """Return what `SSLSocket.getpeercert` tells a client of our listener, whatever the date is.

    The client trusts the very certificate. With a `host` it also wants that name.

    Raises:
        OSError: the files cannot be used; an `SSLCertVerificationError`: it has not that name.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(config.tls_cert, config.tls_key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = host is not None
    client.load_verify_locations(config.tls_cert)
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | X509_V_FLAG_NO_CHECK_TIME
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(back, there, server_hostname=host)
    callee = server.wrap_bio(there, back, server_side=True)
    for side in (caller, callee, caller):  # Hello; hello and certificate; it is verified.
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return caller.getpeercert() or {}


def check_exposure(config: Config) -> list[Finding]:
    """Is something open that should not be open to the internet?"""
    findings: list[Finding] = []
    if not config.federation_verify_tls:
        message = "federation_verify_tls is false: anybody in between can speak for other servers"
        fix = "set it to true, outside of test networks"
        findings.append(Finding("warning", "federation", message, fix))
    host, _ = parse_address(config.listen)
    if config.registration == "open" and (config.public_base_url or not _is_loopback(host)):
        message = "registration is open: anybody who reaches this server can register"
        fix = 'registration = "token", and minihs registration-token'
        findings.append(Finding("warning", "registration", message, fix))
    return findings


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_clock(now_ms: int) -> list[Finding]:
    """Is it later than the day when this was written?"""
    if now_ms < EARLIEST_MS:
        return [Finding("error", "clock", "the clock is years behind", "let NTP set it")]
    return [Finding("ok", "clock", "the clock can be right")]


def check_clock_of_database(now_ms: int, facts: DatabaseFacts) -> list[Finding]:
    """Do the two machines agree, if they are two?"""
    difference_ms = abs(facts.now_ms - now_ms)
    if difference_ms > CLOCK_DIFFERENCE_MS_MAX:
        message = f"the database's clock differs by {difference_ms / 1000:.0f} s"
        return [Finding("warning", "clock", message, "let NTP set both")]
    return []


def check_database(config: Config, facts: DatabaseFacts) -> list[Finding]:
    """Is it a PostgreSQL that we know, with an encoding, a schema and a name that fit?"""
    major = facts.postgres_major
    tested = f"{inspection.POSTGRES_MIN} to {inspection.POSTGRES_TESTED_MAX}"
    findings: list[Finding] = []
    if major < inspection.POSTGRES_MIN:
        fix = f"minihs is written for {tested}"
        findings.append(Finding("error", "database", f"it is PostgreSQL {major}", fix))
    elif major > inspection.POSTGRES_TESTED_MAX:
        fix = f"minihs was tested with {tested}"
        findings.append(Finding("warning", "database", f"it is PostgreSQL {major}", fix))
    else:
        findings.append(Finding("ok", "database", f"PostgreSQL {major} answers"))
    if facts.settings["server_encoding"] != "UTF8":
        message = f"the encoding is {facts.settings['server_encoding']}"
        fix = "make it anew: CREATE DATABASE … TEMPLATE template0 ENCODING UTF8 LOCALE 'C'"
        findings.append(Finding("error", "database", message, fix))
    if facts.collation not in ("C", "POSIX"):
        message = f"the collation is {facts.collation}: indexes depend on the C library's version"
        fix = "better made with LOCALE 'C'; else REINDEX whenever the C library is upgraded"
        findings.append(Finding("warning", "database", message, fix))
    needed = config.database_connections + inspection.SPARE_CONNECTIONS
    if int(facts.settings["max_connections"]) < needed:
        message = f"max_connections is {facts.settings['max_connections']}; a process uses {needed}"
        fix = "raise max_connections, or lower database_connections"
        findings.append(Finding("error", "database", message, fix))
    return [*findings, *_check_schema(config, facts)]


def _check_schema(config: Config, facts: DatabaseFacts) -> list[Finding]:
    if facts.revision is None:
        message = "it is empty; the first start makes the tables"
        return [Finding("ok", "schema", message)]
    if facts.revision > HEAD:
        message = f"it is {facts.revision}, this minihs knows {HEAD}"
        return [Finding("error", "schema", message, "run the newer minihs that made it")]
    if facts.revision < HEAD:
        message = f"it is {facts.revision}, this minihs needs {HEAD}"
        fix = "minihs migrate, or just start; make a dump before"
        return [Finding("warning", "schema", message, fix)]
    if facts.server_name not in (None, config.server_name):
        message = f"the database belongs to {facts.server_name}, not to {config.server_name}"
        fix = "a server's name can never change: use that name, or another database"
        return [Finding("error", "server name", message, fix)]
    return [Finding("ok", "schema", f"it is the newest, {HEAD}")]


def check_durability(facts: DatabaseFacts) -> list[Finding]:
    """Does PostgreSQL keep what it has acknowledged, whatever happens?"""
    findings = [
        Finding(
            "error",
            "durability",
            f"{setting}: a crash can lose what users were told is sent, or the whole database",
            "remove the line from postgresql.conf and reload PostgreSQL",
        )
        for setting in facts.unsafe_settings
    ]
    if facts.settings.get("data_checksums") == "off":
        fix = "stop PostgreSQL, run pg_checksums --enable, start it"
        message = "data_checksums are off: a rotting disk is not noticed"
        findings.append(Finding("warning", "durability", message, fix))
    return findings or [Finding("ok", "durability", "what is acknowledged is on disk")]
