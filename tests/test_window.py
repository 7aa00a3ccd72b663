"""The window: a slow answer does not leave the teacher idle, what waits behind it is bounded, and no row changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from echo_runs import lines, settings

from engine import generate as generation
from engine import ledger, window
from engine.backend import EchoBackend
from engine.generate import generate, generate_with
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
    unbounded = Slow()
    rows = unbounded.run(tmp_path / "unbounded")
    assert len(unbounded.behind) == 599
    rest = sum(unbounded.behind) // 599 + 1500
    monkeypatch.setattr(window, "AHEAD_BYTES", 100 * rest)
    monkeypatch.setattr(ledger, "WRITE_BYTES", 1 << 12)
    bounded = Slow()
    assert bounded.run(tmp_path / "bounded") == rows
    assert 80 < len(bounded.behind) < 100 + 24 + 20, "a window comes on top, and rows are not all of one size"
    monkeypatch.setattr(window, "AHEAD_BYTES", 1)
    least = Slow()
    assert least.run(tmp_path / "least") == rows
    assert len(least.behind) == 0, "one is always asked"
    assert verify(tmp_path / "bounded")["kept"] == len(rows)
    records = [list(map(str, read_logprobs(tmp_path / name))) for name in ("unbounded", "bounded", "least")]
    assert records[0] == records[1] == records[2]


class Occupied(EchoBackend):
    """Says how many prompts it answers at once."""

    running: list[int]

    def _step(self) -> None:
        self.running.append(len(self._running))
        super()._step()


def test_a_slow_answer_does_not_leave_the_teacher_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer in a hundred is 28 times as long as the others, so that there is always one that others wait for."""
    Occupied.running = []
    monkeypatch.setattr(generation, "make_backend", lambda teacher, sampling, watch: Occupied(teacher.echo, sampling))
    long = ("filter.max_chars=2000", "sampling.max_tokens=1000", "teacher.echo.overlong=0.01")
    size = ("prompts.count=6000", "teacher.echo.max_num_seqs=64", "filter.cap_per_template=0")
    generate(settings(*long, *size), tmp_path / "run", gate=False)
    assert min(Occupied.running[:-60]) == 64


def test_what_waited_long_is_committed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Slow().run(tmp_path / "whole")
    monkeypatch.setattr(generation, "BURST", 7)
    assert Slow().run(tmp_path / "pieces") == whole
