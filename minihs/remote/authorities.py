"""Whose certificates federation trusts beside those of the system's authorities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.base.config import Config, ConfigError

if TYPE_CHECKING:
    import ssl


def trust_own_authorities(context: ssl.SSLContext, config: Config) -> None:
    """Let a context trust those of `federation_ca_file`, too.

    Raises:
        ConfigError: the file cannot be used.
    """
    if config.federation_ca_file:
        try:
            context.load_verify_locations(config.federation_ca_file)
        except OSError as error:  # An SSLError is one.
            raise ConfigError(
                f"federation_ca_file {config.federation_ca_file} cannot be used: {error}"
            ) from error
