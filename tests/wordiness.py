"""A watch for the tests, in a module of its own: a teacher in another process imports it from there."""

from __future__ import annotations

from engine.errors import ConfigError
from engine.rows import Verdict

MOST_CHARS = 120
WORDY = Verdict("length", f"more than {MOST_CHARS} characters")


def break_down(text: str) -> Verdict | None:
    """Fail as a worker may that was told something impossible."""
    raise ConfigError("teacher.something: cannot be")


def stop_wordy(text: str) -> Verdict | None:
    """Reject a text as soon as it is too long."""
    return WORDY if len(text) > MOST_CHARS else None
