"""Near duplicates: rows that say nearly what an earlier row says.

MinHash signatures in a locality-sensitive index (rensa). A pair that the index proposes is checked against the
signatures' own estimate, so bands that match by chance reject nothing; a near pair that no band proposes is missed,
and such a row is kept (with 16 bands of 8 and a similarity of 0.8, 5% are missed; of 0.9, one in 10,000). It cannot
decide early. Remembers about 2 kB a row, and more with more permutations.
"""

from __future__ import annotations

import importlib
from typing import Any

from engine import rule_settings as settings
from engine.errors import ConfigError, MissingError
from engine.rules import Draft
from engine.rules.text import words_of

SEED = 42
"""Of the permutations: the same rows are near duplicates in every run."""


class NearDuplicateRule:
    """Rejects a row that is near an earlier one that it has let pass."""

    def __init__(self, chosen: settings.NearDuplicate) -> None:
        try:
            rensa: Any = importlib.import_module("rensa")
        except ImportError:
            raise MissingError("filter.rules: near_duplicate needs rensa; pip install rensa") from None
        if chosen.permutations % chosen.bands:
            raise ConfigError("filter.rules: near_duplicate.permutations must be a multiple of its bands")
        self._settings = chosen
        self._make: Any = rensa.RMinHash
        self._index: Any = rensa.RMinHashLSH(
            threshold=chosen.threshold, num_perm=chosen.permutations, num_bands=chosen.bands
        )
        self._signatures: list[Any] = []
        self._names: list[str] = []
        self._rows = 0

    def feed(self, partial: str) -> str | None:
        return None

    def finish(self, draft: Draft) -> str | None:
        self._rows += 1
        signature = self._make(num_perm=self._settings.permutations, seed=SEED)
        signature.update(self._shingles(draft))
        near = self._nearest(signature)
        if near is not None:
            number, similarity = near
            return f"near duplicate ({similarity:.2f}) of {self._names[number]}"
        self._index.insert(len(self._signatures), signature)
        self._signatures.append(signature)
        self._names.append(draft.id or repr(draft.output[:60]))
        return None

    def _nearest(self, signature: Any) -> tuple[int, float] | None:
        found = [(number, signature.jaccard(self._signatures[number])) for number in self._index.query(signature)]
        near = max(found, key=lambda item: (item[1], -item[0]), default=None)
        return near if near is not None and near[1] >= self._settings.threshold else None

    def _shingles(self, draft: Draft) -> list[str]:
        length = self._settings.words
        shingles: list[str] = []
        for field in self._settings.fields:
            words = words_of(getattr(draft, field))
            shingles += [" ".join(words[start : start + length]) for start in range(max(1, len(words) - length + 1))]
        return shingles
