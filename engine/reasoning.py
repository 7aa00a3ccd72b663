"""Reasoning: a teacher that thinks before it answers, and rows that hold the answer alone.

Promises that what is judged, kept, voted for and scored is the text behind the first `teacher.reasoning_end`, that
early decisions look at nothing else, and that an answer which never got so far has failed and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from engine.rows import Completion, Prompt, Verdict

if TYPE_CHECKING:
    from engine.backend import Backend, Watch

UNFINISHED = ("length", "repetition")
"""Why an answer ends that was not at its end."""


class AnswerWatch:
    """A Watch over the answer, none over the reasoning before it. Picklable, as the one that it asks."""

    def __init__(self, watch: Watch, end: str) -> None:
        self._watch = watch
        self._end = end

    def __call__(self, partial: str) -> Verdict | None:
        _, found, text = partial.partition(self._end)
        return self._watch(text.lstrip()) if found else None


class ReasoningBackend:
    """A Backend that leaves the reasoning out of what another one answers."""

    def __init__(self, inner: Backend, end: str) -> None:
        self._inner = inner
        self._end = end

    @property
    def capacity(self) -> int:
        return self._inner.capacity

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
        await self._inner.add(prompts)

    async def abort(self, ids: Sequence[str]) -> None:
        await self._inner.abort(ids)

    async def completions(self) -> list[Completion]:
        return [answer_of(completion, self._end) for completion in await self._inner.completions()]


def answer_of(completion: Completion, end: str) -> Completion:
    """Return a completion without its reasoning; its tokens still count what the reasoning took.

    A finished text without `end` is an answer that needed none; one that was cut off before it is an error.
    """
    if completion.error:
        return completion
    _, found, text = completion.text.partition(end)
    if found:
        return msgspec.structs.replace(completion, text=text.lstrip())
    if completion.finish_reason in UNFINISHED:
        why = (
            f"{completion.output_tokens} tokens, and the reasoning had not come to its end (teacher.reasoning_end); "
            "raise sampling.max_tokens"
        )
        return msgspec.structs.replace(completion, text="", error=why)
    return completion
