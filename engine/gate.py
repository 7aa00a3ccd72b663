"""The smoke gate: what the first rows say about the whole run, before hours are spent on it.

Promises one look at a rendered prompt and its answer, rates of what goes wrong, and a forecast; and a sentence that
stops the run where nearly everything is thrown away or fails. Knows rows and counts only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from engine.errors import PotstillError
from engine.filter import QUOTA
from engine.progress import clock
from engine.rows import Outcome, Prompt, Row

GATE_ROWS = 64
"""Rows that are looked at: with 64, a rate of 80% is known to about +-10 points."""
TOO_MANY = 0.8
"""Share of failed prompts, or of rows with one of `FAULTS`, above which a run is stopped: no task works like that."""
HARDLY_ANY = 0.05
"""Share of kept rows below which a run is stopped whatever the rest is lost to. Source: `CANDIDATES_PER_ROW`, a yield
below 5% is a mistake; a rule of your own may well reject more than 80%."""
LATE = 1.25
"""So much slower than its first answers is a run: the short ones come first, and the window runs empty at the end.
Measured on the echo backend: 1.0 with 20,000 prompts (half of the later ones need not be asked), 1.5 with 3,000."""
SHOWN_CHARS = 400
"""Longest piece of a prompt or an answer that is shown."""

FAULTS = {
    "truncated": "raise sampling.max_tokens or ask for shorter answers",
    "refused": "look at the prompt and at filter.phrases",
    "duplicate": "ask more different questions (more values in the slots) or raise sampling.temperature",
    "length": "raise filter.max_chars (and sampling.max_tokens), lower filter.min_chars, or ask for another length",
}
"""What is wrong with a row, and what to change."""
NO_FAULT = ("cap", QUOTA)
"""What rows are filed under that others had the places of."""


class Gate:
    """Looks at the first rows of a run.

    It counts rows that were never asked, too, so that it sees the same with early decisions and without. A row that was
    ended early is filed under what was seen first (too long, though it would have been a duplicate, or refused), so it
    is all faults together that stop a run. A row over a full cap or quota has no fault.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.kept: Counter[str] = Counter()
        """Kept rows by template."""
        self._asked = 0
        self._lost: Counter[str] = Counter()
        """Rows by what is wrong with them, each once."""
        self._reasons: dict[str, str] = {}
        self._tokens = 0
        self._bytes = 0
        self._failed = 0
        self._sample = ""

    def add(self, outcome: Outcome, row: Row, size: int, prompt: Prompt | None = None) -> bool:
        """Take one committed row of `size` bytes; say whether it was the last that the gate needs.

        Without its prompt, which a resumed run no longer has, it is counted and not shown.
        """
        self.rows += 1
        self._bytes += size
        self._tokens += row.cost
        self._asked += outcome != "skipped"
        if outcome == "kept":
            self.kept[row.template] += 1
        if outcome == "failed":
            self._failed += 1
            self._reasons.setdefault("failed", row.reason)
        elif fault := _fault(row):
            self._lost[fault] += 1
            self._reasons.setdefault(fault, row.reason)
        if outcome in ("kept", "rejected") and prompt is not None and not self._sample:
            self._sample = _sample(prompt, row.output)
        return self.rows == GATE_ROWS

    def report(self, *, total: int | None, seconds: float, answered: int | None = None, form: str = "") -> str:
        """Return what the first rows show and what they forecast for the `total` prompts of the whole run.

        `answered`: prompts that had an answer within these seconds, more than were looked at where some wait for an
        earlier one. `form`: what the teacher's chat template makes of a question.
        """
        names = [*FAULTS, *sorted(self._lost.keys() - FAULTS.keys())]
        rates = ", ".join(f"{name} {self._lost[name] / max(self.rows, 1):.0%}" for name in names)
        lines = [f"first {self.rows} rows, one of them:", self._sample] if self._sample else [f"first {self.rows} rows"]
        if form and self._sample:
            lines.append(f"the chat template makes of a question: {_short(form)}")
        lines.append(f"{rates} of {self.rows} rows")
        if self._failed:
            lines.append(f"{self._failed} prompts failed, the first one with: {self._reasons['failed']}")
        if total:
            scale = total / self.rows
            in_all_s = max(seconds, LATE * seconds * self._asked * scale / (answered or self.rows))
            lines.append(
                f"forecast for {total:,} prompts: {self._tokens * scale:,.0f} output tokens, "
                f"{self._bytes * scale / 1e6:,.1f} MB, {clock(in_all_s)} at this speed"
            )
        return "\n".join(lines)

    def objection(self) -> str | None:
        """Return why the run should not go on, or None."""
        if self._failed > TOO_MANY * self.rows:
            return (
                f"the smoke gate stopped the run: {self._failed} of the first {self.rows} prompts failed, the first "
                f"one with: {self._reasons['failed']}; mend that, or pass --no-gate to potstill generate"
            )
        faults = Counter({name: self._lost[name] for name in FAULTS})
        if faults.total() > TOO_MANY * self.rows:
            return self._stopped(faults)
        lost = self._lost + Counter(failed=self._failed)
        return self._stopped(lost) if lost.total() > (1 - HARDLY_ANY) * self.rows else None

    def _stopped(self, lost: Counter[str]) -> str:
        """Return the sentence for a run that loses these rows; the remedy is for what cost the most."""
        worst = lost.most_common(1)[0][0]
        shares = ", ".join(f"{name} {count / self.rows:.0%}" for name, count in lost.most_common() if count)
        reason = f"; the first for {worst}: {_short(self._reasons[worst])}" if self._reasons[worst] else ""
        mend = "mend that" if worst == "failed" else f"see what the rule {worst!r} of filter.rules rejects"
        return (
            f"the smoke gate stopped the run: {lost.total() / self.rows:.0%} of the first {self.rows} rows are lost "
            f"({shares}{reason}); {FAULTS.get(worst, mend)}, or pass --no-gate to potstill generate"
        )


def _fault(row: Row) -> str:
    """Return what is wrong with a row, or "".

    One that was cut off is lost even where no rule rejects it: `export` leaves it out.
    """
    if row.rule and row.rule not in NO_FAULT:
        return "refused" if row.rule == "phrase" else row.rule
    return "truncated" if row.finish_reason == "length" else ""


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
