"""The window: what waits behind one slow answer is bounded, by count and by bytes, and changes no row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from echo_runs import lines, settings

from engine import generate as generation
from engine import window
from engine.backend import EchoBackend
from engine.generate import generate_with
from engine.logprobs import read_logprobs
from engine.rows import Completion, Prompt
from engine.verify import verify

SET = (
    "prompts.count=600",
    "teacher.echo.max_num_seqs=16",
    "teacher.echo.tokens_per_s=1e12",
    "teacher.echo.overlong=0",  # so that answers are about as long as each other
    "sampling.logprobs=8",
)
COUNT = window.AHEAD * (16 + 8)
"""Prompts that may be offered and not committed."""


class Slow(EchoBackend):
    """Answers the first prompt when there is nothing else to answer."""

    def __init__(self) -> None:
        self.settings = settings(*SET)
        super().__init__(self.settings.teacher.echo, self.settings.sampling)
        self._first = ""
        self._held: list[Completion] = []
        self.behind: list[int] = []
        """Bytes of the answers that came before the first prompt's."""

    async def add(self, prompts: Sequence[Prompt]) -> None:
        self._first = next((prompt.id for prompt in prompts if prompt.index == 0), self._first)
        await super().add(prompts)

    async def completions(self) -> list[Completion]:
        done = await super().completions()
        self._held += [completion for completion in done if completion.id == self._first]
        if done or not self._held:
            rest = [completion for completion in done if completion.id != self._first]
            self.behind += [len(completion.logprobs) for completion in rest if self._first]
            return rest
        first, self._held, self._first = self._held, [], ""
        return first

    def run(self, folder: Path) -> list[bytes]:
        asyncio.run(generate_with(self, self.settings, folder, gate=False))
        return lines(folder)


def test_what_waits_behind_a_slow_answer_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_count = Slow()
    rows = by_count.run(tmp_path / "count")
    assert COUNT - 24 < len(by_count.behind) < COUNT
    most = sum(by_count.behind) // 4
    monkeypatch.setattr(window, "AHEAD_BYTES", most)
    monkeypatch.setattr(generation, "WRITE_BYTES", 1 << 12)
    by_bytes = Slow()
    assert by_bytes.run(tmp_path / "bytes") == rows
    assert sum(by_bytes.behind) < most + 24 * max(by_bytes.behind)
    assert len(by_bytes.behind) > 16, "one window may be in flight"
    assert verify(tmp_path / "bytes")["kept"] == len(rows)
    records = [list(map(str, read_logprobs(tmp_path / name))) for name in ("count", "bytes")]
    assert records[0] == records[1]
