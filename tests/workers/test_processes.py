"""`minihs run` as processes: several, ended in every way, without a database, refused."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest

from minihs.api.health import READY_S_MAX
from minihs.protocol.identifiers import ServerName
from minihs.protocol.server_keys import read_server_keys
from minihs.protocol.signatures import read_signing_key
from minihs.storage.embedded import Cluster, packaged_binaries, start_cluster
from tests.helpers.homeserver import PASSWORD
from tests.helpers.postgres import cluster_directory
from tests.helpers.processes import (
    ROOT,
    Server,
    children_of,
    is_alive,
    kill,
    kill_postgres,
    running_server,
)
from tests.helpers.proxy import proxied
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


async def count(server: Server, path: str) -> int:
    """Return how many requests of an endpoint the metrics tell of."""
    sample = rf'^minihs_requests_total{{.*path="{path}".*}} (\d+)$'
    found = re.findall(sample, await server.metrics(), re.MULTILINE)
    return sum(map(int, found))


async def test_workers_are_one_server(database_url: str, tmp_path: Path):
    async with running_server(database_url, tmp_path, workers=2) as server:
        _, token = await server.register("alice")
        first = server.workers
        assert len(first) == 2

        answers = await asyncio.gather(
            *(server.request("GET", "/account/whoami", token=token) for _ in range(40))
        )

        assert [answer.status for answer in answers] == [200] * 40
        whoami = "/_matrix/client/v3/account/whoami"
        await until(lambda: all_tell(server, whoami, 40))
        kill(first[:1])
        await until(lambda: len(server.workers) == 2 and server.workers != first)
        await server.until_ready()
        await until(lambda: all_tell(server, whoami, 40))  # What the dead one has counted is kept.
        assert await server.stop() == 0
        assert not any(map(is_alive, first))


async def all_tell(server: Server, path: str, value: int) -> bool:
    """Return whether the workers agree on how many requests there were; chance asks each."""
    return {await count(server, path) for _ in range(16)} == {value}


async def test_workers_end_when_their_parent_is_killed(database_url: str, tmp_path: Path):
    async with running_server(database_url, tmp_path, workers=2) as server:
        orphans = server.workers

        kill([server.pid])

        await until(lambda: not any(map(is_alive, [server.pid, *orphans])))
        await server.start()  # The address is free again.
        assert await server.stop() == 0


async def test_a_server_that_is_told_to_stop_answers_what_it_has_begun(
    database_url: str, tmp_path: Path
):
    async with running_server(database_url, tmp_path) as server:
        _, token = await server.register("alice")
        unseen = {"set_presence": "offline"}  # Else the poll has news: that Alice is there.
        sync = (await server.request("GET", "/sync", token=token, **unseen)).json["next_batch"]
        waiting = asyncio.create_task(
            server.request("GET", "/sync", token=token, since=sync, timeout="25000", **unseen)
        )

        async def is_waiting() -> bool:
            return "minihs_sync_waiting 1" in await server.metrics()

        await until(is_waiting)
        assert await server.stop() == 0
        answer = await waiting
        assert (answer.status, answer.json) == (200, {"next_batch": sync}), "at once, not when due"


async def test_a_database_that_hangs_does_not_keep_a_server_from_stopping(
    database_url: str, tmp_path: Path
):
    async with (
        proxied(database_url) as proxy,
        running_server(proxy.dsn, tmp_path) as server,
    ):
        _, token = await server.register("alice")
        proxy.freeze()
        asking = asyncio.create_task(server.request("GET", "/joined_rooms", token=token))
        await until(lambda: _is_asking(server))
        assert await server.stop() == 0
        assert "cutting the connections" in server.log.read_text()
        assert "Traceback" not in server.log.read_text()
        with contextlib.suppress(aiohttp.ClientError):
            assert (await asking).status == 503


async def _is_asking(server: Server) -> bool:
    """Return whether the server waits for the database."""
    return (await server.request("GET", "/ready")).status == 503


async def test_the_database_goes_away_and_comes_back(tmp_path: Path):
    with cluster_directory() as directory:
        cluster = Cluster(directory / "postgres", packaged_binaries(), {"fsync": "off"})
        running = await start_cluster(cluster)
        try:
            async with running_server(running.dsn, tmp_path, workers=2) as server:
                user_id, token = await server.register("alice")
                room_id = (await server.request("POST", "/createRoom", {}, token=token)).json[
                    "room_id"
                ]
                since = (await server.request("GET", "/sync", token=token)).json["next_batch"]
                processes = server.workers
                say = f"/rooms/{quote(room_id)}/send/m.room.message/"
                message = {"msgtype": "m.text", "body": "hello"}

                for number, orderly in enumerate((True, False)):
                    await (cluster.stop() if orderly else kill_postgres(cluster))
                    took_s = []
                    for _ in range(4):  # Whichever worker answers.
                        began = time.monotonic()
                        health = await server.request("GET", "/health")
                        ready = await server.request("GET", "/ready")
                        send = await server.request("PUT", say + f"{number}", message, token=token)
                        read = await server.request("GET", "/sync", token=token, since=since)
                        refused = [ready.status, send.status, read.status]
                        assert (health.status, refused) == (200, [503] * 3)
                        assert send.json["errcode"] == "M_UNKNOWN"
                        took_s.append(time.monotonic() - began)
                    assert min(took_s) < READY_S_MAX, "nobody waits for it"
                    await cluster.start()
                    await server.until_ready()
                    await until(lambda n=number: _sends(server, say + f"{n}", message, token))
                    assert "Traceback" not in server.log.read_text()

                assert server.workers == processes  # Nobody was restarted.
                sync = await server.request("GET", "/sync", token=token, since=since)
                events = sync.json["rooms"]["join"][room_id]["timeline"]["events"]
                assert [e["sender"] for e in events] == [user_id] * 2
        finally:
            await running.stop()


async def _sends(server: Server, path: str, message: object, token: str) -> bool:
    return (await server.request("PUT", path, message, token=token)).status == 200


async def minihs(server: Server, *arguments: str, typed: str = "") -> tuple[int, str]:
    """Run a command of minihs with a server's environment; return its status and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "minihs", *arguments, cwd=ROOT, env=server.environment,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate(typed.encode())
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_orderly_end_is_in_the_log(database_url: str, tmp_path: Path, workers: int):
    async with running_server(database_url, tmp_path, workers=workers, log_level="info") as server:
        answers = f"hs1 answers at {server.address}\n"
        await until(lambda: answers in server.log.read_text())
        assert "stopped" not in server.log.read_text()
        assert await server.stop() == 0
        assert server.log.read_text().count(answers) == 1
        first_user = f"terminal: {sys.executable} -m minihs register-user alice --admin\n"
        assert server.log.read_text().count(first_user) == 1
        last = server.log.read_text().splitlines()[-1]
    assert last.endswith("INFO minihs.processes: hs1 has stopped")


@pytest.mark.parametrize("workers", [1, 2])
async def test_whoever_is_connected_at_the_end_is_told_that_the_connection_ends(
    database_url: str, tmp_path: Path, workers: int
):
    async with running_server(database_url, tmp_path, workers=workers) as server:
        request = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: hs1\r\n\r\n"
        in_use = asyncio.Barrier(9)

        async def ask_until_the_end() -> bytes:
            """Return what comes after an answer that says that it is the last one."""
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            asked = 0
            while True:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                (length,) = re.findall(rb"content-length: (\d+)", head)
                await reader.readexactly(int(length))
                if b"connection: close" in head:
                    rest = await reader.read()
                    writer.close()
                    return rest
                asked += 1
                if asked == 10:
                    await in_use.wait()

        clients = [asyncio.ensure_future(ask_until_the_end()) for _ in range(in_use.parties - 1)]
        await in_use.wait()
        assert await server.stop() == 0
        assert await asyncio.gather(*clients) == [b""] * len(clients)


async def test_a_server_with_users_does_not_ask_for_the_first(database_url: str, tmp_path: Path):
    async with running_server(database_url, tmp_path, log_level="info") as server:
        told = "nobody is registered yet"
        await until(lambda: told in server.log.read_text())
        await server.register("alice")
        await server.stop()
        server.log.unlink()
        await server.start()
        await until(lambda: "hs1 answers at" in server.log.read_text())
        await server.stop()
        assert told not in server.log.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_no_worker_could_start_with_is_refused_before_there_are_any(
    database_url: str, tmp_path: Path, workers: str
):
    (tmp_path / "file").touch()
    key = tmp_path / "file" / "signing.key"
    server = Server(database_url, tmp_path, log_level="info", signing_key_path=str(key))
    await server.session.close()
    status, said = await minihs(server, "run", "--workers", workers)
    assert status == 2
    assert said.splitlines()[-1].startswith(f"minihs: signing key {key} cannot be made: ")
    assert "answers at" not in said
    assert "Traceback" not in said


async def test_a_registration_token_is_made_on_the_command_line(database_url: str, tmp_path: Path):
    async with running_server(database_url, tmp_path, registration="token") as server:

        async def register(name: str, token: str) -> int:
            auth = {"type": "m.login.registration_token", "token": token}
            body = {"username": name, "password": PASSWORD, "auth": auth}
            return (await server.request("POST", "/register", body)).status

        status, said = await minihs(server, "registration-token")
        token = said.splitlines()[-1]
        assert (status, len(token)) == (0, 16), said
        assert [await register(name, token) for name in ("alice", "bob")] == [200, 401]
        status, said = await minihs(
            server, "registration-token", "tea-party", "--uses", "0", "--days", "0.5"
        )
        assert (status, said.splitlines()[-1]) == (0, "tea-party")
        assert [await register(name, "tea-party") for name in ("bob", "carol")] == [200, 200]
        status, said = await minihs(server, "registration-token", "tea-party")
        assert (status, said.splitlines()[-1]) == (2, "minihs: There is that token already.")
        server.environment["MINIHS_REGISTRATION"] = "closed"
        status, said = await minihs(server, "registration-token", "later")
        assert status == 0
        assert "it is 'closed'" in said


async def test_a_user_is_made_on_the_command_line(database_url: str, tmp_path: Path):
    async with running_server(database_url, tmp_path) as server:
        register = ("register-user", "--password-stdin")
        status, said = await minihs(server, *register, "Alice", typed="short\n")
        assert status == 0
        assert "@alice:hs1 can log in now." in said
        assert "minihs: names of users are in lower case" in said
        assert "minihs: the password has fewer than 8 characters" in said
        status, said = await minihs(server, *register, "bob", typed="long enough\n")
        assert status == 0
        assert "@bob:hs1 can log in now." in said
        assert "minihs: " not in said
        for nothing in ("", "\n", "\r\n"):
            status, said = await minihs(server, *register, "carol", typed=nothing)
            assert (status, said) == (2, "minihs: The password must not be empty.\n")
        status, said = await minihs(server, *register, "carol", typed="long enough\r\n")
        assert status == 0
        body = {
            "type": "m.login.password", "password": "long enough",
            "identifier": {"type": "m.id.user", "user": "carol"},
        }  # fmt: skip
        assert (await server.request("POST", "/login", body)).status == 200


async def test_what_would_forge_or_lose_is_refused_at_the_start(database_url: str, tmp_path: Path):
    async with running_server(database_url, tmp_path) as server:
        _, token = await server.register("alice")
        assert (await server.request("POST", "/createRoom", {}, token=token)).status == 200
        await server.stop()
        assert "LOSE" in server.log.read_text()  # The database of tests does not flush.

        server.environment["MINIHS_SERVER_NAME"] = "other"
        for workers in ("1", "2"):
            refusal = await _refusal(server, "--workers", workers)
            assert refusal == "this database belongs to 'hs1', not to 'other'"
        server.environment["MINIHS_SERVER_NAME"] = "hs1"

        key = tmp_path / "signing.key"
        key.rename(tmp_path / "elsewhere")
        assert "signing.key is missing" in await _refusal(server)
        status, said = await minihs(server, "new-signing-key")
        assert (status, key.exists()) == (0, True), said
        assert "never overwritten" in (await minihs(server, "new-signing-key"))[1]
        await server.start()
        await server.stop()


@pytest.mark.spec("server-server-api#publishing-keys")
async def test_a_key_that_is_replaced_is_published_as_an_old_one(database_url: str, tmp_path: Path):
    async with running_server(database_url, tmp_path) as server:
        await server.stop()
        key = tmp_path / "signing.key"
        old = read_signing_key(key.read_text())
        status, said = await minihs(server, "new-signing-key", "--replace")
        assert status == 0, said
        new = read_signing_key(key.read_text())
        await server.start()
        published = (await server.request("GET", "/_matrix/key/v2/server")).json
        keys = {k.key_id: k for k in read_server_keys(published, ServerName("hs1"), 2**53).keys}
        assert keys.keys() == {old.key_id, new.key_id}
        assert (keys[new.key_id].is_old, keys[new.key_id].key) == (False, new.public_key)
        assert (keys[old.key_id].is_old, keys[old.key_id].key) == (True, old.public_key)
        await server.stop()

        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
        await connection.close()
        assert "run the newer minihs" in await _refusal(server)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE alembic_version SET version_num = '0000'", "Can't locate revision"),
        ("DROP TABLE alembic_version", "already exists"),
    ],
)
async def test_a_schema_that_is_not_ours_is_refused_in_a_sentence(
    database_url: str, tmp_path: Path, statement: str, told: str
):
    connection = await asyncpg.connect(database_url)
    await connection.execute(statement)
    await connection.close()
    server = Server(database_url, tmp_path)
    await server.session.close()
    status, said = await minihs(server, "run")
    assert status == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith("minihs: the database's schema cannot be brought to")
    assert told in last
    assert "Traceback" not in said


async def test_a_data_directory_that_is_none_is_refused_in_a_sentence(
    database_url: str, tmp_path: Path
):
    server = Server(database_url, tmp_path)
    await server.session.close()
    file = tmp_path / "file"
    file.touch()
    server.environment["MINIHS_DATA_DIR"] = str(file)
    assert await minihs(server, "run") == (
        1,
        f"minihs: data_dir {file} cannot be made: File exists\n",
    )
    status, said = await minihs(server, "doctor")
    assert status == 1
    assert f"error    disk: {file} cannot be written to" in said
    server.environment["MINIHS_DATA_DIR"] = str(tmp_path)
    server.environment["MINIHS_DATABASE_URL"] = "postgresql://minihs:secret@127.0.0.1:port/minihs"
    status, said = await minihs(server, "check-config")
    assert status == 2
    assert "database_url 'postgresql://minihs:(secret)@127.0.0.1:port/minihs'" in said
    server.environment["MINIHS_DATABASE_URL"] = "postgresql://minihs:tea/pot@127.0.0.1/minihs"
    status, said = await minihs(server, "check-config")
    assert status == 2
    assert "tea" not in said
    assert "%2F" in said


async def test_tests_that_are_terminated_leave_no_database_behind(tmp_path: Path):
    story = tmp_path / "test_story.py"
    story.write_text(
        "import asyncio, pathlib\n"
        "async def test_long(database_url):\n"
        f"    whole = pathlib.Path({str(tmp_path / 'whole')!r})\n"
        "    whole.write_text(database_url)\n"
        f"    whole.rename({str(tmp_path / 'dsn')!r})\n"
        "    await asyncio.Event().wait()\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest",
        "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), str(story),
        cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await until(lambda: process.returncode is not None or (tmp_path / "dsn").exists())
        assert process.returncode is None
        dsn = (tmp_path / "dsn").read_text()
        process.terminate()
        assert await process.wait() == 2  # Interrupted.
        with pytest.raises(OSError, match="No such file"):
            await asyncpg.connect(dsn)
    finally:
        if process.returncode is None:
            process.kill()


async def _refusal(server: Server, *options: str) -> str:
    """Return why `minihs run` would not start."""
    status, said = await minihs(server, "run", *options)
    assert status == 2, said
    return said.strip().splitlines()[-1].removeprefix("minihs: ")


async def test_a_database_with_another_encoding_is_refused(database_url: str, tmp_path: Path):
    name = "latin"
    connection = await asyncpg.connect(database_url)
    await connection.execute(f"DROP DATABASE IF EXISTS {name}")
    await connection.execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'"
    )
    try:
        database = re.match(r".*/(?P<name>\w+)\?", database_url)
        assert database is not None
        server = Server(database_url.replace(f"/{database['name']}?", f"/{name}?"), tmp_path)
        await server.session.close()
        assert "ENCODING 'UTF8'" in await _refusal(server)
        status, said = await minihs(server, "doctor")
        assert status == 1
        assert "the encoding is LATIN1" in said
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


@pytest.mark.durable_database
async def test_the_doctor_is_content_with_a_good_installation(database_url: str, tmp_path: Path):
    async with running_server(database_url, tmp_path) as server:
        await server.stop()
        status, said = await minihs(server, "doctor")
    assert status == 0, said
    assert "what is acknowledged is on disk" in said
    assert "error" not in said


async def test_nothing_is_left_of_a_process_tree(database_url: str, tmp_path: Path):
    """The helper that the other tests rely on sees a server's processes."""
    async with running_server(database_url, tmp_path, workers=2) as server:
        assert children_of(server.pid) == server.workers
        pids = [server.pid, *server.workers]
        assert all(map(is_alive, pids))
        await server.kill()
        await until(lambda: not any(map(is_alive, pids)))
