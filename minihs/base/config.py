"""The server's configuration: one frozen value, read from `minihs.toml` and the environment.

Every option is a field of `Config`. Its name in the file is the field's name; in the environment it
is `MINIHS_` and the name in capitals (`MINIHS_SERVER_NAME`). The environment wins over the file.
`docs/configuration.md` is generated from the descriptions here.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ENVIRONMENT_PREFIX = "MINIHS_"
PORT_MAX = 65_535
DEFAULT_FILE = Path("minihs.toml")


class ConfigError(Exception):
    """The configuration cannot be used; the message says which option, and why: a line each."""


class StartError(Exception):
    """What the server needs is not to be had now; the message says what, and why."""


def _option(description: str) -> Meta:
    return Meta(description=description)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All options with their defaults."""

    server_name: Annotated[
        str, _option("The name in user ids and room aliases. It can never be changed.")
    ] = "localhost"
    database_url: Annotated[
        str,
        _option(
            "PostgreSQL DSN (`postgresql://user@host/database`). Empty: an embedded PostgreSQL "
            "in `data_dir` is started."
        ),
    ] = ""
    data_dir: Annotated[str, _option("Where the keys and the embedded database live.")] = "data"
    listen: Annotated[
        str, _option("`host:port` of the plain HTTP listener: client and federation API.")
    ] = "127.0.0.1:8008"
    federation_listen: Annotated[
        str, _option("`host:port` of the TLS listener for federation. Empty: none.")
    ] = ""
    tls_cert: Annotated[str, _option("PEM certificate chain of the TLS listener.")] = ""
    tls_key: Annotated[str, _option("PEM private key of the TLS listener.")] = ""
    public_base_url: Annotated[
        str,
        _option(
            "What clients should use as base URL (`https://matrix.example.org`); it is told in "
            "`/.well-known/matrix/client` and in login answers. Empty: not told."
        ),
    ] = ""
    well_known_server: Annotated[
        str,
        _option("`host:port` told in `/.well-known/matrix/server`. Empty: not served."),
    ] = ""
    support_contact: Annotated[
        str,
        _option(
            "A Matrix id or an email address for `/.well-known/matrix/support`. Empty: not served."
        ),
    ] = ""
    signing_key_path: Annotated[
        str,
        _option("Signing key in signedjson's format. Empty: `signing.key` in `data_dir`."),
    ] = ""
    federation_ca_file: Annotated[
        str, _option("PEM file of further certificate authorities to trust in federation.")
    ] = ""
    federation_verify_tls: Annotated[
        bool, _option("Verify certificates of other servers. Switch off in test networks only.")
    ] = True
    federation_allow_private_addresses: Annotated[
        bool, _option("Let federation connect to loopback and private addresses.")
    ] = False
    trusted_key_servers: Annotated[
        str,
        _option(
            "Servers, separated by commas, to ask for the keys of servers that do not answer. They "
            "are believed."
        ),
    ] = ""
    federation_max_backoff_seconds: Annotated[
        int, Meta(ge=1, description="The longest pause between attempts to reach a server.")
    ] = 86_400
    registration: Annotated[
        Literal["closed", "token", "open"],
        _option(
            "Who may register: nobody, holders of a registration token, or everybody. `open` on a "
            "public server invites spam."
        ),
    ] = "closed"
    registration_shared_secret: Annotated[
        str, _option("Secret of `/_synapse/admin/v1/register`. Empty: the endpoint is off.")
    ] = ""
    allow_guests: Annotated[bool, _option("Let guests register without an account.")] = False
    appservice_files: Annotated[
        str, _option("Registration files of application services, separated by commas.")
    ] = ""
    rate_limits: Annotated[
        Literal["on", "off"], _option("Limit how often clients may do things.")
    ] = "on"
    sticky_events_per_user_max: Annotated[
        int,
        Meta(
            ge=0,
            description="How many events of a user may be sticky at once in a room (MSC4354); "
            "0: any number.",
        ),
    ] = 500
    presence_enabled: Annotated[
        bool,
        _option(
            "Tell users who of those they share a room with is there, and tell other servers. "
            "In large rooms it costs more than everything else."
        ),
    ] = True
    default_room_version: Annotated[
        str, _option("Version of rooms whose creator asks for none.")
    ] = "12"
    forget_rooms_on_leave: Annotated[
        bool, _option("Forget a room when a user leaves it, and say so (MSC4267).")
    ] = False
    forgotten_room_retention_seconds: Annotated[
        int, Meta(ge=0, description="How long a room that everybody forgot is kept.")
    ] = 7 * 86_400
    redact_on_ban_spares_control_state: Annotated[
        bool,
        _option(
            "Where a kick or ban redacts what somebody sent (MSC4293), leave the state by them "
            "that keeps the room safe, such as its server ACL."
        ),
    ] = True
    deactivation_metadata: Annotated[
        bool,
        _option("Say in the leaves of a deactivated user why they leave (MSC3759)."),
    ] = True
    delayed_events_max_scheduled: Annotated[
        int, Meta(ge=0, description="Delayed events a user may have scheduled (MSC4140).")
    ] = 100
    delayed_events_max_delay_ms: Annotated[
        int, Meta(ge=0, description="The longest delay of a delayed event, in milliseconds.")
    ] = 86_400_000
    delayed_events_unauthenticated_management: Annotated[
        bool, _option("Let delayed events be managed without an access token.")
    ] = False
    password_hash_memory_kib: Annotated[
        int, Meta(ge=8, description="Memory of one argon2id hash, in KiB.")
    ] = 19_456
    password_hash_iterations: Annotated[
        int, Meta(ge=1, description="Iterations of one argon2id hash.")
    ] = 2
    database_connections: Annotated[
        int, Meta(ge=4, le=200, description="Connections to PostgreSQL of each process.")
    ] = 12
    inspector: Annotated[
        bool,
        _option(
            "Serve `/_minihs/inspect/`, where administrators see what the server decides about "
            "rooms, and why."
        ),
    ] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _option("How much is logged.")
    ] = "info"

    @property
    def notaries(self) -> list[str]:
        """The servers of `trusted_key_servers`."""
        return [name for text in self.trusted_key_servers.split(",") if (name := text.strip())]

    @property
    def registration_files(self) -> list[Path]:
        """The files of `appservice_files`."""
        return [Path(name) for text in self.appservice_files.split(",") if (name := text.strip())]

    @property
    def signing_key_file(self) -> Path:
        """Where the signing key is, or will be."""
        return Path(self.signing_key_path or Path(self.data_dir) / "signing.key")

    @property
    def rate_limits_on(self) -> bool:
        """Whether clients are limited."""
        return self.rate_limits == "on"


def find_config_file(option: str | None, environment: Mapping[str, str]) -> Path | None:
    """Return the file that `--config` names, else `MINIHS_CONFIG`, else one in this directory.

    An empty name stands for no file at all.
    """
    name = option if option is not None else environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    if name is not None:
        return Path(name) if name else None
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def without_password(dsn: str) -> str:
    """Return a DSN as it may be shown."""
    dsn = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:(secret)@", dsn)
    return re.sub(r"([?&]password=)[^&]*", r"\1(secret)", dsn)


def load_config(path: Path | None, environment: Mapping[str, str]) -> Config:
    """Return the configuration of a file (None: no file) and an environment.

    Raises:
        ConfigError: an option is unknown or has a value that it cannot have.
    """
    values: dict[str, object] = {}
    if path is not None:
        try:
            values |= tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # No TOML, or no UTF-8.
            raise ConfigError(f"{path}: {error}") from error
    kinds = get_type_hints(Config, include_extras=True)
    faults = [
        f"{path}: {fault}"
        for name, value in values.items()
        if (fault := _fault_of(name, kinds.get(name), value)) is not None
    ]
    for name, kind in kinds.items():
        text = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if text is None:
            continue
        try:
            values[name] = _from_text(name, kind, text)
        except ConfigError as error:
            faults.append(str(error))
            continue
        if (fault := _fault_of(name, kind, values[name])) is not None:
            faults.append(fault)
    refuse(faults)
    return msgspec.convert(values, Config)


def refuse(faults: Iterable[str]) -> None:
    """Do nothing if there are none.

    Raises:
        ConfigError: there are some; a line for each.
    """
    if lines := list(faults):
        raise ConfigError("\n".join(lines))


def _fault_of(name: str, kind: object, value: object) -> str | None:
    """Return what is wrong with an option; None if nothing is."""
    if kind is None:
        return f"{name} is no option of minihs"
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        if get_args(kind)[0] is str:  # Not shown: it may be a secret.
            return f"{name} must be a text in quotes"
        return f"{name} must be {_describe(kind).replace('`', '')}, not {value!r}"
    return None


def _describe(kind: object) -> str:
    """Return which values an option can have, those that are written so in backquotes."""
    inner, meta = get_args(kind)
    choices = get_args(inner) if get_origin(inner) is Literal else ()
    if inner is bool:
        choices = ("true", "false")
    label = " or ".join(f"`{c}`" for c in choices) if choices else str(inner.__name__)
    if meta.ge is not None:
        label += f" from {meta.ge} " + ("on" if meta.le is None else f"to {meta.le}")
    return label


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the variables of an environment that look like options and are none."""
    known = {ENVIRONMENT_PREFIX + name.upper() for name in Config.__struct_fields__}
    known |= {ENVIRONMENT_PREFIX + "CONFIG", ENVIRONMENT_PREFIX + "INHERITED_SOCKETS"}
    return sorted(v for v in environment if v.startswith(ENVIRONMENT_PREFIX) and v not in known)


def _from_text(name: str, kind: object, text: str) -> object:
    """Return the value that an environment variable's text stands for."""
    kind = get_args(kind)[0]
    variable = ENVIRONMENT_PREFIX + name.upper()
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{variable} must be true or false, not {text!r}")
        return text.lower() == "true"
    if kind is int:
        try:
            return int(text)
        except ValueError as error:
            raise ConfigError(f"{variable} must be a number, not {text!r}") from error
    return text


def describe_options() -> list[tuple[str, str, object, str]]:
    """Return name, type, default and description of every option, in order."""
    rows: list[tuple[str, str, object, str]] = []
    defaults = Config()
    for name, kind in get_type_hints(Config, include_extras=True).items():
        description = get_args(kind)[1].description or ""
        rows.append((name, _describe(kind), getattr(defaults, name), description))
    return rows


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `host:port` (`[::1]:8008` for IPv6).

    Raises:
        ConfigError: it is not of that form.
    """
    host, colon, port = text.rpartition(":")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    if not colon or not is_number or int(port) > PORT_MAX:
        raise ConfigError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)
