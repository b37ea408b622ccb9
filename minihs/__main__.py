"""The command line: `minihs run`, `migrate`, `register-user`, `doctor` and others; see `--help`."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import gzip
import json
import math
import os
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from minihs import __version__
from minihs.base import logs
from minihs.base.clock import SystemClock
from minihs.base.config import (
    Config,
    ConfigError,
    StartError,
    find_config_file,
    load_config,
    without_password,
)
from minihs.base.tasks import TaskOwner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

DAY_MS = 86_400_000
DATABASE_WAIT_S = 30
PASSWORD_LENGTH_SAFE = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    parser = argparse.ArgumentParser(prog="minihs", description="A Matrix homeserver.")
    parser.add_argument("--version", action="version", version=f"minihs {__version__}")
    parser.add_argument(
        "--config", help="configuration file (default: $MINIHS_CONFIG, or minihs.toml if there)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the server")
    run.add_argument("--workers", type=_count, default=1, help="processes to share the work")
    commands.add_parser("migrate", help="bring the database to the newest schema")
    register = commands.add_parser("register-user", help="create an account")
    register.add_argument("username", help="the part between @ and :")
    register.add_argument("--admin", action="store_true", help="make a server administrator")
    register.add_argument("--password-stdin", action="store_true", help="read the password there")
    token = commands.add_parser("registration-token", help="make a token that lets people register")
    token.add_argument("token", nargs="?", help="the token (default: a random one)")
    token.add_argument("--uses", type=int, default=1, help="how often it serves; 0: without end")
    token.add_argument("--days", type=_days, help="for how long (default: for ever)")
    commands.add_parser("check-config", help="check and print the configuration")
    commands.add_parser("doctor", help="check what the server depends on")
    new_key = commands.add_parser("new-signing-key", help="make a key, where the old one is lost")
    new_key.add_argument(
        "--replace", action="store_true", help="retire the present key, if it is to be used no more"
    )
    dag = commands.add_parser("dag", help="replay room DAG files and print the verdicts as JSON")
    dag.add_argument("files", nargs="+", type=Path, metavar="FILE")
    dag.add_argument("--explain", metavar="EVENT_ID", help="explain how a merge was resolved")
    options = parser.parse_args(arguments)
    if options.command == "dag":
        return _dag(options.files, options.explain)
    options.config = find_config_file(options.config, os.environ)
    try:
        config = load_config(options.config, os.environ)
        return _COMMANDS[options.command](config, options)
    except ConfigError as error:
        for fault in str(error).splitlines():
            print(f"minihs: {fault}", file=sys.stderr)  # noqa: T201
        return 2
    except StartError as error:
        print(f"minihs: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130


def _print(text: str) -> None:
    """Print a line, unless whoever read what is printed has stopped."""
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _count(text: str) -> int:
    """Return a number of processes; argparse says it where an `ArgumentTypeError` is raised."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, not {text!r}")
    return int(text)


def _days(text: str) -> float:
    """Return a number of days, which may be a fraction; see `_count`."""
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not math.isfinite(days):
        raise argparse.ArgumentTypeError(f"must be a number of days, not {text!r}")
    return days


def _dag(paths: Sequence[Path], explain_event: str | None) -> int:
    """Print about files; return the exit status: 1 if answers differ, 2 for faulty files."""
    from minihs.protocol import dag  # noqa: PLC0415

    try:
        output, agrees = dag.run({str(path): _read_dag(path) for path in paths}, explain_event)
    except ValueError as error:
        print(f"minihs dag: {error}", file=sys.stderr)  # noqa: T201
        return 2
    _print(output)
    return 0 if agrees else 1


def _read_dag(path: Path) -> bytes:
    """Return what is in a file, which may be compressed.

    Raises:
        ValueError: it cannot be read; the message names it.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:  # A `BadGzipFile` is an OSError without errno.
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _with_database(
    config: Config,
    work: Callable[[str], Awaitable[int]],
    *,
    migrated: bool = True,
    wait_s: int = 0,
    refusal_of_empty: StartError | None = None,
) -> int:
    """Run `work` with the DSN of the database, migrated; start the embedded one if need be.

    A database that does not answer is waited for that long; one without tables may be refused.
    """
    from minihs.checks import check_config  # noqa: PLC0415
    from minihs.storage import migrate  # noqa: PLC0415

    check_config(config)
    if migrated:
        _make_data_dir(Path(config.data_dir))

    async def run() -> int:
        dsn, embedded = config.database_url, None
        tasks = TaskOwner(SystemClock())
        if not dsn:
            from minihs.storage.embedded import start_embedded  # noqa: PLC0415

            embedded = await start_embedded(Path(config.data_dir))
            dsn = embedded.dsn
            tasks.keep("embedded-postgres", embedded.watch)
        try:
            if migrated:
                revision = await migrate.read_revision(dsn, wait_s)
                if revision is None and refusal_of_empty is not None:
                    raise refusal_of_empty
                if not migrate.is_current(revision):
                    await asyncio.to_thread(migrate.upgrade, dsn)
            return await work(dsn)
        finally:
            await tasks.close()
            if embedded is not None:
                await embedded.stop()

    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.run(run())
    return uvloop.run(run())


def _make_data_dir(path: Path) -> None:
    """Make the data directory if it is not there.

    Raises:
        StartError: it cannot be made, or not be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"data_dir {path} cannot be made: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StartError(f"data_dir {path} cannot be written to")


def _with_server(
    config: Config, options: argparse.Namespace, work: Callable[[str], Awaitable[int]]
) -> int:
    """Run `work` with the DSN of a server's database, once there is one.

    Raises:
        StartError: the server was never started here; whoever asks may mean another one.
    """
    from minihs.storage.embedded import has_cluster  # noqa: PLC0415

    where = f"data_dir is {Path(config.data_dir).absolute()}"
    if config.database_url:
        where = f"database_url is {without_password(config.database_url)}"
    file = f"settings are from {options.config}" if options.config else "no settings file is used"
    nothing = StartError(
        f"there is no server here yet: start it first (minihs run). {where}, {file}"
    )

    if not config.database_url and not has_cluster(Path(config.data_dir)):
        raise nothing
    return _with_database(config, work, refusal_of_empty=nothing)


def _run(config: Config, options: argparse.Namespace) -> int:
    from minihs.checks import check_config, check_files  # noqa: PLC0415
    from minihs.processes import run_server  # noqa: PLC0415

    logs.configure(config.log_level)
    check_config(config)
    check_files(config)
    return _with_database(
        config, lambda dsn: run_server(config, dsn, options.workers), wait_s=DATABASE_WAIT_S
    )


def _migrate(config: Config, _options: argparse.Namespace) -> int:
    async def nothing(_dsn: str) -> int:
        return 0

    return _with_database(config, nothing, wait_s=DATABASE_WAIT_S)


def _register_user(config: Config, options: argparse.Namespace) -> int:
    from minihs.app import build_services  # noqa: PLC0415
    from minihs.base.errors import MatrixError  # noqa: PLC0415
    from minihs.services.accounts import registration  # noqa: PLC0415

    if options.password_stdin:
        password = _password_of_stdin()
    elif not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask for the password: use --password-stdin")
    else:
        try:
            password = getpass.getpass("Password: ")
            again = getpass.getpass("Again: ")
        except EOFError as error:
            raise StartError("no password was typed; nobody is registered") from error
        if password != again:
            raise ConfigError("the passwords differ")

    async def register(dsn: str) -> int:
        async with build_services(config, dsn) as services:
            try:
                user_id = await registration.register_account(
                    services, options.username, password, admin=options.admin
                )
            except MatrixError as error:
                raise ConfigError(error.message) from error
        if options.username.lower() != options.username:
            print("minihs: names of users are in lower case", file=sys.stderr)  # noqa: T201
        if len(password) < PASSWORD_LENGTH_SAFE:
            print(  # noqa: T201
                f"minihs: the password has fewer than {PASSWORD_LENGTH_SAFE} characters and is "
                "soon guessed: change it",
                file=sys.stderr,
            )
        _print(f"{user_id} can log in now.")
        return 0

    return _with_server(config, options, register)


def _password_of_stdin() -> str:
    """Return the first line; whatever system wrote it, its end is no part of the password.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        password = sys.stdin.readline().rstrip("\r\n")
        password.encode()  # Some locales let bytes through that are no characters.
    except UnicodeError as error:
        raise ConfigError("the password is not UTF-8") from error
    return password


def _registration_token(config: Config, options: argparse.Namespace) -> int:
    from minihs.app import build_services  # noqa: PLC0415
    from minihs.base.errors import MatrixError  # noqa: PLC0415
    from minihs.services.accounts import registration_tokens  # noqa: PLC0415

    async def make(dsn: str) -> int:
        async with build_services(config, dsn) as services:
            end_ms = None
            if options.days is not None:
                end_ms = services.clock.now_ms() + int(options.days * DAY_MS)
            try:
                made = await registration_tokens.make_token(
                    services,
                    options.token,
                    uses_allowed=options.uses or None,
                    expires_ms=end_ms,
                )
            except MatrixError as error:
                raise ConfigError(error.message) from error
        _print(made.token)
        if config.registration != "token":
            print(  # noqa: T201
                f"minihs: it serves once registration is 'token'; it is {config.registration!r}",
                file=sys.stderr,
            )
        return 0

    return _with_server(config, options, make)


def _check_config(config: Config, _options: argparse.Namespace) -> int:
    from minihs.base.config import describe_options, unknown_variables  # noqa: PLC0415
    from minihs.checks import check_config, check_files  # noqa: PLC0415

    check_config(config)
    check_files(config)
    for name, _, default, _ in describe_options():
        value = getattr(config, name)
        shown = "(secret)" if "secret" in name and value else value
        if name == "database_url":
            shown = without_password(config.database_url)
        shown = json.dumps(shown, ensure_ascii=False)  # As TOML writes it, too.
        _print(f"{name} = {shown}" + ("" if value != default else "  # default"))
    unknown = unknown_variables(os.environ)
    for variable in unknown:
        print(f"minihs: {variable} is no option of minihs", file=sys.stderr)  # noqa: T201
    return 2 if unknown else 0


def _doctor(config: Config, _options: argparse.Namespace) -> int:
    from minihs.base.clock import SystemClock  # noqa: PLC0415
    from minihs.checks import check_config  # noqa: PLC0415
    from minihs.services import doctor  # noqa: PLC0415
    from minihs.storage.embedded import has_cluster  # noqa: PLC0415

    check_config(config)

    async def examine(dsn: str | None) -> int:
        findings = await doctor.examine(config, dsn, SystemClock().now_ms())
        for found in findings:
            _print(f"{found.level:7}  {found.subject}: {found.message}")
            if found.fix:
                _print(f"         fix: {found.fix}")
        return 1 if any(found.level == "error" for found in findings) else 0

    if not config.database_url and not has_cluster(Path(config.data_dir)):
        return asyncio.run(examine(None))
    return _with_database(config, examine, migrated=False)


def _new_signing_key(config: Config, options: argparse.Namespace) -> int:
    from minihs.base.clock import SystemClock  # noqa: PLC0415
    from minihs.base.randomness import Randomness  # noqa: PLC0415
    from minihs.services import own_keys  # noqa: PLC0415

    path = config.signing_key_file
    if options.replace:
        key = own_keys.replace_signing_key(config, Randomness(), SystemClock().now_ms())
        _print("The old key is retired; restart the server to sign with the new one.")
    elif path.exists():
        raise ConfigError(f"{path} is there; it is never overwritten (--replace retires that key)")
    else:
        key = own_keys.load_signing_key(config, Randomness())
    _print(f"{path} holds the new key {key.key_id}.")
    return 0


_COMMANDS = {
    "run": _run,
    "migrate": _migrate,
    "register-user": _register_user,
    "registration-token": _registration_token,
    "check-config": _check_config,
    "doctor": _doctor,
    "new-signing-key": _new_signing_key,
}

if __name__ == "__main__":
    sys.exit(main())
