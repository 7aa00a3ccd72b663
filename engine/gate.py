"""The smoke gate: what the first rows say about the whole run, before hours are spent on it.

Promises one look at a rendered prompt and its answer, rates of what goes wrong, and a forecast; and a sentence that
stops the run where nearly everything is thrown away. Knows rows and counts only.
"""

from __future__ import annotations

from engine.rows import Row
from engine.steer import Committed

GATE_ROWS = 64
"""Rows that are looked at: with 64, a rate of 80% is known to about +-10 points."""
TOO_MANY = 0.8
"""Share of truncated, refused or repeated answers from which on a run is stopped: no task works like that."""
SHOWN_CHARS = 400
"""Longest piece of a prompt or an answer that is shown."""

REMEDIES = {
    "truncated": "raise sampling.max_tokens or ask for shorter answers",
    "refused": "look at the prompt and at filter.phrases",
    "duplicate": "give the slots more values or raise sampling.temperature",
}


class Gate:
    """Looks at the first rows of a run."""

    def __init__(self) -> None:
        self._rows = 0
        self._asked = 0
        self._bad = dict.fromkeys(REMEDIES, 0)
        self._tokens = 0
        self._bytes = 0
        self._sample = ""

    def add(self, committed: Committed, row: Row, size: int) -> bool:
        """Take one committed row of `size` bytes; say whether it was the last that the gate needs."""
        self._rows += 1
        self._bytes += size
        if committed.outcome in ("kept", "rejected"):
            self._asked += 1
            self._tokens += row.output_tokens
            self._bad["truncated"] += row.finish_reason == "length"
            self._bad["refused"] += row.rule == "phrase"
            self._bad["duplicate"] += row.rule == "duplicate"
            if not self._sample:
                self._sample = _sample(committed)
        return self._rows == GATE_ROWS

    def report(self, *, total: int | None, seconds: float) -> str:
        """Return what the first rows show and what they forecast for the whole run."""
        rates = ", ".join(f"{name} {self._rate(name):.0%}" for name in self._bad)
        lines = [f"first {self._rows} rows, one of them:", self._sample, f"{rates} of {self._asked} answers"]
        if total:
            scale = total / self._rows
            megabytes, hours = self._bytes * scale / 1e6, seconds * scale / 3600
            lines.append(
                f"forecast for {total:,} prompts: {self._tokens * scale:,.0f} output tokens, {megabytes:,.1f} MB, "
                f"{hours:.2f} h at this speed (the first rows are the slowest)"
            )
        return "\n".join(lines)

    def objection(self) -> str | None:
        """Return why the run should not go on, or None."""
        for name, remedy in REMEDIES.items():
            if self._asked and self._rate(name) > TOO_MANY:
                return (
                    f"the smoke gate stopped the run: {self._rate(name):.0%} of the first {self._asked} answers are "
                    f"{name}; {remedy}, or pass --no-gate to go on regardless"
                )
        return None

    def _rate(self, name: str) -> float:
        return self._bad[name] / self._asked if self._asked else 0.0


def _sample(committed: Committed) -> str:
    turns = [f"  {turn['role']}: {_short(turn['content'])}" for turn in committed.prompt.messages()]
    return "\n".join([*turns, f"  -> {_short(committed.completion.text)}"])


def _short(text: str) -> str:
    shown = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + " ..."
    return shown.replace("\n", "\\n")
