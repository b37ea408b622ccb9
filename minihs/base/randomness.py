"""The only source of chance: tokens, identifiers, samples.

In production it draws from the operating system; a test gives a seed and gets the same run again.
"""

from __future__ import annotations

import random
import string

ALPHANUMERIC = string.ascii_letters + string.digits


class Randomness:
    """Random tokens and identifiers, reproducible when made with a seed."""

    def __init__(self, seed: int | None = None) -> None:
        self._source: random.Random = (
            random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311  # tests
        )

    def token(self, length: int) -> str:
        """Return `length` random letters and digits: 5.95 bits of entropy each."""
        return "".join(self._source.choices(ALPHANUMERIC, k=length))

    def letters(self, length: int) -> str:
        """Return `length` random upper-case letters, for identifiers that people read."""
        return "".join(self._source.choices(string.ascii_uppercase, k=length))

    def bytes(self, length: int) -> bytes:
        """Return `length` random bytes."""
        return self._source.randbytes(length)

    def between(self, low: int, high: int) -> int:
        """Return an integer of `low`..`high`, both ends included."""
        return self._source.randint(low, high)
