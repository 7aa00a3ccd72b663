"""How many more rows the robust phrase match would drop: looked at in a sample, so that it costs next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine import config as configuration
from engine.canon import canon
from engine.phrases import PhraseGuard

FIRST_BATCHES, EVERY_BATCHES, MOST_ROWS = 4, 64, 64
"""The first batches are looked at, and then one in so many; of each at most so many kept rows."""


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

    @property
    def due(self) -> bool:
        """Say whether it is the next batch's turn; asked once a batch."""
        self._batches += 1
        return self._guard is not None and (self._batches <= FIRST_BATCHES or self._batches % EVERY_BATCHES == 0)

    def look(self, outputs: Sequence[str]) -> None:
        """Look at the outputs of the rows of a batch that were kept."""
        if self._guard is not None:
            outputs = outputs[:MOST_ROWS]
            self._rows += len(outputs)
            self._hits += sum(self._guard.find(output) is not None for output in outputs)

    def summary(self) -> dict[str, Any]:
        """Return what was found, under its name in the last line on stdout."""
        return {"robust_would_drop": {"rows": self._hits, "of": self._rows}} if self._guard else {}
