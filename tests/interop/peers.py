"""The two servers, and people who have a client at either."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import orjson

from tests.helpers import processes
from tests.helpers.homeserver import CLIENT, PASSWORD, Response
from tests.helpers.processes import free_port
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import trustme

SECRET = "shared secret"  # of servers that live for one run
ARRIVES_WITHIN_S = 120
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files that a server needs to speak TLS, and to believe the other."""

    chain: str
    key: str
    authority: str

    @classmethod
    def issue(cls, authority: trustme.CA, directory: Path) -> Certificate:
        """Return a certificate for this machine, in files of a directory."""
        leaf = authority.issue_cert("localhost")
        files = {name: str(directory / name) for name in ("chain.pem", "key.pem", "ca.pem")}
        for number, blob in enumerate(leaf.cert_chain_pems):
            blob.write_to_path(files["chain.pem"], append=number > 0)
        leaf.private_key_pem.write_to_path(files["key.pem"])
        authority.cert_pem.write_to_path(files["ca.pem"])
        return cls(files["chain.pem"], files["key.pem"], files["ca.pem"])


class MinihsPeer(processes.Server):
    """minihs, as `minihs run` runs it."""

    def __init__(self, database_url: str, directory: Path, certificate: Certificate) -> None:
        self.tls_port = free_port()
        self.name = f"localhost:{self.tls_port}"
        super().__init__(
            database_url,
            directory,
            server_name=self.name,
            federation_listen=f"127.0.0.1:{self.tls_port}",
            tls_cert=certificate.chain,
            tls_key=certificate.key,
            federation_ca_file=certificate.authority,
            federation_allow_private_addresses="true",
            federation_max_backoff_seconds="2",
            log_level="info",
        )


class SynapsePeer:
    """Synapse, as its package runs it, with limits off and quick attempts after a failure."""

    def __init__(self, python: Path, directory: Path, certificate: Certificate) -> None:
        self.port, self.tls_port = free_port(), free_port()
        self.name = f"localhost:{self.tls_port}"
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = directory / "synapse.log"
        self._python = python
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        configuration = _synapse_configuration(self, directory, certificate)
        (directory / "homeserver.yaml").write_bytes(orjson.dumps(configuration))
        (directory / "log.yaml").write_bytes(orjson.dumps(_LOG))

    async def start(self) -> None:
        """Start it, and return when it answers."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(self._python), "-m", "synapse.app.homeserver", "-c", "homeserver.yaml",
                "--generate-missing-configs", cwd=self._directory, stdout=log, stderr=log,
            )  # fmt: skip
            assert await self._process.wait() == 0, self.log.read_text()[-3_000:]
            self._process = await asyncio.create_subprocess_exec(
                str(self._python), "-m", "synapse.app.homeserver", "-c", "homeserver.yaml",
                cwd=self._directory, stdout=log, stderr=log,
            )  # fmt: skip
        await until(self._is_ready)

    async def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self.log.read_text()[-3_000:]
        try:
            return (await self.request("GET", "/_matrix/client/versions")).status == 200
        except aiohttp.ClientError:
            return False

    async def stop(self) -> None:
        """Stop it in an orderly way."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await self._process.wait()

    async def request(
        self, method: str, path: str, body: object = None, *, token: str | None = None,
        **query: str,
    ) -> Response:  # fmt: skip
        """Make a request; paths are relative to the client API unless they begin with /_."""
        if not path.startswith("/_"):
            path = CLIENT + path
        async with self.session.request(
            method,
            self.address + path,
            data=None if body is None else orjson.dumps(body),
            params=query,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
        ) as answer:
            return Response(answer.status, await answer.read(), answer.headers)

    async def register(self, localpart: str) -> tuple[str, str]:
        """Register somebody; return their user id and access token."""
        path = "/_synapse/admin/v1/register"
        nonce = (await self.request("GET", path)).json["nonce"]
        mac = hmac.new(SECRET.encode(), digestmod=hashlib.sha1)
        mac.update("\0".join([nonce, localpart, PASSWORD, "notadmin"]).encode())
        body = {
            "nonce": nonce, "username": localpart, "password": PASSWORD, "admin": False,
            "mac": mac.hexdigest(),
        }  # fmt: skip
        answer = await self.request("POST", path, body)
        assert answer.status == 200, answer.json
        return answer.json["user_id"], answer.json["access_token"]


_UNLIMITED = {"per_second": 1e6, "burst_count": 1_000_000}
_LOG = {
    "version": 1,
    "formatters": {"plain": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
    "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"level": "INFO", "handlers": ["err"]},
    "disable_existing_loggers": False,
}


def _synapse_configuration(
    peer: SynapsePeer, directory: Path, certificate: Certificate
) -> dict[str, object]:
    listener = {"bind_addresses": ["127.0.0.1"], "type": "http"}
    return {
        "server_name": peer.name,
        "pid_file": str(directory / "homeserver.pid"),
        "listeners": [
            {
                **listener, "port": peer.tls_port, "tls": True,
                "resources": [{"names": ["federation"]}],
            },
            {
                **listener, "port": peer.port, "tls": False,
                "resources": [{"names": ["client"]}],
            },
        ],
        "tls_certificate_path": certificate.chain,
        "tls_private_key_path": certificate.key,
        "federation_custom_ca_list": [certificate.authority],
        "database": {"name": "sqlite3", "args": {"database": str(directory / "synapse.db")}},
        "log_config": str(directory / "log.yaml"),
        "media_store_path": str(directory / "media"),
        "signing_key_path": str(directory / "synapse.signing.key"),
        "registration_shared_secret": SECRET,
        "macaroon_secret_key": SECRET,
        "form_secret": SECRET,
        "report_stats": False,
        "trusted_key_servers": [],
        "ip_range_blacklist": [],
        "bcrypt_rounds": 4,
        "caches": {"sync_response_cache_duration": "0s"},  # What is asked again is asked anew.
        "allow_public_rooms_over_federation": True,
        "room_list_publication_rules": [{"action": "allow"}],
        "federation": {
            "destination_min_retry_interval": "1s",
            "destination_max_retry_interval": "2s",
            "destination_retry_multiplier": 1,
        },
        "rc_message": _UNLIMITED,
        "rc_registration": _UNLIMITED,
        "rc_login": dict.fromkeys(("address", "account", "failed_attempts"), _UNLIMITED),
        "rc_joins": dict.fromkeys(("local", "remote"), _UNLIMITED),
        "rc_joins_per_room": _UNLIMITED,
        "rc_room_creation": _UNLIMITED,
        "rc_invites": dict.fromkeys(("per_room", "per_user", "per_issuer"), _UNLIMITED),
        "rc_federation": {
            "window_size": 1_000, "sleep_limit": 1_000_000, "sleep_delay": 0,
            "reject_limit": 1_000_000, "concurrent": 1_000,
        },
    }  # fmt: skip


Peer = MinihsPeer | SynapsePeer


class Account:
    """Somebody with a client at one of the servers."""

    _numbers = itertools.count()

    def __init__(self, peer: Peer, user_id: str, token: str) -> None:
        self.peer = peer
        self.user_id = user_id
        self.token = token

    @classmethod
    async def make(cls, peer: Peer, name: str) -> Account:
        """Register somebody who has not been there before."""
        return cls(peer, *await peer.register(f"{name}-{next(cls._numbers)}"))

    async def request(self, method: str, path: str, body: object = None, **query: str) -> Response:
        """Make a request; return whatever comes back."""
        return await self.peer.request(method, path, body, token=self.token, **query)

    async def call(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """Make a request that must succeed; return its JSON."""
        answer = await self.request(method, path, body, **query)
        assert answer.status == 200, (self.user_id, method, path, answer.status, answer.json)
        return answer.json

    # --- what people do -------------------------------------------------------------------------

    async def create_room(self, version: str, **options: object) -> str:
        """Create a room, public unless `options` say otherwise; return its id."""
        body = {"preset": "public_chat", "room_version": version, **options}
        return str((await self.call("POST", "/createRoom", body))["room_id"])

    async def join(self, room: str, via: Account | None = None) -> Response:
        """Try to join a room (or alias), through the server of another user."""
        query = {} if via is None else {"server_name": via.peer.name, "via": via.peer.name}
        return await self.request("POST", f"/join/{quote(room, safe='')}", {}, **query)

    async def enter(self, room: str, via: Account) -> None:
        """Join a room that must let us in."""
        answer = await self.join(room, via)
        assert answer.status == 200, answer.json

    async def leave(self, room_id: str) -> None:
        """Leave a room, or reject an invite."""
        await self.call("POST", f"/rooms/{quote(room_id)}/leave", {})

    async def do(self, verb: str, room_id: str, other: Account) -> None:
        """Invite, kick, ban or unban somebody."""
        await self.call("POST", f"/rooms/{quote(room_id)}/{verb}", {"user_id": other.user_id})

    async def say(self, room_id: str, text: str) -> str:
        """Send a message; return its id."""
        path = f"/rooms/{quote(room_id)}/send/m.room.message/t{next(self._numbers)}"
        body = {"msgtype": "m.text", "body": text}
        return str((await self.call("PUT", path, body))["event_id"])

    async def set_state(self, room_id: str, kind: str, content: object, state_key: str = "") -> str:
        """Set state; return the event's id."""
        path = f"/rooms/{quote(room_id)}/state/{kind}/{quote(state_key, safe='')}"
        return str((await self.call("PUT", path, content))["event_id"])

    async def redact(self, room_id: str, event_id: str) -> None:
        """Redact an event."""
        path = f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/t{next(self._numbers)}"
        await self.call("PUT", path, {})

    # --- what people see ------------------------------------------------------------------------

    async def state(self, room_id: str, kind: str, state_key: str = "") -> Any:
        """Return the content of a state event; None if there is none to see."""
        path = f"/rooms/{quote(room_id)}/state/{kind}/{quote(state_key, safe='')}"
        answer = await self.request("GET", path)
        return answer.json if answer.status == 200 else None

    async def whole_state(self, room_id: str) -> dict[tuple[str, str], str]:
        """Return the ids of the state events of a room."""
        events = await self.call("GET", f"/rooms/{quote(room_id)}/state")
        return {(event["type"], event["state_key"]): event["event_id"] for event in events}

    async def membership(self, room_id: str, of: Account) -> str | None:
        """Return what somebody is in a room, as far as we can see."""
        content = await self.state(room_id, "m.room.member", of.user_id)
        return None if content is None else str(content["membership"])

    async def event(self, room_id: str, event_id: str) -> Any:
        """Return an event; None if it is not there (yet)."""
        answer = await self.request("GET", f"/rooms/{quote(room_id)}/event/{quote(event_id)}")
        return answer.json if answer.status == 200 else None

    async def texts(self, room_id: str) -> list[str]:
        """Return all messages of a room that can be paged to, newest first."""
        found: list[str] = []
        start: str | None = None
        for _ in range(50):
            query = {"dir": "b", "limit": "20"} | ({} if start is None else {"from": start})
            page = await self.call("GET", f"/rooms/{quote(room_id)}/messages", **query)
            found += [e["content"].get("body", "") for e in page["chunk"] if _is_message(e)]
            start = page.get("end")
            if start is None:
                break
        return found

    async def invites(self) -> dict[str, Any]:
        """Return the rooms that we are invited to."""
        answer = await self.call("GET", "/sync", timeout="0")
        found: dict[str, Any] = answer.get("rooms", {}).get("invite", {})
        return found

    async def sees(self, room_id: str, event_id: str) -> Any:
        """Wait until an event has arrived; return it."""
        await eventually(lambda: self.event(room_id, event_id))
        return await self.event(room_id, event_id)

    async def sees_member(self, room_id: str, of: Account, membership: str | None) -> None:
        """Wait until somebody is what they must be."""

        async def is_so() -> bool:
            return await self.membership(room_id, of) == membership

        await eventually(is_so)

    async def is_put_out(self, room_id: str) -> None:
        """Wait until our server knows that we are no longer in a room."""

        async def is_so() -> bool:
            return room_id not in (await self.call("GET", "/joined_rooms"))["joined_rooms"]

        await eventually(is_so)


def _is_message(event: dict[str, Any]) -> bool:
    return event["type"] == "m.room.message" and "body" in event["content"]


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for what comes over the federation."""
    async with asyncio.timeout(ARRIVES_WITHIN_S):
        while not await condition():  # type: ignore[misc]  # of coroutines only
            await asyncio.sleep(POLL_S)


def synapse_python() -> Path | None:
    """Return the interpreter that has Synapse; None where there is none."""
    venv = os.environ.get("MINIHS_INTEROP_SYNAPSE")
    python = Path(venv) / "bin" / "python" if venv else None
    return python if python is not None and python.exists() else None
