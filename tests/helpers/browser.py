"""A real browser, driven over the DevTools protocol: what it complains of, and what it shows.

async with chromium() as browser:
    page = await browser.open("http://…", {"Authorization": "Bearer …"})
    page.complaints   # dialogs, console messages, violations of the content security policy
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.helpers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # It only ever opens what the test serves.
    "--disable-gpu",
    "--disable-lcd-text",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
    "about:blank",
)
# Others are about how the test drives the page.
ISSUES = ("ContentSecurityPolicyIssue", "CookieIssue", "MixedContentIssue", "QuirksModeIssue")


def find_chromium() -> str | None:
    """Return the path of a Chromium on this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """A page that has been loaded."""

    browser: Browser
    session_id: str
    complaints: list[str] = field(default_factory=list)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = await self.browser.call(
            "Runtime.evaluate", self.session_id, expression=expression, returnByValue=True
        )
        return answer["result"].get("value")

    async def leave_by(self, expression: str) -> None:
        """Evaluate what leads to another page, such as sending a form; return when it is there."""
        loaded = self.browser.expect_load(self)
        await self.evaluate(expression)
        await loaded

    async def screenshot(
        self, width: int, *, until: str = "html", of: str = "html", dark: bool = False
    ) -> bytes:
        """Return the page as PNG, from the top of an element to the bottom of another."""
        call, session = self.browser.call, self.session_id
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await call("Emulation.setEmulatedMedia", session, features=[scheme])
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        await call("Emulation.setDeviceMetricsOverride", session, **size)
        box = "document.querySelector({!r}).getBoundingClientRect().{}"
        top = await self.evaluate(box.format(of, "top"))
        bottom = await self.evaluate(box.format(until, "bottom"))
        clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
        answer = await call(
            "Page.captureScreenshot", session, format="png", clip=clip, captureBeyondViewport=True
        )
        return base64.b64decode(answer["data"])


class Browser:
    """One Chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._loaded: dict[str, asyncio.Event] = {}

    async def call(self, method: str, session_id: str | None = None, **parameters: object) -> dict:
        """Call a method of the protocol; return its result."""
        number = next(self._ids)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(message | ({"sessionId": session_id} if session_id else {}))
        async with asyncio.timeout(PATIENCE_S):
            answer = await self._answers[number]
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    async def open(self, url: str, headers: Mapping[str, str] | None = None) -> Page:
        """Load a page, sending some headers; return when it has been loaded."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        session = attached["sessionId"]
        page = self._pages[session] = Page(self, session)
        for part in ("Page", "Runtime", "Log", "Audits", "Network"):
            await self.call(f"{part}.enable", session)
        await self.call("Network.setExtraHTTPHeaders", session, headers=dict(headers or {}))
        loaded = self.expect_load(page)
        await self.call("Page.navigate", session, url=url)
        await loaded
        return page

    def expect_load(self, page: Page) -> Awaitable[None]:
        """Return what is done when the next page has been loaded."""
        event = self._loaded[page.session_id] = asyncio.Event()

        async def loaded() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await event.wait()
            await page.evaluate("1")  # What it had to say has been said before this is answered.

        return loaded()

    async def listen(self) -> None:
        """Take in what the browser says, until it ends."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
                continue
            session = said.get("sessionId", "")
            if said["method"] == "Page.loadEventFired" and session in self._loaded:
                self._loaded[session].set()
            elif session in self._pages:
                await self._note(self._pages[session], said["method"], said["params"])

    async def _note(self, page: Page, method: str, said: dict[str, Any]) -> None:
        if method == "Page.javascriptDialogOpening":
            page.complaints.append(f"dialog: {said['message']}")
            number = next(self._ids)
            self._answers[number] = asyncio.get_running_loop().create_future()
            await self._socket.send_json(
                {
                    "id": number,
                    "method": "Page.handleJavaScriptDialog",
                    "params": {"accept": False},
                    "sessionId": page.session_id,
                }
            )
        elif method == "Log.entryAdded":
            page.complaints.append(f"{said['entry']['source']}: {said['entry']['text']}")
        elif method == "Runtime.consoleAPICalled":
            page.complaints.append(f"console: {said['args']}")
        elif method == "Audits.issueAdded" and said["issue"]["code"] in ISSUES:
            page.complaints.append(f"issue: {said['issue']}")


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a Chromium with a profile of its own.

    Raises:
        FileNotFoundError: there is none here.
    """
    program = find_chromium()
    if program is None:
        raise FileNotFoundError("no chromium on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program, f"--user-data-dir={profile}", *OPTIONS,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            async with asyncio.timeout(PATIENCE_S):
                while b"ws://" not in (line := await process.stderr.readline()):
                    assert line, "chromium ended"
            url = line.decode().split()[-1]
            draining = asyncio.create_task(process.stderr.read())
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(url, max_msg_size=0) as socket,
            ):
                browser = Browser(socket)
                listening = asyncio.create_task(browser.listen())
                try:
                    yield browser
                finally:
                    with contextlib.suppress(TimeoutError, ConnectionError):
                        await socket.send_json({"id": 0, "method": "Browser.close"})
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()
            await draining
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                await process.wait()
