"""Twins: prompts whose rows would be duplicates of an earlier prompt's row, whatever the teacher says.

A twin waits for the end of the first that asks the same; it is asked only if that one had no answer. Promises that one
is skipped only where the filter has seen its key, or a greedy teacher's answer to its question. Knows prompts and the
filter's keys; nothing of order, places or teachers.
"""

from __future__ import annotations

from engine.filter import Filter
from engine.places import Entry
from engine.rows import Outcome, Prompt, Verdict, hash_id
from engine.seen import SeenKeys

GREEDY = Verdict("duplicate", "the same question was asked before, and the teacher is greedy")
KEYED = Verdict("duplicate", "the same question was asked before, and duplicates are told by the question alone")


class Twins:
    """Who asks what an earlier prompt asks."""

    def __init__(self, rules: Filter, *, greedy: bool) -> None:
        """`greedy`: the teacher answers a question in one way only."""
        early = rules.settings.early
        self._keyed = early and "output" not in rules.settings.dedup_on
        self.greedy = early and greedy and not self._keyed
        """Whether `remember` must be told of the prompts that an earlier part of the run has asked."""
        self._filter = rules
        self._answered = SeenKeys()
        self._first: dict[bytes, Entry] = {}

    def remember(self, prompt: Prompt) -> None:
        """Note a prompt as answered."""
        if self.greedy:
            self._answered.add(_question(prompt))

    def settle(self, entry: Entry) -> bool:
        """Say whether a prompt is a twin; it is skipped, or waits for the first to be."""
        if not (self._keyed or self.greedy):
            return False
        prompt = entry.prompt
        entry.question = self._filter.key(prompt.instruction, prompt.input, "") if self._keyed else _question(prompt)
        if self._known(entry.question):
            self._skip(entry)
            return True
        first = self._first.setdefault(entry.question, entry)
        if first is entry:
            return False
        first.twins.append(entry)
        return True

    def end(self, entry: Entry, outcome: Outcome) -> Entry | None:
        """Settle who waited for this prompt, which is committed now; return one that is to be asked in its place."""
        if not entry.question or self._first.get(entry.question) is not entry:
            return None
        del self._first[entry.question]
        if self.greedy and outcome != "failed":
            self._answered.add(entry.question)
        if self._known(entry.question):
            for twin in entry.twins:
                self._skip(twin)
        elif entry.twins:
            first, *first.twins = entry.twins
            self._first[entry.question] = first
            return first
        return None

    def clear(self) -> None:
        """Forget who waits."""
        self._first.clear()

    def _known(self, question: bytes) -> bool:
        return question in (self._filter.seen if self._keyed else self._answered)

    def _skip(self, entry: Entry) -> None:
        entry.skip = KEYED if self._keyed else GREEDY


def _question(prompt: Prompt) -> bytes:
    """Return the hash of what the teacher sees, and of how it is split: that decides what a duplicate is."""
    turns = [text for turn in prompt.prefix for text in (turn.role, turn.content)]
    asked = (prompt.instruction, prompt.input, str(prompt.max_tokens), str(prompt.constraint or ""))
    return bytes.fromhex(hash_id(prompt.template, *turns, *asked))
