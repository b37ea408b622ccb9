"""Logs: one line an entry, with the request it belongs to, and never a secret.

    2026-11-21T12:00:00.123Z ERROR minihs.api.server [PUT /_matrix/client/v3/…]: the request failed

Whatever is logged, exceptions with their values included, passes `redacted` last: the one rule for
tokens, passwords and keys.
"""

from __future__ import annotations

import logging
import re
import sys
from contextvars import ContextVar
from time import gmtime as _utc
from typing import TextIO

from typing_extensions import override

# Method and target (as it was sent) of the request that the running task answers.
request: ContextVar[tuple[str, str] | None] = ContextVar("request", default=None)

_NAMES = r"(?:password|passwd|secret|token|\bnonce|\bmac|\bsession(?:_id)?|signing_key)"
_SECRETS = re.compile(
    # access_token=…, 'password': '…', "refresh_token": "…", and JSON that was quoted once more
    rf"""(?P<name>{_NAMES}(?:\\*["'])?\s*[:=]\s*b?)"""
    r"""(?:(?P<quote>\\+["'])(?:(?!(?P=quote)).)*(?:(?P=quote))?"""
    r"""|"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^\s,;&}})\]"']+)"""
    # Authorization: Bearer …
    r"""|(?P<scheme>\b(?:Bearer|Basic)\s+)[^\s"',;]+"""
    # postgresql://user:password@host
    r"""|(?P<user>\b\w{1,20}://[^\s:/@]*:)[^\s@/]+(?=@)"""
    # signedjson's key files: ed25519 version seed
    r"""|(?P<key>\bed25519 \w+ )[A-Za-z0-9+/]{42,}"""
    # Who knows the id of a delayed event may be allowed to manage it (MSC4140).
    r"""|(?P<path>/delayed_events/)[^\s/?\]"']+""",
    re.IGNORECASE | re.DOTALL,
)
_KEPT = ("name", "scheme", "user", "key", "path")


def redacted(text: str) -> str:
    """Return a text without the secrets that follow a telling name, such as `access_token=`."""
    return _SECRETS.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    kept = next((found[name] for name in _KEPT if found[name]), "")
    return f"{kept}(redacted)"


class Formatter(logging.Formatter):
    """Time in UTC, level, logger, the request if there is one, the message, and any exception."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(request)s: %(message)s")
        self.converter = _utc

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Return the entry as it is written."""
        of = request.get()
        record.request = "" if of is None else f" [{of[0]} {of[1].partition('?')[0]}]"
        return redacted(super().format(record))


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send logs of `level` and above to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # Its own inventory.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)  # `Database` says what it would say.
