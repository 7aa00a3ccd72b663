"""Steering: which prompt goes to the teacher next, which never does, and in which order rows are committed.

Promises that rows are committed in prompt order, and that the kept rows are the same with early decisions on or
off: a prompt is skipped or held back only where the finished row could not have been kept. Pure and synchronous:
no I/O, no clock, no teacher. `generate` drives it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from engine.filter import QUOTA, Filter
from engine.goal import Ending, Goal
from engine.places import Entry, Places
from engine.rows import Completion, Outcome, Prompt, Verdict, user_turn
from engine.rules import Draft
from engine.sound import Sound
from engine.twins import Twins

NOT_ASKED = Completion(id="", text="", finish_reason="")
"""What a prompt that never went to the teacher has in place of a completion."""
PROMPT_BYTES = 550
"""Memory that an uncommitted prompt takes besides its texts, measured; its examples are shared with others."""
ANSWER_BYTES = 400
"""The same of an answer that waits; a quarter of it to find the answer's line on the disk."""
EMPTY = "the prompt is empty"
"""Why a prompt has failed that asks nothing: a teacher would answer it all the same."""


class Committed(msgspec.Struct, frozen=True):
    """A prompt that has reached its end."""

    prompt: Prompt
    completion: Completion
    verdict: Verdict
    outcome: Outcome
    waited: bool = False
    """True for a skipped prompt that was held back first."""


class Steering:
    """Takes prompts in order, hands out those worth asking, takes completions in any order, commits in order."""

    def __init__(
        self,
        rules: Filter,
        *,
        greedy: bool,
        disjoint: bool,
        plain: bool,
        goal: Goal | None = None,
        kept: int = 0,
        candidates: int = 0,
    ) -> None:
        """Steer by these rules; `disjoint`: no two templates make the same text; `plain`: no prompt has an input."""
        self.filter = rules
        self.kept = self._kept_before = kept
        self._answered = 0
        """Committed prompts that the teacher has answered, in this part of the run."""
        self.candidates = candidates
        """Committed prompts but those of a quota that was filled: what the budget counts."""
        self.waiting = 0
        """Answered prompts that wait for an earlier one."""
        self.uncommitted_bytes = 0
        """About as much memory as uncommitted prompts and their answers take."""
        self._goal = goal
        self._barren = False
        sound = Sound(rules, disjoint=disjoint, plain=plain)
        self._refuse = sound.refuse
        self._places = Places(rules, caps=sound.caps)
        self._twins = Twins(rules, greedy=greedy)
        self._order: deque[Entry] = deque()
        self._ready: deque[Entry] = deque()
        self._entries: dict[str, Entry] = {}

    @property
    def uncommitted(self) -> int:
        """Prompts that were offered and have not reached their end."""
        return len(self._order)

    @property
    def in_flight(self) -> int:
        """Prompts that were handed out and have not come back."""
        return len(self._entries)

    @property
    def ending(self) -> Ending | None:
        """Why the run is over, or None while it is not."""
        if self._goal is None:
            return None
        ending = self._goal.ending(self.filter, kept=self.kept, candidates=self.candidates)
        return "prompts" if ending is None and self._barren else ending

    @property
    def done(self) -> bool:
        """Say whether no more rows are wanted, or none may be asked for."""
        return self.ending is not None

    @property
    def open(self) -> bool:
        """Say whether another prompt may be offered: those on their way may use up the budget, or fill all quotas."""
        if self._goal is None or self._goal.candidates is None:
            return True
        if self._goal.accepted is None and self._order and not self._places.wanted:
            return False
        return self.candidates + len(self._order) < self._goal.candidates

    @property
    def wanted(self) -> int | None:
        """How many more prompts are of use now, by those that were kept so far; None where all are.

        It depends on timing, and only decides what is asked sooner: rows are committed in order all the same. One is
        always of use where none is in flight, so that the run goes on.
        """
        if self._goal is None:
            return None
        enough = self._goal.enough(self.kept, answered=self._answered, passed=self.kept - self._kept_before)
        return None if enough is None else max(enough - self.in_flight - self.waiting, 0 if self._entries else 1)

    def requeue(self) -> list[str]:
        """Put the prompts in flight back to be asked again, after the teacher was lost; return their ids."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.prompt.index)
        self._ready.extendleft(reversed(entries))
        self._entries.clear()
        return [entry.prompt.id for entry in entries]

    @property
    def remembers(self) -> bool:
        """Say whether `remember` must be told of every prompt that an earlier part of this run has committed."""
        return self._twins.greedy

    def remember(self, prompt: Prompt) -> None:
        """Note a prompt that an earlier part of this run has committed as answered."""
        self._twins.remember(prompt)

    def offer(self, prompt: Prompt) -> None:
        """Take the next prompt in order, and decide whether it is asked, held back or skipped."""
        entry = Entry(prompt, self.filter.cap_key(prompt.instruction, prompt.template))
        self._order.append(entry)
        self.uncommitted_bytes += _prompt_bytes(prompt)
        if not user_turn(prompt.instruction, prompt.input).strip():
            entry.completion = Completion(id=prompt.id, text="", finish_reason="error", error=EMPTY)
            self._waits(entry, 1)
            return
        if self._refuse:
            entry.skip = self.filter.optional.refuse(prompt.instruction, prompt.input)
        if entry.skip is None and not self._twins.settle(entry):
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

    def drafts(self, completions: Iterable[Completion]) -> list[Draft]:
        """Return the rows that completions make and that may come before the optional rules."""
        found: list[Draft] = []
        for completion in completions:
            entry = self._entries.get(completion.id)
            if entry is not None and not completion.error and completion.verdict is None:
                found.append(_draft(entry.prompt, completion))
        return [draft for draft in found if self.filter.reaches(draft)]

    def finish(self, completion: Completion) -> Prompt | None:
        """Take a completion and return its prompt; one of a prompt that is not in flight (aborted) is ignored."""
        entry = self._entries.pop(completion.id, None)
        if entry is None:
            return None
        entry.completion = completion
        self._waits(entry, 1)
        hopeless = bool(completion.error) or completion.verdict is not None
        if hopeless or self.filter.content.judge(completion.text) is not None:
            self._release(entry)
        return entry.prompt

    def commit(self) -> Iterator[Committed]:
        """Yield, in prompt order, every prompt whose end is known; stops where the run is over."""
        while self._order and not self.done:
            entry = self._order[0]
            if entry.held and self._places.force(entry):
                self._ready.appendleft(entry)
            if not entry.final:
                return
            self._order.popleft()
            self.uncommitted_bytes -= _prompt_bytes(entry.prompt)
            self._waits(entry, -1)
            yield self._commit(entry)

    def drop(self) -> list[str]:
        """Forget everything that is not committed and return the ids in flight, to be aborted."""
        ids = list(self._entries)
        for held in (self._order, self._ready, self._entries, self._places, self._twins):
            held.clear()
        self.waiting = self.uncommitted_bytes = 0
        return ids

    def _waits(self, entry: Entry, sign: int) -> None:
        """Count an answered prompt among those that wait, or no longer; one without an answer is none."""
        if entry.completion is not None:
            self.waiting += sign
            self.uncommitted_bytes += sign * _answer_bytes(entry.completion)

    def _admit(self, entry: Entry) -> None:
        if self._places.admit(entry):
            self._ready.append(entry)

    def _release(self, entry: Entry) -> None:
        """Give back the places of a row that is not kept, and let those go ahead that waited for them."""
        self._ready.extend(self._places.release(entry))

    def _commit(self, entry: Entry) -> Committed:
        committed = self._end(entry)
        counts = committed.verdict.rule != QUOTA
        self.candidates += counts
        if not counts and self._goal is not None:
            # Such prompts use up no budget, and would go on for ever.
            self._barren = self._goal.barren(self.filter, entry.prompt.index)
        self._answered += committed.outcome != "skipped"
        if committed.outcome == "kept":
            self.kept += 1
            self._places.keep(entry)
        else:
            self._release(entry)
        successor = self._twins.end(entry, committed.outcome)
        if successor is not None:
            self._admit(successor)
        return committed

    def _end(self, entry: Entry) -> Committed:
        """Return how a prompt ends. A filled quota goes before everything: its rows are not judged at all."""
        prompt, completion = entry.prompt, entry.completion
        verdict = self.filter.quota(prompt.template)
        if completion is None:
            assert entry.skip is not None
            return Committed(prompt, NOT_ASKED, verdict or entry.skip, "skipped", entry.waited)
        if verdict is not None:
            return Committed(prompt, completion, verdict, "rejected")
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


def _prompt_bytes(prompt: Prompt) -> int:
    return PROMPT_BYTES + sys.getsizeof(prompt.instruction) + sys.getsizeof(prompt.input)


def _answer_bytes(completion: Completion) -> int:
    return ANSWER_BYTES + sys.getsizeof(completion.text) + len(completion.logprobs)


def _draft(prompt: Prompt, completion: Completion) -> Draft:
    return Draft(
        prompt.instruction, completion.text, prompt.input, prompt.template, completion.finish_reason, prompt.id
    )
