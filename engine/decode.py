"""What decoding raises where something that is read back from disk is not what it should be."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""It is no JSON, or of another shape; it is not UTF-8; it is nested without end."""
