"""Marks of joins that are under way: seen by every process, and never left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from minihs.storage import join_marks
from minihs.storage.database import Database
from minihs.storage.join_marks import JoinMarks, is_marked
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOM = "!room:hs1"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """The database of several processes."""
    db = await Database.connect(database_url)
    yield db
    await db.close()


async def test_a_room_is_marked_until_its_last_join_has_ended(db: Database):
    here, elsewhere = JoinMarks(db), JoinMarks(db)
    try:
        async with here.marked(ROOM), elsewhere.marked("!other:hs1"):
            assert await is_marked(db, ROOM)
            async with elsewhere.marked(ROOM), here.marked(ROOM):
                assert await is_marked(db, ROOM)
            assert await is_marked(db, ROOM)
        assert not await is_marked(db, ROOM)
        assert not await is_marked(db, "!other:hs1")
    finally:
        await asyncio.gather(here.close(), elsewhere.close())


async def test_a_mark_that_cannot_be_taken_back_ends_with_its_connection(
    db: Database, monkeypatch: pytest.MonkeyPatch
):
    marks = JoinMarks(db)
    try:
        with monkeypatch.context() as patch:
            cancelled = "SELECT $1::text, pg_cancel_backend(pg_backend_pid()), pg_sleep(30)"
            patch.setattr(join_marks, "UNMARK", cancelled)
            async with marks.marked(ROOM):
                assert await is_marked(db, ROOM)

        async def is_unmarked() -> bool:
            return not await is_marked(db, ROOM)

        await until(is_unmarked)
        async with marks.marked(ROOM):
            assert await is_marked(db, ROOM)
    finally:
        await marks.close()
