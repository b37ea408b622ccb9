"""Logs: what an entry looks like, and that no secret is in it."""

from __future__ import annotations

import io
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minihs.base import logs

SECRET = "s3cr3t-v4lu3"


@pytest.fixture
def log() -> io.StringIO:
    """The root logger's output, configured as the server does it."""
    stream = io.StringIO()
    logs.configure("info", stream)
    return stream


@pytest.mark.parametrize(
    "text",
    [
        f"GET /_matrix/client/v3/sync?since=s1&access_token={SECRET}&timeout=0",
        f"Authorization: Bearer {SECRET}",
        f"{{'password': '{SECRET} with spaces', 'user': 'alice'}}",
        f'{{"refresh_token":"{SECRET}","expires_in_ms":1}}',
        f'{{"auth":{{"type":"m.login.password","password":"a\\"{SECRET}"}}}}',
        f'\'{{\\"new_password\\": \\"x {SECRET}\\"}}\'',
        f'{{"password": "{SECRET}',
        f"registration_shared_secret={SECRET}",
        f"postgresql://minihs:{SECRET}@db.example.org:5432/minihs",
        f"mac: {SECRET}",
        f"MSISDN client_secret={SECRET}",
        f'b\'{{"token": "{SECRET}"}}\'',
        "ed25519 a_AbCd s3cr3t0v4lu3AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        f"POST /_matrix/client/v1/delayed_events/{SECRET}/restart",
    ],
    ids=range(14),
)
def test_C10_secrets_do_not_reach_the_log(text: str, log: io.StringIO):
    error = ValueError(text)
    logging.getLogger("minihs.test").error("failed with %s", text, exc_info=error)
    assert log.getvalue().count("(redacted)") >= 2
    assert "s3cr3t" not in log.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "the token of a sync is s123",
        "GET /_matrix/client/v3/sync?since=s1",
        "https://hs1/x@y",
        "a=b",
    ],
)
def test_what_is_no_secret_stays(text: str):
    assert logs.redacted(text) == text


@given(st.text(max_size=200))
def test_what_has_been_redacted_stays_as_it_is(text: str):
    once = logs.redacted(text)
    assert logs.redacted(once) == once


def test_long_lines_are_redacted_in_no_time():
    began = time.process_time()
    for unit in ("a.", "a-", "token", "\\", '"', "Bearer ", "x://a:", 'password=\\"'):
        logs.redacted(unit * 20_000)
    assert time.process_time() - began < 10  # Of a line's squared length it would be minutes.


def test_an_entry_has_its_time_and_its_request(log: io.StringIO):
    logging.getLogger("minihs.test").info("before")
    token = logs.request.set(("GET", "/_matrix/client/v3/sync?access_token=abc"))
    try:
        logging.getLogger("minihs.test").warning("during")
    finally:
        logs.request.reset(token)
    before, during = log.getvalue().splitlines()
    assert before[:2] == "20"
    assert before[23:] == "Z INFO minihs.test: before"
    assert during.endswith("WARNING minihs.test [GET /_matrix/client/v3/sync]: during")
