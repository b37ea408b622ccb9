"""The configuration: read from a file and the environment, and refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from minihs.base.config import (
    ConfigError,
    describe_options,
    find_config_file,
    load_config,
    parse_address,
    without_password,
)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "minihs.toml"
    path.write_text('server_name = "one"\nregistration = "token"\n')
    config = load_config(path, {"MINIHS_SERVER_NAME": "two"})
    assert (config.server_name, config.registration) == ("two", "token")


def test_the_file_of_this_directory_is_used_where_no_other_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config_file(None, {}) is None
    (tmp_path / "minihs.toml").touch()
    assert find_config_file(None, {}) == Path("minihs.toml")
    assert find_config_file(None, {"MINIHS_CONFIG": ""}) is None
    assert find_config_file(None, {"MINIHS_CONFIG": "b.toml"}) == Path("b.toml")
    assert find_config_file("a.toml", {"MINIHS_CONFIG": "b.toml"}) == Path("a.toml")


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:pw@host/d", "postgresql://u:(secret)@host/d"),
        (
            "postgresql://u@/d?host=/run&password=pw",
            "postgresql://u@/d?host=/run&password=(secret)",
        ),
        ("postgresql://u@host/d", "postgresql://u@host/d"),
    ],
)
def test_passwords_of_databases_are_not_shown(dsn: str, shown: str) -> None:
    assert without_password(dsn) == shown


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("registration", "closed or token or open"),
        ("rate_limits", "on or off"),
        ("log_level", "debug or info or warning or error"),
    ],
)
def test_a_choice_that_there_is_not_names_those_that_there_are(
    option: str, choices: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as from_environment:
        load_config(None, {f"MINIHS_{option.upper()}": "maybe"})
    assert str(from_environment.value) == f"{option} must be {choices}, not 'maybe'"
    path = tmp_path / "minihs.toml"
    path.write_text(f"{option} = true\n")
    with pytest.raises(ConfigError) as from_file:
        load_config(path, {})
    assert str(from_file.value) == f"{path}: {option} must be {choices}, not True"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('inspector = "yes"', "minihs.toml: inspector must be true or false, not 'yes'"),
        ("listen = 8008", "minihs.toml: listen must be a text in quotes"),
        ("listen_on = 1", "minihs.toml: listen_on is no option of minihs"),
        (
            "database_connections = 2",
            "minihs.toml: database_connections must be int from 4 to 200, not 2",
        ),
        ("listen =", "minihs.toml"),
        ("sticky_events_per_user_max = -1", "sticky_events_per_user_max must be int from 0 on"),
        ('server_name = "\u00e9.example"', "minihs.toml"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "minihs.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=said):
        load_config(path, {})


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    with pytest.raises(ConfigError) as refused:
        load_config(path, {})
    assert str(refused.value) == f"{path} cannot be read: No such file or directory"


def test_numbers_are_described_with_their_bounds() -> None:
    kinds = {name: kind for name, kind, _, _ in describe_options()}
    assert kinds["database_connections"] == "int from 4 to 200"
    assert kinds["forgotten_room_retention_seconds"] == "int from 0 on"
    assert [name for name, kind in kinds.items() if kind == "int"] == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MINIHS_INSPECTOR", "yes", "MINIHS_INSPECTOR must be true or false, not 'yes'"),
        ("MINIHS_DATABASE_CONNECTIONS", "many", "must be a number, not 'many'"),
    ],
)
def test_variables_are_texts_of_what_they_stand_for(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(None, {variable: value})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8008", ("127.0.0.1", 8008)),
        ("[::1]:8448", ("::1", 8448)),
        (":65535", ("", 65_535)),
        *((text, None) for text in ("", "8008", "host:", "host:x", "host:65536", "host:²")),
    ],
)
def test_addresses(text: str, address: tuple[str, int] | None) -> None:
    if address is not None:
        assert parse_address(text) == address
        return
    with pytest.raises(ConfigError, match="host:port"):
        parse_address(text)
