"""The keys of this server, in files: the one it signs with, and those it signed with before.

The signing key is in signedjson's format, in a file that nobody else reads. Beside it, in a file
whose name ends in `.retired`, is a line for each key that has been replaced: algorithm, version,
public key, and when it was replaced (ms). Those are published, as old events must stay verifiable.

Spec: server-server-api#publishing-keys
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from minihs.base.config import ConfigError
from minihs.protocol.identifiers import ServerName
from minihs.protocol.server_keys import VerifyKey, is_key_id
from minihs.protocol.signatures import (
    decode_verify_key,
    generate_signing_key,
    read_signing_key,
    write_signing_key,
)

if TYPE_CHECKING:
    from pathlib import Path

    from minihs.base.config import Config
    from minihs.base.randomness import Randomness
    from minihs.protocol.signatures import SigningKey

SEED_BYTES: Final = 32


def load_signing_key(config: Config, randomness: Randomness) -> SigningKey:
    """Return the server's signing key; make it when there is none.

    Raises:
        ConfigError: it cannot be used, or cannot be made.
    """
    path = config.signing_key_file
    if (key := find_signing_key(config)) is not None:
        return key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _write_new_key(path, randomness)
        # The first of several processes wins; the others read its key.
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
        partial.unlink()
    except OSError as error:
        raise ConfigError(f"signing key {path} cannot be made: {error.strerror}") from error
    return _read_key(path)


def find_signing_key(config: Config) -> SigningKey | None:
    """Return the server's signing key, or None where there is none yet.

    Raises:
        ConfigError: there is something in its place that cannot be used.
    """
    path = config.signing_key_file
    try:
        there = path.exists()
    except OSError as error:  # A directory on the way that is closed to us.
        raise ConfigError(f"signing key {path} cannot be used: {error.strerror}") from error
    return _read_key(path) if there else None


def _read_key(path: Path) -> SigningKey:
    try:
        return read_signing_key(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"signing key {path} cannot be used: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"signing key {path} cannot be used: it is not text") from error
    except ValueError as error:
        raise ConfigError(f"signing key {path} cannot be used: {error}") from error


def read_retired_keys(config: Config) -> tuple[VerifyKey, ...]:
    """Return the keys that the server signed with until they were replaced.

    Raises:
        ConfigError: a line of the file is not understood.
    """
    path = _retired_file(config)
    if not path.exists():
        return ()
    keys: dict[str, VerifyKey] = {}
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        match line.split():
            case [algorithm, version, public, expired] if expired.isdecimal():
                key_id, key = f"{algorithm}:{version}", decode_verify_key(public)
            case _:
                key_id, key, expired = "", None, "0"
        if key is None or not is_key_id(key_id):
            raise ConfigError(f"{path}: {line!r} is not algorithm, version, public key, time in ms")
        name = ServerName(config.server_name)
        keys[key_id] = VerifyKey(name, key_id, key, int(expired), is_old=True)
    return tuple(keys.values())


def replace_signing_key(config: Config, randomness: Randomness, now_ms: int) -> SigningKey:
    """Make a new signing key in the place of the present one, which is retired; return it.

    Whatever happens meanwhile, no key is lost: the old one is written down before.
    """
    path, old = config.signing_key_file, load_signing_key(config, randomness)
    algorithm, _, version = old.key_id.partition(":")
    with _retired_file(config).open("a") as file:
        file.write(f"{algorithm} {version} {old.public_key_base64} {now_ms}\n")
        file.flush()
        os.fsync(file.fileno())
    _write_new_key(path, randomness).replace(path)
    return _read_key(path)


def _retired_file(config: Config) -> Path:
    path = config.signing_key_file
    return path.with_name(f"{path.name}.retired")


def _write_new_key(path: Path, randomness: Randomness) -> Path:
    """Write a new key beside the place where it belongs, for this user's eyes; return where."""
    partial = path.with_suffix(f".{os.getpid()}.new")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(write_signing_key(generate_signing_key(randomness.bytes(SEED_BYTES))))
        file.flush()
        os.fsync(file.fileno())
    return partial
