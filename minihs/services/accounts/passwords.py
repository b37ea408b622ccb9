"""Hashing passwords with argon2id, in two threads of their own.

A hash takes some 30 ms of one core and 19 MiB of memory: two at a time leave the event loop its
share, and a queue of bounded length turns a flood of logins into `M_LIMIT_EXCEEDED`.
"""

from __future__ import annotations

import asyncio
import functools
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from minihs.base.errors import InvalidParam, LimitExceeded, WeakPassword
from minihs.base.limits import PASSWORD_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from argon2 import PasswordHasher

    from minihs.base.config import Config

T = TypeVar("T")

THREADS = 2
QUEUE_MAX = 200
RETRY_AFTER_MS = 5_000

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
_queued = 0


def check_acceptable(password: str) -> None:
    """Refuse what cannot become a password.

    Raises:
        WeakPassword: it is empty.
        InvalidParam: it is longer than we are willing to hash.
    """
    if not password:
        raise WeakPassword("The password must not be empty.")
    if _bytes_of(password) is None:
        raise InvalidParam(f"The password may have {PASSWORD_BYTES_MAX} bytes.")


async def hash_password(config: Config, password: str) -> str:
    """Return the argon2id hash of an acceptable password, as a PHC string.

    Raises:
        LimitExceeded: too many hashes are waited for.
    """
    data = _bytes_of(password)
    if data is None:
        raise ValueError("the password was not checked")
    return await _in_thread(lambda: _hasher(config).hash(data))


async def verify_password(config: Config, password_hash: str | None, password: str) -> bool:
    """Return whether a password is the one that was hashed.

    Without a hash (no such user, no password) the same work is done for nothing, so that the time
    taken does not tell which users exist.

    Raises:
        LimitExceeded: too many hashes are waited for.
    """
    data = _bytes_of(password)

    def verify() -> bool:
        from argon2.exceptions import VerificationError  # noqa: PLC0415  (as in _hasher_for)

        hasher = _hasher(config)
        if password_hash is None or data is None:
            hasher.hash(b"nobody's")
            return False
        try:
            return hasher.verify(password_hash, data)
        except VerificationError:
            return False

    return await _in_thread(verify)


def is_outdated(config: Config, password_hash: str) -> bool:
    """Return whether a hash was made with other parameters than the configured ones."""
    return _hasher(config).check_needs_rehash(password_hash)


def _bytes_of(password: str) -> bytes | None:
    """Return what is hashed; None if it is too long.

    Another keyboard may type the same letters as other code points, so there is one form of them.
    """
    if len(password) > PASSWORD_BYTES_MAX:
        return None
    data = unicodedata.normalize("NFKC", password).encode()
    return data if len(data) <= PASSWORD_BYTES_MAX else None


def _hasher(config: Config) -> PasswordHasher:
    return _hasher_for(config.password_hash_memory_kib, config.password_hash_iterations)


@functools.cache
def _hasher_for(memory_kib: int, iterations: int) -> PasswordHasher:
    # Imported when first needed: an idle server has never seen a password.
    from argon2 import PasswordHasher  # noqa: PLC0415

    return PasswordHasher(time_cost=iterations, memory_cost=memory_kib, parallelism=1)


async def _in_thread(work: Callable[[], T]) -> T:
    global _queued  # noqa: PLW0603  # how full the process's queue is
    if _queued >= QUEUE_MAX:
        raise LimitExceeded(RETRY_AFTER_MS)
    _queued += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_threads, work)
    finally:
        _queued -= 1
