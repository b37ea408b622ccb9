"""SQL text with a name: registered, so that one test can PREPARE every statement."""

from __future__ import annotations

STATEMENTS: dict[str, str] = {}


def statement(name: str, text: str) -> str:
    """Register a statement and return its text."""
    if name in STATEMENTS:
        raise ValueError(f"two statements are named {name}")
    STATEMENTS[name] = text
    return text
