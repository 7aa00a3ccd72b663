"""How many more rows the robust phrase match would drop: looked at in a sample, so that it costs next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine import config as configuration
from engine.canon import canon
from engine.columns import Parsed
from engine.phrases import PhraseGuard

FIRST_BATCHES, EVERY_BATCHES = 4, 64
"""The first batches are looked at, and then one in so many."""


class RobustSample:
    """Counts, among rows that the substring match has kept, those that the robust match would drop."""

    def __init__(self, settings: configuration.Filter) -> None:
        self._batches = 0
        self._rows = 0
        self._hits = 0
        self._guard: PhraseGuard | None = None
        guard = PhraseGuard(settings)
        spelled = tuple(phrase for phrase in guard.spelled if canon(phrase).strip())
        if not guard.robust and spelled:
            changes: dict[str, Any] = {"phrases": spelled, "phrase_files": (), "phrase_match": "robust"}
            self._guard = PhraseGuard(msgspec.structs.replace(settings, **changes))

    def look(self, parsed: Parsed, kept: Sequence[bytes]) -> None:
        """Look at a batch, if it is its turn."""
        self._batches += 1
        if self._guard is None or (self._batches > FIRST_BATCHES and self._batches % EVERY_BATCHES):
            return
        chosen = set(map(id, kept))
        outputs = [row.output for line, row in zip(parsed.lines, parsed.rows, strict=True) if id(line) in chosen]
        self._rows += len(outputs)
        self._hits += sum(self._guard.find(output) is not None for output in outputs)

    def summary(self) -> dict[str, Any]:
        """Return what was found, under its name in the last line on stdout."""
        return {"robust_would_drop": {"rows": self._hits, "of": self._rows}} if self._guard else {}
