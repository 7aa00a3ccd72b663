"""One line of `potstill doctor`."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """What was looked at, how it stands, and what to do where it does not stand well."""

    check: str
    level: Level
    says: str
    do: str = ""

    def line(self) -> str:
        """Return it as a person reads it."""
        advice = f"; {self.do}" if self.do else ""
        return f"{self.level:<5} {self.check:<12} {self.says}{advice}"
