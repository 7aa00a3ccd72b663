"""Consensus: a prompt is sampled several times, and the answer that most samples gave is its one row.

Self-consistency: what counts as the answer is the whole text, or what a pattern finds in it (the number after a chain
of reasoning). Promises that the row is a function of the samples alone, whatever order they come in: the largest group
wins, of equal ones that with the lower sample number, and its first sample is the text. A sample is not ended early for
what it says, since one that the filter would reject still has a vote. Source: Wang et al., arXiv 2203.11171.

With `consensus_early` no more samples are asked than the vote takes. They are counted in the order of their numbers, so
the text, and whether there is one, are those of all the samples.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from engine.config import Sampling
from engine.rows import Completion, Prompt, row_seed

if TYPE_CHECKING:
    from engine.backend import Backend


class ConsensusBackend:
    """A Backend that asks another one each prompt several times."""

    def __init__(self, inner: Backend, sampling: Sampling) -> None:
        self._inner = inner
        self._run_seed = sampling.seed
        self._vote = Vote(sampling)
        self._open: dict[str, _Poll] = {}

    @property
    def capacity(self) -> int:
        """Prompts that keep the other one busy: with some samples in, a prompt has half of its first ones open."""
        first = self._vote.missing({}, 0)
        return max(1, -(-self._inner.capacity // ((first + 1) // 2 if self._vote.early else first)))

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)

    def describe(self) -> dict[str, str]:
        return self._inner.describe()

    async def add(self, prompts: Sequence[Prompt]) -> None:
        asked: list[Prompt] = []
        for prompt in prompts:
            poll = self._open[prompt.id] = _Poll(prompt)
            asked += self._ask(poll)
        await self._inner.add(asked)

    async def abort(self, ids: Sequence[str]) -> None:
        polls = [poll for prompt_id in ids if (poll := self._open.pop(prompt_id, None)) is not None]
        await self._end(polls)

    async def completions(self) -> list[Completion]:
        done: list[Completion] = []
        ended: list[_Poll] = []
        asked: list[Prompt] = []
        for completion in await self._inner.completions():
            prompt_id, _, number = completion.id.rpartition("#")
            poll = self._open.get(prompt_id)
            if poll is None:
                continue
            poll.samples[int(number)] = completion
            if self._is_decided(poll):
                del self._open[prompt_id]
                ended.append(poll)
                done.append(self._vote.decide(prompt_id, [poll.samples[place] for place in range(poll.counted)]))
            else:
                asked += self._ask(poll)
        await self._end(ended)
        if asked:
            await self._inner.add(asked)
        return done

    def _is_decided(self, poll: _Poll) -> bool:
        """Count the samples that have come, in their order, until the vote is decided."""
        while (sample := poll.samples.get(poll.counted)) is not None:
            poll.counted += 1
            self._vote.count(poll.votes, sample)
            if self._vote.is_decided(poll.votes, poll.counted):
                return True
        return False

    def _ask(self, poll: _Poll) -> list[Prompt]:
        """Return the samples that the vote may take beside those that are open: all of them, or as few as can do."""
        first, poll.asked = poll.asked, max(poll.asked, poll.counted + self._vote.missing(poll.votes, poll.counted))
        return [self._sample(poll.prompt, number) for number in range(first, poll.asked)]

    async def _end(self, polls: Sequence[_Poll]) -> None:
        """End the samples that nobody waits for any more."""
        left = [(poll, number) for poll in polls for number in range(poll.asked) if number not in poll.samples]
        if ids := [f"{poll.prompt.id}#{number}" for poll, number in left]:
            await self._inner.abort(ids)

    def _sample(self, prompt: Prompt, number: int) -> Prompt:
        seed = row_seed(self._run_seed, prompt.id, number)
        return msgspec.structs.replace(prompt, id=f"{prompt.id}#{number}", seed=seed)


class _Poll:
    """The samples of one prompt: so many are asked, some have come, and of these the first ones are counted."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.asked = 0
        self.samples: dict[int, Completion] = {}
        self.counted = 0
        self.votes: dict[str, int] = {}


class Vote:
    """Decides between the samples of one prompt."""

    def __init__(self, sampling: Sampling) -> None:
        self.early = sampling.consensus_early
        self._pattern = re.compile(sampling.consensus_pattern) if sampling.consensus_pattern else None
        self._share = sampling.consensus_share
        self._samples = sampling.samples

    def count(self, votes: dict[str, int], sample: Completion) -> None:
        """Count a sample; `votes` stay in the order of their first samples."""
        ballot = self.ballot(sample)
        if ballot is not None:
            votes[ballot] = votes.get(ballot, 0) + 1

    def is_decided(self, votes: Mapping[str, int], counted: int) -> bool:
        """Say whether all are counted or, with `early`, those that are not could change neither winner nor failure."""
        left = self._samples - counted
        if not left or not self.early:
            return not left
        most = max(votes.values(), default=0)
        if self._is_too_few(most + left):
            return True
        if not most or self._is_too_few(most):
            return False
        numbers = list(votes.values())
        leader = numbers.index(most)
        # Of equal groups the one that came first wins, so a later one must get past the leader.
        rivals = (number + (place < leader) for place, number in enumerate(numbers) if place != leader)
        return max(rivals, default=0) + left <= most

    def missing(self, votes: Mapping[str, int], counted: int) -> int:
        """Return how many more samples the vote takes at least: all that are left, or as few as can decide it."""
        left = self._samples - counted
        if not self.early:
            return left
        leader = max(votes, key=lambda ballot: votes[ballot], default="")

        def would_do(more: int) -> bool:
            return self.is_decided({**votes, leader: votes.get(leader, 0) + more}, counted + more)

        return 1 + bisect_left(range(1, left), True, key=would_do)

    def decide(self, prompt_id: str, samples: Sequence[Completion]) -> Completion:
        """Return the completion of a prompt: the winner's text with the votes, or an error where nobody wins."""
        groups: dict[str, list[Completion]] = {}
        for sample in samples:
            ballot = self.ballot(sample)
            if ballot is not None:
                groups.setdefault(ballot, []).append(sample)
        winners = max(groups.values(), key=len, default=[])  # of equal ones max takes the first
        chosen = winners[0] if winners else samples[0]
        return msgspec.structs.replace(
            chosen,
            id=prompt_id,
            error=self._objection(samples, len(winners)),
            samples=len(samples),
            votes=len(winners),
            sampled_tokens=sum(sample.cost for sample in samples),
        )

    def ballot(self, sample: Completion) -> str | None:
        """Return what a sample votes for, without differences of case, space and Unicode form; None for no vote."""
        if sample.error:
            return None
        text = sample.text
        if self._pattern is not None:
            matches = list(self._pattern.finditer(text))
            found = matches[-1].group(1 if self._pattern.groups else 0) if matches else None
            if found is None:
                return None
            text = found
        return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

    def _is_too_few(self, votes: int) -> bool:
        return votes / self._samples < self._share  # 0.56 * 25 is more than 14

    def _objection(self, samples: Sequence[Completion], votes: int) -> str:
        if all(sample.error for sample in samples):
            return samples[0].error
        if not votes:
            return f"none of {len(samples)} samples matches sampling.consensus_pattern"
        if self._is_too_few(votes):
            least = f"sampling.consensus_share = {self._share:g}"
            if len(samples) < self._samples:
                return f"{votes} of {len(samples)} samples agree, and all {self._samples} would be fewer than {least}"
            return f"{votes} of {len(samples)} samples agree, fewer than {least}"
        return ""
