"""The `since` token: one position of the one stream (D1), and cursors of paged sections behind it.

`s123` is everything up to position 123. What follows an underscore belongs to paged sections.
"""

from __future__ import annotations

import re

from minihs.base.errors import InvalidParam

_TOKEN = re.compile(r"s([0-9]{1,19})(?:_[A-Za-z0-9_.-]{0,200})?", re.ASCII)


def format_token(position: int) -> str:
    """Return the token of a position."""
    return f"s{position}"


def parse_token(token: str, head: int) -> int:
    """Return the position of a token that this server handed out.

    Raises:
        InvalidParam: it is not one of ours, or lies in the future.
    """
    found = _TOKEN.fullmatch(token)
    position = int(found[1]) if found else -1
    if not 0 <= position <= head:
        raise InvalidParam("This is not a sync token of this server.")
    return position
