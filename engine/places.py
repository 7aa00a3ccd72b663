"""Places: who may be asked while a template has a limit, who waits for a verdict, and who need not be asked.

A limit is a cap of the filter or a quota of the run. A prompt takes a place of each limit that it falls under; where
kept rows and rows on their way would fill one, it waits. Knows nothing of order, of questions or of the teacher.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from engine.filter import Filter
from engine.rows import Completion, Prompt, Verdict

Limit = tuple[str, str]
"""`cap` or `quota`, and what it counts rows under."""


class Entry:
    """A prompt on its way."""

    __slots__ = ("cap_key", "completion", "held", "prompt", "question", "reserves", "skip", "twins", "waited")

    def __init__(self, prompt: Prompt, cap_key: str) -> None:
        self.prompt = prompt
        self.cap_key = cap_key
        self.question = b""
        self.reserves = False
        self.held = False
        self.waited = False
        self.completion: Completion | None = None
        self.skip: Verdict | None = None
        self.twins: list[Entry] = []

    @property
    def final(self) -> bool:
        return self.completion is not None or self.skip is not None


class Places:
    """The places of all limits; caps are only watched where `caps` says that this is sound."""

    def __init__(self, rules: Filter, *, caps: bool) -> None:
        self._filter = rules
        self._caps = caps
        self._reserved: Counter[Limit] = Counter()
        self._held: dict[Limit, deque[Entry]] = {}

    @property
    def wanted(self) -> bool:
        """Say whether some quota has a place for a row that is not on its way yet; True where there are no quotas."""
        quotas = self._filter.quotas
        return not quotas or any(self._free(("quota", name)) > 0 for name in quotas)

    def admit(self, entry: Entry) -> bool:
        """Give an entry its places and say so; else it waits, or is settled as one that need not be asked."""
        entry.skip = self._full(entry)
        if entry.skip is not None:
            return False
        limits = list(self._limits(entry))
        for limit in limits:
            if self._free(limit) < 1:
                self._held.setdefault(limit, deque()).append(entry)
                entry.held = entry.waited = True
                return False
        self._reserve(entry, limits)
        return True

    def force(self, entry: Entry) -> bool:
        """Let an entry go ahead that waits for rows which themselves wait for it; say whether it must be asked."""
        entry.held = False
        entry.skip = self._full(entry)
        if entry.skip is None:
            self._reserve(entry, list(self._limits(entry)))
        return entry.skip is None

    def release(self, entry: Entry) -> list[Entry]:
        """Take back the places of a row that is not kept; return those who waited for them and go ahead now."""
        if not entry.reserves:
            return []
        self._give_back(entry)
        ahead: list[Entry] = []
        for limit in self._limits(entry):
            waiting = self._held.get(limit)
            while waiting and self._free(limit) > 0:
                ahead += self._go_on(waiting.popleft())
            if waiting is not None and not waiting:
                del self._held[limit]
        return ahead

    def keep(self, entry: Entry) -> None:
        """Turn the places of an entry into those of a kept row, which the filter counts; settle who waits in vain."""
        self._give_back(entry)
        for limit in self._limits(entry):
            if self._free(limit) + self._reserved[limit] < 1:
                for waiting in self._held.pop(limit, ()):
                    if waiting.held:
                        waiting.held = False
                        waiting.skip = self._full(waiting)

    def clear(self) -> None:
        """Forget all entries."""
        self._held.clear()
        self._reserved.clear()

    def _go_on(self, entry: Entry) -> list[Entry]:
        if not entry.held:
            return []
        entry.held = False
        return [entry] if self.admit(entry) else []

    def _limits(self, entry: Entry) -> Iterator[Limit]:
        if self._caps:
            yield "cap", entry.cap_key
        if entry.prompt.template in self._filter.quotas:
            yield "quota", entry.prompt.template

    def _free(self, limit: Limit) -> int:
        """Places that neither a kept row has nor a row on its way may take."""
        kind, key = limit
        if kind == "cap":
            left = self._filter.settings.cap_per_template - self._filter.caps[key]
        else:
            left = self._filter.quotas[key] - self._filter.of_quota[key]
        return left - self._reserved[limit]

    def _full(self, entry: Entry) -> Verdict | None:
        verdict = self._filter.quota(entry.prompt.template)
        if verdict is None and self._caps and self._filter.full(entry.cap_key):
            return Verdict("cap", self._filter.cap_reason(entry.cap_key))
        return verdict

    def _reserve(self, entry: Entry, limits: list[Limit]) -> None:
        entry.reserves = bool(limits)
        self._reserved.update(limits)

    def _give_back(self, entry: Entry) -> None:
        if entry.reserves:
            entry.reserves = False
            for limit in self._limits(entry):
                self._reserved[limit] -= 1
                if not self._reserved[limit]:
                    del self._reserved[limit]
