"""A server under test as a node of the network: the real application, called without a socket.

What a request needs of a connection is the same each time and made once: a run makes thousands.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from unittest import mock

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from minihs.api.server import build_application
from minihs.remote.transport import RawAnswer

if TYPE_CHECKING:
    from minihs.remote.transport import OutgoingRequest
    from minihs.services.context import Services
    from tests.helpers.network import Node


def node_of(services: Services) -> Node:
    """Return what answers requests to a server."""
    application = build_application(services)
    application.freeze()
    pattern = make_mocked_request("GET", "/", app=application)
    reading = mock.Mock(spec=BaseProtocol, _reading_paused=False)

    async def answer(request: OutgoingRequest) -> RawAnswer:
        loop = asyncio.get_running_loop()
        payload = StreamReader(reading, 2**16, loop=loop)
        headers = CIMultiDict(request.headers)
        if request.body is not None:
            headers["Content-Length"] = str(len(request.body))
            payload.feed_data(request.body)
        payload.feed_eof()
        message = RawRequestMessage(
            request.method, request.target, HttpVersion11, CIMultiDictProxy(headers),
            tuple((k.encode(), v.encode()) for k, v in headers.items()),
            False, None, False, False, URL(request.target, encoded=True),
        )  # fmt: skip
        http = web.Request(
            message, payload, pattern.protocol, pattern.writer, pattern.task, loop,
            client_max_size=2**24,
        )  # fmt: skip
        response = await application._handle(http)
        body = response.body  # type: ignore[attr-defined]  # never a streamed one
        return RawAnswer(response.status, bytes(body or b""), response.content_type)

    return answer
