"""Reading what another server sends, up to a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import aiohttp

_PIECE_BYTES: Final = 65_536


async def read_bounded(answer: aiohttp.ClientResponse, bytes_max: int) -> bytes | None:
    """Return the body, decompressed; None if it is larger than `bytes_max`.

    The limit counts what comes out of the decompressor, which is asked for a piece at a time; a
    larger body is cut, and its connection closed.
    """
    length = answer.content_length
    if length is not None and length > bytes_max:
        answer.close()
        return None
    body = bytearray()
    async for piece in answer.content.iter_chunked(_PIECE_BYTES):
        body += piece
        if len(body) > bytes_max:
            answer.close()
            return None
    return bytes(body)
