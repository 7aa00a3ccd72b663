"""Steering: which prompt goes to the teacher next, which never does, and in which order rows are committed.

Promises that rows are committed in prompt order, and that the kept rows are the same with early decisions on or
off: a prompt is skipped or held back only where the finished row could not have been kept. Pure and synchronous:
no I/O, no clock, no teacher. `generate` drives it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

import msgspec

from engine.filter import Filter
from engine.rows import Completion, Outcome, Prompt, Verdict, hash_id

NOT_ASKED = Completion(id="", text="", finish_reason="")
"""What a prompt that never went to the teacher has in place of a completion."""


class Committed(msgspec.Struct, frozen=True):
    """A prompt that has reached its end."""

    prompt: Prompt
    completion: Completion
    verdict: Verdict
    outcome: Outcome


class _Entry:
    """A prompt on its way."""

    __slots__ = ("cap_key", "completion", "prompt", "question", "reserves", "skip", "twins")

    def __init__(self, prompt: Prompt, cap_key: str) -> None:
        self.prompt = prompt
        self.cap_key = cap_key
        self.question = ""
        self.reserves = False
        self.completion: Completion | None = None
        self.skip: Verdict | None = None
        self.twins: list[_Entry] = []

    @property
    def final(self) -> bool:
        return self.completion is not None or self.skip is not None


class Steering:
    """Takes prompts in order, hands out those worth asking, takes completions in any order, commits in order."""

    def __init__(
        self, rules: Filter, *, greedy: bool, disjoint: bool, target: int | None = None, kept: int = 0
    ) -> None:
        settings = rules.settings
        self.filter = rules
        self.kept = kept
        self._target = target
        self._greedy = settings.early and greedy
        self._watch_caps = (
            settings.early
            and settings.cap_per_template > 0
            and "instruction" in settings.dedup_on
            and (settings.cap_key == "prefix" or disjoint)
        )
        self._order: deque[_Entry] = deque()
        self._ready: deque[_Entry] = deque()
        self._held: dict[str, deque[_Entry]] = {}
        self._reserved: Counter[str] = Counter()
        self._entries: dict[str, _Entry] = {}
        self._questions: dict[str, _Entry] = {}
        self._answered: set[str] = set()

    @property
    def uncommitted(self) -> int:
        """Prompts that were offered and have not reached their end."""
        return len(self._order)

    @property
    def in_flight(self) -> int:
        """Prompts that were handed out and have not come back."""
        return len(self._entries)

    @property
    def done(self) -> bool:
        """Say whether so many rows are kept as were wanted."""
        return self._target is not None and self.kept >= self._target

    def requeue(self) -> list[str]:
        """Put the prompts in flight back to be asked again, after the teacher was lost; return their ids."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.prompt.index)
        self._ready.extendleft(reversed(entries))
        self._entries.clear()
        return [entry.prompt.id for entry in entries]

    def remember(self, prompt: Prompt) -> None:
        """Note a prompt that an earlier part of this run has committed as answered."""
        if self._greedy:
            self._answered.add(_question(prompt))

    def offer(self, prompt: Prompt) -> None:
        """Take the next prompt in order, and decide whether it is asked, held back or skipped."""
        entry = _Entry(prompt, self.filter.cap_key(prompt.instruction, prompt.template))
        self._order.append(entry)
        if self._greedy and self._is_twin(entry):
            return
        self._admit(entry)

    def take(self, limit: int) -> list[Prompt]:
        """Hand out at most `limit` prompts for the teacher, in order."""
        taken: list[Prompt] = []
        while self._ready and len(taken) < limit:
            entry = self._ready.popleft()
            if entry.skip is None:
                self._entries[entry.prompt.id] = entry
                taken.append(entry.prompt)
        return taken

    @property
    def ready(self) -> int:
        """Prompts that wait to be handed out."""
        return len(self._ready)

    def finish(self, completion: Completion) -> None:
        """Take a completion; one for a prompt that is not in flight (aborted, answered before) is ignored."""
        entry = self._entries.pop(completion.id, None)
        if entry is None:
            return
        entry.completion = completion
        hopeless = bool(completion.error) or completion.verdict is not None
        if hopeless or self.filter.content.judge(completion.text) is not None:
            self._release(entry)

    def commit(self) -> Iterator[Committed]:
        """Yield, in prompt order, every prompt whose end is known; stops where the target is reached."""
        while self._order and self._order[0].final and not self.done:
            entry = self._order.popleft()
            yield self._commit(entry)

    def drop(self) -> list[str]:
        """Forget everything that is not committed and return the ids in flight, to be aborted."""
        ids = list(self._entries)
        for queue in (self._order, self._ready):
            queue.clear()
        self._held.clear()
        self._entries.clear()
        self._reserved.clear()
        return ids

    def _is_twin(self, entry: _Entry) -> bool:
        """Settle a question that was asked before: a greedy teacher would give the same answer."""
        entry.question = _question(entry.prompt)
        if entry.question in self._answered:
            entry.skip = _TWIN
            return True
        first = self._questions.setdefault(entry.question, entry)
        if first is entry:
            return False
        first.twins.append(entry)
        return True

    def _admit(self, entry: _Entry) -> None:
        if not self._watch_caps:
            self._ready.append(entry)
        elif self.filter.full(entry.cap_key):
            entry.skip = self._full(entry)
        elif self._places(entry.cap_key) < 1:
            self._held.setdefault(entry.cap_key, deque()).append(entry)
        else:
            self._reserve(entry)

    def _places(self, cap_key: str) -> int:
        """Places of a template that neither a kept row has nor a row in flight may take."""
        return self.filter.settings.cap_per_template - self.filter.caps[cap_key] - self._reserved[cap_key]

    def _reserve(self, entry: _Entry) -> None:
        entry.reserves = True
        self._reserved[entry.cap_key] += 1
        self._ready.append(entry)

    def _release(self, entry: _Entry) -> None:
        """Give back the place of a row that is not kept, and let the next that waits for it go ahead."""
        if not entry.reserves:
            return
        entry.reserves = False
        self._reserved[entry.cap_key] -= 1
        waiting = self._held.get(entry.cap_key)
        if waiting and self._places(entry.cap_key) > 0:
            self._reserve(waiting.popleft())
            if not waiting:
                del self._held[entry.cap_key]

    def _full(self, entry: _Entry) -> Verdict:
        return Verdict("cap", f"{self.filter.settings.cap_per_template} rows of {entry.cap_key!r} are kept already")

    def _commit(self, entry: _Entry) -> Committed:
        if entry.skip is not None:
            committed = Committed(entry.prompt, NOT_ASKED, entry.skip, "skipped")
        else:
            committed = self._judge(entry)
        if committed.outcome == "kept":
            self._keep(entry)
        else:
            self._release(entry)
        self._settle_twins(entry, committed)
        return committed

    def _judge(self, entry: _Entry) -> Committed:
        prompt, completion = entry.prompt, entry.completion
        assert completion is not None
        if completion.error:
            return Committed(prompt, completion, Verdict("error", completion.error), "failed")
        if completion.verdict is not None:
            verdict = self.filter.judge_aborted(prompt.instruction, prompt.input, completion.verdict)
            return Committed(prompt, completion, verdict, "rejected")
        verdict = self.filter.judge(
            prompt.instruction,
            prompt.input,
            completion.text,
            prompt.template,
            finish_reason=completion.finish_reason,
            row_id=prompt.id,
        )
        return Committed(prompt, completion, verdict, "kept" if verdict.kept else "rejected")

    def _keep(self, entry: _Entry) -> None:
        self.kept += 1
        if entry.reserves:
            entry.reserves = False
            self._reserved[entry.cap_key] -= 1
        if self._watch_caps and self.filter.full(entry.cap_key):
            for waiting in self._held.pop(entry.cap_key, ()):
                waiting.skip = self._full(waiting)

    def _settle_twins(self, entry: _Entry, committed: Committed) -> None:
        """A twin of an answered question is skipped; after a failure the next twin is asked in its place."""
        if not entry.question or self._questions.get(entry.question) is not entry:
            return
        del self._questions[entry.question]
        if committed.outcome != "failed":
            self._answered.add(entry.question)
            for twin in entry.twins:
                twin.skip = _TWIN
        elif entry.twins:
            first, *rest = entry.twins
            self._questions[entry.question] = first
            first.twins = rest
            self._admit(first)


_TWIN = Verdict("duplicate", "the same question was asked before, and the teacher is greedy")


def _question(prompt: Prompt) -> str:
    """Return the hash of what the teacher sees."""
    turns = [text for turn in prompt.prefix for text in (turn.role, turn.content)]
    return hash_id(prompt.template, *turns, prompt.question, str(prompt.max_tokens), str(prompt.constraint or ""))
