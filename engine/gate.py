"""The smoke gate: what the first rows say about the whole run, before hours are spent on it.

Promises one look at a rendered prompt and its answer, rates of what goes wrong, and a forecast; and a sentence that
stops the run where nearly everything is thrown away or fails. Knows rows and counts only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from engine.errors import PotstillError
from engine.progress import clock
from engine.rows import Outcome, Prompt, Row

GATE_ROWS = 64
"""Rows that are looked at: with 64, a rate of 80% is known to about +-10 points."""
TOO_MANY = 0.8
"""Share of truncated, refused, repeated or failed answers above which a run is stopped: no task works like that."""
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
        self.rows = 0
        self.kept: Counter[str] = Counter()
        """Kept rows by template."""
        self._asked = 0
        self._bad = dict.fromkeys(REMEDIES, 0)
        self._tokens = 0
        self._bytes = 0
        self._failed = 0
        self._failure = ""
        self._sample = ""

    def add(self, outcome: Outcome, row: Row, size: int, prompt: Prompt | None = None) -> bool:
        """Take one committed row of `size` bytes; say whether it was the last that the gate needs.

        Without its prompt, which a resumed run no longer has, it is counted and not shown.
        """
        self.rows += 1
        self._bytes += size
        self._tokens += row.cost
        if outcome == "kept":
            self.kept[row.template] += 1
        if outcome in ("kept", "rejected"):
            self._asked += 1
            self._bad["truncated"] += row.finish_reason == "length"
            self._bad["refused"] += row.rule == "phrase"
            self._bad["duplicate"] += row.rule == "duplicate"
            if prompt is not None and not self._sample:
                self._sample = _sample(prompt, row.output)
        elif outcome == "failed":
            self._failed += 1
            self._failure = self._failure or row.reason
        return self.rows == GATE_ROWS

    def report(self, *, total: int | None, seconds: float, form: str = "") -> str:
        """Return what the first rows show and what they forecast for the `total` prompts of the whole run.

        `form`: what the teacher's chat template makes of a question.
        """
        rates = ", ".join(f"{name} {self._rate(name):.0%}" for name in self._bad)
        lines = [f"first {self.rows} rows, one of them:", self._sample] if self._sample else [f"first {self.rows} rows"]
        if form and self._sample:
            lines.append(f"the chat template makes of a question: {_short(form)}")
        lines.append(f"{rates} of {self._asked} answers")
        if self._failed:
            lines.append(f"{self._failed} prompts failed, the first one with: {self._failure}")
        if total:
            scale = total / self.rows
            megabytes, left_s = self._bytes * scale / 1e6, seconds * scale
            lines.append(
                f"forecast for {total:,} prompts: {self._tokens * scale:,.0f} output tokens, {megabytes:,.1f} MB, "
                f"{clock(left_s)} at this speed (the first rows are the slowest)"
            )
        return "\n".join(lines)

    def objection(self) -> str | None:
        """Return why the run should not go on, or None."""
        answered = self._asked + self._failed
        if self._failed > TOO_MANY * answered:
            return (
                f"the smoke gate stopped the run: {self._failed} of the first {answered} prompts failed, the first one "
                f"with: {self._failure}; mend that, or pass --no-gate to potstill generate"
            )
        for name, remedy in REMEDIES.items():
            if self._asked and self._rate(name) > TOO_MANY:
                return (
                    f"the smoke gate stopped the run: {self._rate(name):.0%} of the first {self._asked} answers are "
                    f"{name}; {remedy}, or pass --no-gate to potstill generate"
                )
        return None

    def _rate(self, name: str) -> float:
        return self._bad[name] / self._asked if self._asked else 0.0


def gate_after(rows: Iterable[tuple[Outcome, Row]]) -> Gate | None:
    """Return the gate of a run with these rows, or None where they are all that it needs.

    Raises: PotstillError where they are, and it objects: a command that is only repeated is stopped again.
    """
    gate = Gate()
    for outcome, row in rows:
        if gate.add(outcome, row, len(msgspec.json.encode(row))):
            objection = gate.objection()
            if objection is not None:
                raise PotstillError(objection)
            return None
    return gate


def _sample(prompt: Prompt, answer: str) -> str:
    turns = [f"  {turn['role']}: {_short(turn['content'])}" for turn in prompt.messages()]
    return "\n".join([*turns, f"  -> {_short(answer)}"])


def _short(text: str) -> str:
    shown = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + " ..."
    return shown.replace("\n", "\\n")
