"""The tests' own databases: durable where a test asks for it, apart from each other always."""

from __future__ import annotations

import asyncpg
import pytest


async def settings(dsn: str) -> list[str]:
    connection = await asyncpg.connect(dsn)
    try:
        return [await connection.fetchval(f"SHOW {s}") for s in ("fsync", "synchronous_commit")]
    finally:
        await connection.close()


@pytest.mark.durable_database
async def test_a_test_about_durability_gets_a_server_that_flushes(database_url: str) -> None:
    assert await settings(database_url) == ["on", "on"]


async def test_other_tests_get_a_fast_one(database_url: str) -> None:
    assert await settings(database_url) == ["off", "off"]


@pytest.mark.parametrize("run", [1, 2])
async def test_each_run_finds_an_empty_database(database_url: str, run: int) -> None:
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT to_regclass('left_behind')") is None
    await connection.execute("CREATE TABLE left_behind ()")
    await connection.close()
