"""Consensus: a prompt is sampled several times, and the answer that most samples gave is its one row.

Self-consistency: what counts as the answer is the whole text, or what a pattern finds in it (the number after a chain
of reasoning). Promises that the row is a function of the samples alone, whatever order they come in: the largest group
wins, of equal ones that with the lower sample number, and its first sample is the text. Samples are never ended early,
since one that the filter would reject still has a vote. Source: Wang et al., arXiv 2203.11171.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
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
        self.capacity = 0
        self._inner = inner
        self._run_seed = sampling.seed
        self._samples = sampling.samples
        self._vote = Vote(sampling)
        self._open: dict[str, list[Completion | None]] = {}

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        self.capacity = max(1, -(-self._inner.capacity // self._samples))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)

    def describe(self) -> dict[str, str]:
        return self._inner.describe()

    async def add(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self._open[prompt.id] = [None] * self._samples
        await self._inner.add([self._sample(prompt, number) for prompt in prompts for number in range(self._samples)])

    async def abort(self, ids: Sequence[str]) -> None:
        known = [prompt_id for prompt_id in ids if self._open.pop(prompt_id, None) is not None]
        await self._inner.abort([f"{prompt_id}#{number}" for prompt_id in known for number in range(self._samples)])

    async def completions(self) -> list[Completion]:
        done = []
        for completion in await self._inner.completions():
            prompt_id, _, number = completion.id.rpartition("#")
            samples = self._open.get(prompt_id)
            if samples is None:
                continue
            samples[int(number)] = completion
            if None not in samples:
                del self._open[prompt_id]
                done.append(self._vote.decide(prompt_id, [one for one in samples if one is not None]))
        return done

    def _sample(self, prompt: Prompt, number: int) -> Prompt:
        seed = row_seed(self._run_seed, prompt.id, number)
        return msgspec.structs.replace(prompt, id=f"{prompt.id}#{number}", seed=seed)


class Vote:
    """Decides between the samples of one prompt."""

    def __init__(self, sampling: Sampling) -> None:
        self._pattern = re.compile(sampling.consensus_pattern) if sampling.consensus_pattern else None
        self._share = sampling.consensus_share

    def decide(self, prompt_id: str, samples: Sequence[Completion]) -> Completion:
        """Return the completion of a prompt: the winner's text with the votes, or an error where nobody wins."""
        groups: dict[str, list[Completion]] = {}
        for sample in samples:
            ballot = None if sample.error else self.ballot(sample.text)
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
            sampled_tokens=sum(sample.sampled_tokens or sample.output_tokens for sample in samples),
        )

    def ballot(self, text: str) -> str | None:
        """Return what a text votes for, without differences of case, space and Unicode form; None for no vote."""
        if self._pattern is not None:
            matches = list(self._pattern.finditer(text))
            found = matches[-1].group(1 if self._pattern.groups else 0) if matches else None
            if found is None:
                return None
            text = found
        return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

    def _objection(self, samples: Sequence[Completion], votes: int) -> str:
        if all(sample.error for sample in samples):
            return samples[0].error
        if not votes:
            return f"none of {len(samples)} samples matches sampling.consensus_pattern"
        if votes / len(samples) < self._share:  # 0.56 * 25 is more than 14
            return f"{votes} of {len(samples)} samples agree, fewer than sampling.consensus_share = {self._share:g}"
        return ""
