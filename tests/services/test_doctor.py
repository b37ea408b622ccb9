"""`minihs doctor`: each thing that can be wrong is found, and told with its fix."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trustme

from minihs import checks
from minihs.base.config import Config
from minihs.protocol.signatures import generate_signing_key, write_signing_key
from minihs.services import doctor
from minihs.storage import inspection
from minihs.storage.inspection import DatabaseFacts
from minihs.storage.migrate import HEAD

if TYPE_CHECKING:
    from pathlib import Path

NOW_MS = 1_800_000_000_000
GOOD = DatabaseFacts(
    settings={
        "fsync": "on", "full_page_writes": "on", "synchronous_commit": "on",
        "data_checksums": "on", "server_encoding": "UTF8", "server_version_num": "180006",
        "max_connections": "100",
    },
    collation="C",
    now_ms=NOW_MS,
    revision=HEAD,
    server_name="hs1",
    has_events=True,
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration with a key."""
    (tmp_path / "signing.key").write_text(write_signing_key(generate_signing_key(b"x" * 32)))
    (tmp_path / "signing.key").chmod(0o600)
    return Config(server_name="hs1", data_dir=str(tmp_path), listen="127.0.0.1:0")


def levels(findings: list[doctor.Finding]) -> list[tuple[str, str]]:
    """Return level and subject of what is not as it should be; each must say what to do."""
    bad = [found for found in findings if found.level != "ok"]
    assert all(found.fix for found in bad)
    return [(found.level, found.subject) for found in bad]


def test_a_good_installation_has_nothing_to_fix(config: Config, monkeypatch: pytest.MonkeyPatch):
    roomy = type("Usage", (), {"free": 1024**4})
    monkeypatch.setattr("shutil.disk_usage", lambda _path: roomy)
    findings = [
        *doctor.check_clock(NOW_MS),
        *doctor.check_disk(config),
        *doctor.check_listeners(config),
        *doctor.check_signing_key(config, has_events=True),
        *doctor.check_database(config, GOOD),
        *doctor.check_durability(GOOD),
        *doctor.check_clock_of_database(NOW_MS, GOOD),
    ]
    assert levels(findings) == []
    assert {found.subject for found in findings} == {
        "clock", "disk", "listener", "signing key", "database", "schema", "durability"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("fsync", "off", ("error", "durability")),
        ("full_page_writes", "off", ("error", "durability")),
        ("synchronous_commit", "off", ("error", "durability")),
        ("data_checksums", "off", ("warning", "durability")),
        ("server_encoding", "LATIN1", ("error", "database")),
        ("server_version_num", "140011", ("error", "database")),
        ("server_version_num", "190000", ("warning", "database")),
        ("max_connections", "10", ("error", "database")),
    ],
)
def test_settings_of_postgresql(
    config: Config, setting: str, value: str, expected: tuple[str, str]
):
    facts = replace(GOOD, settings=GOOD.settings | {setting: value})
    findings = [*doctor.check_database(config, facts), *doctor.check_durability(facts)]
    assert levels(findings) == [expected]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(GOOD, collation="en_US.UTF-8"), [("warning", "database")]),
        (replace(GOOD, revision="9999"), [("error", "schema")]),
        (replace(GOOD, revision="0000"), [("warning", "schema")]),
        (replace(GOOD, revision=None, server_name=None), []),
        (replace(GOOD, server_name="other"), [("error", "server name")]),
    ],
    ids=["collation", "newer", "older", "empty", "name"],
)
def test_the_database_itself(config: Config, facts: DatabaseFacts, expected: list[tuple[str, str]]):
    assert levels(doctor.check_database(config, facts)) == expected


def test_clocks():
    assert levels(doctor.check_clock(0)) == [("error", "clock")]
    ahead = replace(GOOD, now_ms=NOW_MS + 60_000)
    assert levels(doctor.check_clock_of_database(NOW_MS, ahead)) == [("warning", "clock")]


def test_the_signing_key(config: Config):
    config.signing_key_file.chmod(0o644)
    assert levels(doctor.check_signing_key(config, has_events=True)) == [("warning", "signing key")]
    config.signing_key_file.write_text("rubbish")
    findings = doctor.check_signing_key(config, has_events=True)
    assert levels(findings) == [("error", "signing key")]
    said = f"{config.signing_key_file} cannot be used: it holds no signing key (ed25519, version, "
    assert findings[0].message.startswith(said)
    config.signing_key_file.unlink()
    assert levels(doctor.check_signing_key(config, has_events=True)) == [("error", "signing key")]
    assert levels(doctor.check_signing_key(config, has_events=False)) == []


def test_an_address_in_use_and_a_certificate_that_is_none(tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        config = Config(
            listen=address, federation_listen="127.0.0.1:0", tls_cert=str(tmp_path / "none"),
            tls_key=str(tmp_path / "none"),
        )  # fmt: skip
        assert levels(doctor.check_listeners(config)) == [("warning", "listener")]
        assert levels(doctor.check_certificate(config, NOW_MS)) == [("error", "certificate")]


def with_certificate(directory: Path, key: bytes, chain: bytes, **options: str) -> Config:
    """Return a configuration with a TLS listener."""
    (directory / "tls.key").write_bytes(key)
    (directory / "tls.crt").write_bytes(chain)
    return Config(
        federation_listen="127.0.0.1:0", tls_cert=str(directory / "tls.crt"),
        tls_key=str(directory / "tls.key"), **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "days_left", "expected"),
    [
        ({"server_name": "hs1.test"}, 15, []),
        ({"server_name": "hs1.test:8448"}, 15, []),
        ({"server_name": "[2001:db8::1]:8448"}, 15, []),
        ({"server_name": "192.0.2.1"}, 15, []),
        ({"server_name": "hs1.test"}, 13, ["warning"]),
        ({"server_name": "hs1.test"}, -1, ["error"]),
        ({"server_name": "hs1.test"}, -9_000, ["error"]),  # By the clock of this machine, too.
        ({"server_name": "test"}, 15, ["warning"]),
        ({"server_name": "test", "well_known_server": "hs1.test:443"}, 15, []),
        ({"server_name": "[2001:db8::2]"}, -1, ["error", "warning"]),
    ],
)
def test_certificates(options: dict[str, str], days_left: int, expected: list[str], tmp_path: Path):
    end = datetime.fromtimestamp(NOW_MS // 1000, UTC) + timedelta(days=days_left)
    leaf = trustme.CA().issue_cert("hs1.test", "2001:db8::1", "192.0.2.1", not_after=end)
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    config = with_certificate(tmp_path, leaf.private_key_pem.bytes(), chain, **options)
    findings = doctor.check_certificate(config, NOW_MS)
    assert levels(findings) == [(level, "certificate") for level in expected]
    assert len(findings) == max(1, len(expected))


def test_a_certificate_that_is_signed_by_itself(tmp_path: Path):
    authority = trustme.CA()
    key, chain = authority.private_key_pem.bytes(), authority.cert_pem.bytes()
    config = with_certificate(tmp_path, key, chain, server_name="hs1.test")
    said = [found.message for found in doctor.check_certificate(config, NOW_MS)]
    assert said[-1].endswith("tls.crt is signed by itself")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(federation_verify_tls=False), ["federation"]),
        (Config(registration="open"), []),
        (Config(registration="open", listen="localhost:8008"), []),
        (Config(registration="open", listen="[::1]:8008"), []),
        (Config(registration="open", listen=":8008"), ["registration"]),
        (Config(registration="open", listen="0.0.0.0:8008"), ["registration"]),
        (Config(registration="open", public_base_url="https://hs1.test"), ["registration"]),
        (Config(registration="token", listen="0.0.0.0:8008"), []),
    ],
)
def test_what_is_open_to_the_internet(config: Config, expected: list[str]):
    assert levels(doctor.check_exposure(config)) == [("warning", name) for name in expected]


def test_a_disk_that_is_nearly_full(config: Config, monkeypatch: pytest.MonkeyPatch):
    for free, expected in ((1024**2, "error"), (1024**3, "warning")):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda _path, usage=usage: usage)
        assert levels(doctor.check_disk(config)) == [(expected, "disk")]


async def test_a_database_out_of_reach(config: Config):
    findings = await doctor.examine(config, "postgresql://nobody@127.0.0.1:1/none", NOW_MS)
    assert levels(findings) == [("error", "database")]


async def test_the_database_is_read_as_it_is(config: Config, database_url: str):
    facts = await inspection.examine(database_url)
    assert (facts.revision, facts.server_name, facts.has_events) == (HEAD, None, False)
    assert facts.unsafe_settings == [
        "fsync = off", "full_page_writes = off", "synchronous_commit = off"
    ]  # fmt: skip
    findings = await doctor.examine(config, database_url, facts.now_ms)
    assert ("error", "durability") in levels(findings)


async def test_more_processes_than_the_database_takes_are_warned_about(
    config: Config, database_url: str, caplog: pytest.LogCaptureFixture
):
    await checks.check_database(config, database_url, 1)
    assert "connections" not in caplog.text
    await checks.check_database(config, database_url, 1000)
    assert "1000 processes use up to 15000 connections, and PostgreSQL takes " in caplog.text
