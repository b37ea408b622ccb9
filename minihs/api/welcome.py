"""What a browser is told that comes to the server's address. It is no part of Matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minihs.api.requests import Answer

if TYPE_CHECKING:
    from minihs.api.requests import Request

PLAIN_TEXT = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}


async def get_welcome(request: Request) -> object:
    """GET / - a few words for people who wonder whether the server works."""
    text = (
        f"This is minihs, the Matrix homeserver of {request.services.server_name}. It works.\n\n"
        "It is used with a Matrix client: give it this address as the homeserver.\n"
    )
    return Answer(text.encode(), headers=PLAIN_TEXT)
