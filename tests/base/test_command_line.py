"""Commands where there is nothing yet, or where something is in the way: one line, no traceback."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
import tomllib
from typing import TYPE_CHECKING

import asyncpg
import msgspec
import pytest

from minihs import __version__
from minihs.__main__ import main
from minihs.base.config import Config, ConfigError, StartError
from minihs.base.randomness import Randomness
from minihs.processes import listen_sockets
from minihs.protocol.signatures import generate_signing_key, write_signing_key
from minihs.services.own_keys import load_signing_key
from minihs.storage.database import connect_when_ready

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = "postgresql://u:pw@127.0.0.1:1/none"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty directory, without a variable of ours, and with a password to read."""
    monkeypatch.chdir(tmp_path)
    for name in filter(lambda name: name.startswith("MINIHS_"), list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse"))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"minihs {__version__}\n"


@pytest.mark.parametrize(
    "command", [["register-user", "alice", "--password-stdin"], ["registration-token"]]
)
def test_where_no_server_was_started_nobody_is_registered(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "minihs.toml").write_text('data_dir = "elsewhere"')
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "there is no server here yet: start it first (minihs run)" in said
    assert f"data_dir is {tmp_path / 'elsewhere'}, settings are from minihs.toml" in said
    assert main(["--config", "", *command]) == 1
    said = capsys.readouterr().err
    assert f"data_dir is {tmp_path / 'data'}, no settings file is used" in said
    assert [path.name for path in tmp_path.iterdir()] == ["minihs.toml"]


async def test_an_empty_database_is_nobodys_server(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = await asyncpg.connect(database_url)
    await admin.execute("DROP DATABASE IF EXISTS never_begun")
    await admin.execute("CREATE DATABASE never_begun TEMPLATE template0")
    try:
        name = await admin.fetchval("SELECT current_database()")
        empty = database_url.replace(f"/{name}?", "/never_begun?")
        monkeypatch.setenv("MINIHS_DATABASE_URL", empty)
        status = await asyncio.to_thread(main, ["registration-token"])
        assert (status, "no server here yet" in capsys.readouterr().err) == (1, True)
        connection = await asyncpg.connect(empty)
        assert await connection.fetchval("SELECT to_regclass('alembic_version')") is None
        await connection.close()
    finally:
        await admin.execute("DROP DATABASE never_begun WITH (FORCE)")
        await admin.close()


def test_the_doctor_makes_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    assert "there is none in data yet; the first start makes it" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_an_address_in_use_is_named_with_its_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartError) as refused:
            listen_sockets(Config(listen=taken))
    assert str(refused.value) == f"listen {taken} is in use; set listen or MINIHS_LISTEN"


def test_a_database_out_of_reach_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINIHS_DATABASE_URL", NOWHERE)
    assert main(["registration-token"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("minihs: the database postgresql://u:(secret)@127.0.0.1:1/none cannot")
    assert len(said.splitlines()) == 1


async def test_a_database_that_is_waited_for_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(StartError, match="cannot be reached"):
        await connect_when_ready(NOWHERE, within_s=1)
    told = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert len(told) == 1
    assert "waiting for the database postgresql://u:(secret)@127.0.0.1:1/none: [Errno" in told[0]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("listen", "8008", "listen: '8008' is not host:port"),
        ("database_url", "mysql://u:pw@host/d", "database_url 'mysql://u:(secret)@host/d' is not"),
        ("public_base_url", "matrix.example.org", "public_base_url 'matrix.example.org' is not"),
        ("public_base_url", "https://[::1", "public_base_url 'https://[::1' is not"),
        ("federation_ca_file", "no.pem", "federation_ca_file no.pem cannot be read: No such file"),
        ("tls_cert", "no.pem", "tls_cert no.pem cannot be read: No such file"),
        ("tls_key", "no.pem", "tls_key no.pem cannot be read: No such file"),
    ],
)
@pytest.mark.parametrize("command", ["check-config", "run"])
def test_what_cannot_be_used_is_named_before_anything_is_started(
    command: str, option: str, value: str, said: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "minihs.toml").write_text(f'{option} = "{value}"')
    assert main([command]) == 2
    assert capsys.readouterr().err.startswith(f"minihs: {said}")
    assert [path.name for path in tmp_path.iterdir()] == ["minihs.toml"]


def test_all_that_cannot_be_used_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "minihs.toml"
    file.write_text('listen = "8008"\nserver_name = "no name"\ndatabase_url = "postgresql://[/d"')
    assert main(["check-config"]) == 2
    assert [line[:24] for line in capsys.readouterr().err.splitlines()] == [
        "minihs: server_name 'no ", "minihs: database_url 'po", "minihs: listen: '8008' i",
    ]  # fmt: skip
    file.write_text('listen = 8008\ninspector = "yes"\nlisten_on = "8008"')
    monkeypatch.setenv("MINIHS_DATABASE_CONNECTIONS", "many")
    monkeypatch.setenv("MINIHS_PASSWORD_HASH_ITERATIONS", "0")
    assert main(["check-config"]) == 2
    said = capsys.readouterr().err.splitlines()
    options = ("listen", "inspector", "listen_on", "iterations", "CONNECTIONS")
    assert len(said) == len(options)
    assert all(option in line for option, line in zip(options, said, strict=True))
    file.unlink()
    for name in ("DATABASE_CONNECTIONS", "PASSWORD_HASH_ITERATIONS"):
        monkeypatch.delenv(f"MINIHS_{name}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "signing.key").write_text("junk")
    (tmp_path / "data" / "signing.key.retired").write_text("junk")
    assert main(["check-config"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_what_is_printed_can_be_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config"]) == 0
    assert msgspec.convert(tomllib.loads(capsys.readouterr().out), Config) == Config()


async def test_who_reads_no_further_ends_a_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "minihs", "check-config",
        stdout=writer, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")


SIGNING_KEY = write_signing_key(generate_signing_key(b"k" * 32)).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it holds no signing key"),
        (b"junk\n", "it holds no signing key"),
        (b"ed25519 a_1 ????\n", "it holds no signing key"),
        (b"ed25519 a_1 YWJj\n", "it holds no signing key"),
        (b"ed25519 a_1 A\n", "it holds no signing key"),
        (b"rsa a_1 " + SIGNING_KEY.split()[2], "it holds no signing key"),
        (b"\xff\xfe", "it is not text"),
        (None, "Is a directory"),
    ],
)
@pytest.mark.parametrize(
    "command", [["check-config"], ["run"], ["run", "--workers", "2"], ["doctor"]]
)
def test_a_signing_key_that_is_none_is_told_in_a_sentence(
    command: list[str], content: bytes | None, reason: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "key"
    path.mkdir() if content is None else path.write_bytes(content)
    monkeypatch.setenv("MINIHS_SIGNING_KEY_PATH", str(path))
    status = main(command)
    said = capsys.readouterr()
    if command == ["doctor"]:
        assert status == 1
        assert f"error    signing key: {path} cannot be used: {reason}" in said.out
    else:
        assert status == 2
        assert said.err.startswith(f"minihs: signing key {path} cannot be used: {reason}")
        assert len(said.err.splitlines()) == 1
    assert [found.name for found in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"federation_ca_file": "junk.pem"}, "federation_ca_file junk.pem cannot be used"),
        (
            {
                "tls_cert": "junk.pem", "tls_key": "junk.pem",
                "federation_listen": "127.0.0.1:0", "listen": "127.0.0.1:0",
            },
            "tls_cert junk.pem and tls_key junk.pem cannot be used",
        ),
        ({"data_dir": "retired"}, "retired/signing.key.retired: 'junk' is not algorithm"),
    ],
    ids=["authorities", "certificate", "retired key"],
)  # fmt: skip
@pytest.mark.parametrize("command", [["check-config"], ["run"], ["run", "--workers", "2"]])
def test_files_that_cannot_be_used_are_told_before_anything_is_started(
    command: list[str], options: dict[str, str], said: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "junk.pem").write_text("junk")
    (tmp_path / "retired").mkdir()
    (tmp_path / "retired" / "signing.key.retired").write_text("junk")
    lines = [f'{option} = "{value}"' for option, value in options.items()]
    (tmp_path / "minihs.toml").write_text("\n".join(lines))
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"minihs: {said}")
    assert {path.name for path in tmp_path.iterdir()} == {"junk.pem", "minihs.toml", "retired"}


def test_a_signing_key_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    key = tmp_path / "file" / "key"
    with pytest.raises(ConfigError, match=f"signing key {key} cannot be made: "):
        load_signing_key(Config(signing_key_path=str(key)), Randomness())


def test_a_variable_that_is_no_option_is_a_fault_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-config"]) == 0
    monkeypatch.setenv("MINIHS_SERVERNAME", "example.org")
    capsys.readouterr()
    assert main(["check-config"]) == 2
    assert capsys.readouterr().err == "minihs: MINIHS_SERVERNAME is no option of minihs\n"


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", f"--workers={number}"])
    assert ended.value.code == 2
    told = f"argument --workers: must be a number from 1 on, not '{number}'\n"
    assert capsys.readouterr().err.endswith(told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("days", ["nan", "-inf", "soon"])
def test_a_number_of_days_that_is_none_is_refused(
    days: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["registration-token", f"--days={days}"])
    assert ended.value.code == 2
    told = f"argument --days: must be a number of days, not '{days}'\n"
    assert capsys.readouterr().err.endswith(told)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_password_that_is_not_utf_8_registers_nobody(
    errors: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\xffsecret\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["register-user", "alice", "--password-stdin"]) == 2
    assert capsys.readouterr().err == "minihs: the password is not UTF-8\n"


def test_who_types_no_password_registers_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", end)
    assert main(["register-user", "alice"]) == 1
    assert capsys.readouterr().err == "minihs: no password was typed; nobody is registered\n"
