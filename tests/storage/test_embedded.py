"""The PostgreSQL of our own: made once, shared by processes, found again after a crash."""

from __future__ import annotations

import os
import signal
import stat
from typing import TYPE_CHECKING

import asyncpg
import pytest
import uvloop

from minihs.base.clock import SystemClock
from minihs.base.tasks import TaskOwner
from minihs.storage import embedded
from minihs.storage.embedded import EmbeddedPostgresError, start_embedded
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


async def value(dsn: str, query: str) -> object:
    """Run one query on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_data_survives_a_stop_and_settings_are_durable(data_dir: Path) -> None:
    postgres = await start_embedded(data_dir)
    await value(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    for setting in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
        assert await value(postgres.dsn, f"SHOW {setting}") == "on"
    await postgres.stop()
    assert not await postgres.cluster.answers()

    again = await start_embedded(data_dir)
    assert again.dsn == postgres.dsn
    assert await value(again.dsn, "SELECT answer FROM kept") == 42
    await again.stop()


def test_it_starts_and_stops_on_the_loop_that_the_server_runs_on(data_dir: Path) -> None:
    async def answer() -> object:
        postgres = await start_embedded(data_dir)
        try:
            return await value(postgres.dsn, "SELECT 1")
        finally:
            await postgres.stop()

    assert uvloop.run(answer()) == 1


async def test_the_environment_of_other_programs_does_not_mislead(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGDATA"):
        monkeypatch.setenv(variable, "1")
    postgres = await start_embedded(data_dir)
    assert await value(postgres.dsn, "SELECT 1") == 1
    await postgres.stop()


async def test_nobody_else_can_reach_the_data_or_the_socket(data_dir: Path) -> None:
    postgres = await start_embedded(data_dir)
    assert stat.S_IMODE(postgres.cluster.data.stat().st_mode) == 0o700
    assert postgres.cluster.socket_directory == postgres.cluster.data
    assert await value(postgres.dsn, "SHOW listen_addresses") == ""
    await postgres.stop()


async def test_the_server_stops_only_when_the_last_user_lets_go(data_dir: Path) -> None:
    first = await start_embedded(data_dir)
    second = await start_embedded(data_dir)
    assert second.dsn == first.dsn
    await first.stop()
    assert await value(second.dsn, "SELECT 1") == 1
    await second.stop()
    assert not await second.cluster.answers()


async def test_a_server_left_by_a_killed_process_is_attached_to(data_dir: Path) -> None:
    first = await start_embedded(data_dir)
    pid = (first.cluster.data / "postmaster.pid").read_text().split()[0]
    os.close(first.users_fd)  # All that the kernel does for a killed process.

    second = await start_embedded(data_dir)
    assert (second.cluster.data / "postmaster.pid").read_text().split()[0] == pid
    await second.stop()
    assert not await second.cluster.answers()


async def test_a_killed_server_recovers_what_was_committed(data_dir: Path) -> None:
    first = await start_embedded(data_dir)
    await value(first.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    pid = int((first.cluster.data / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    os.close(first.users_fd)

    second = await start_embedded(data_dir)
    assert await value(second.dsn, "SELECT answer FROM kept") == 42
    await second.stop()


async def test_nobody_who_tidies_up_dev_shm_takes_its_memory_away(data_dir: Path) -> None:
    postgres = await start_embedded(data_dir)
    assert await value(postgres.dsn, "SHOW dynamic_shared_memory_type") == "mmap"
    await postgres.stop()


async def test_a_server_that_lets_nobody_in_is_told_in_a_sentence(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = await start_embedded(data_dir)

    async def refuse(_dsn: str) -> None:
        raise asyncpg.UndefinedFileError("could not open shared memory segment")

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg, "connect", refuse)
        with pytest.raises(EmbeddedPostgresError, match=r"lets nobody in: could not open .*\.pid"):
            await start_embedded(data_dir)
    await postgres.stop()


async def test_a_server_that_ends_is_started_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "WATCH_MS", 10)
    postgres = await start_embedded(data_dir)
    tasks = TaskOwner(SystemClock())
    tasks.keep("embedded-postgres", postgres.watch)
    await value(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    pid = (postgres.cluster.data / "postmaster.pid").read_text().split()[0]
    os.kill(int(pid), signal.SIGKILL)

    async def another_answers() -> bool:
        if not await postgres.cluster.answers():
            return False
        return (postgres.cluster.data / "postmaster.pid").read_text().split()[0] != pid

    await until(another_answers)
    assert await value(postgres.dsn, "SELECT answer FROM kept") == 42
    await tasks.close()
    await postgres.stop()
    assert not await postgres.cluster.answers()


async def test_a_lock_file_naming_a_process_that_is_not_postgres_is_ignored(data_dir: Path) -> None:
    first = await start_embedded(data_dir)
    lock = first.cluster.data / "postmaster.pid"
    before = lock.read_text().split("\n")
    await first.stop()
    before[0] = "1"  # As after a container's restart: the number is somebody else's now.
    lock.write_text("\n".join(before))
    lock.chmod(0o644)

    second = await start_embedded(data_dir)
    assert lock.read_text().split()[0] not in ("1", str(os.getpid()))
    await second.stop()


async def test_a_path_too_long_for_a_socket_gets_a_private_directory(data_dir: Path) -> None:
    deep = data_dir / ("d" * 60) / ("e" * 60)
    postgres = await start_embedded(deep)
    directory = postgres.cluster.socket_directory
    try:
        assert directory != postgres.cluster.data
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert await value(postgres.dsn, "SELECT 1") == 1
    finally:
        await postgres.stop()
        directory.rmdir()


async def test_a_server_that_will_not_start_says_why(data_dir: Path) -> None:
    postgres = await start_embedded(data_dir)
    await postgres.stop()
    (postgres.cluster.data / "postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        await start_embedded(data_dir)


async def test_without_the_extra_the_message_says_what_to_do(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EmbeddedPostgresError, match=r"MINIHS_DATABASE_URL.*minihs\[embedded\]"):
        await start_embedded(data_dir)
