"""What progress tells of a run: how fast it is, how long it takes yet, and how long it took before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from echo_runs import settings

from engine import generate as generation
from engine.backend import EchoBackend
from engine.config import Output
from engine.errors import LimitError
from engine.generate import generate
from engine.goal import Goal
from engine.progress import METRICS, Progress
from engine.rows import Completion, Row
from engine.tally import Tally

QUOTAS = {"a": 300, "b": 100}


def count(tally: Tally, rows: Mapping[str, int]) -> None:
    """Count so many rows of each template and rule: `a` is kept, `a phrase` is rejected."""
    for what, number in rows.items():
        template, _, rule = what.partition(" ")
        row = Row("i", "", "o", template, "id", 0, "stop", output_tokens=40 * (rule != "quota"), rule=rule)
        for _ in range(number):
            tally.add("skipped" if rule == "quota" else "rejected" if rule else "kept", row)


async def left_after_ten_seconds(
    folder: Path,
    output: Output,
    rows: Mapping[str, int],
    *,
    total: int | None = None,
    waiting: int = 0,
    before: Mapping[str, int] | None = None,
    recalled: int = 0,
) -> float | None:
    """Return the time left of a run with these rows; an earlier part had those `before`, and answers to some more."""
    tally = Tally()
    count(tally, before or {})
    async with Progress(folder, tally, total=total, goal=Goal(output)) as progress:
        progress.ready(True)
        assert progress._answering_since is not None
        if recalled:
            progress.recalled([Completion("", "", "stop")] * recalled)
            progress._last -= 1
            await progress.tick(in_flight=0, waiting=recalled)
        progress._answering_since -= 10
        count(tally, rows)
        left_s = progress._left_s(50, waiting)
    return left_s if left_s is None else round(left_s, 1)


@pytest.mark.parametrize(
    ("output", "rows", "more", "left_s"),
    [
        (Output(candidates=1500), {"a": 114}, {"total": 20_000, "waiting": 386}, 20),
        (Output(quotas=QUOTAS), {"a": 60, "b": 10, "a phrase": 30}, {"total": 20_000}, 90),
        (Output(quotas=QUOTAS), {"a": 100, "b": 100}, {"waiting": 200}, 5),
        (Output(quotas=QUOTAS), {"a": 100}, {"total": 20_000}, 890),
        (Output(quotas=QUOTAS, candidates=500), {"a": 300, "a quota": 50, "b": 50}, {}, 4.3),
        (Output(accepted=800), {"a": 90, "a phrase": 10}, {}, 78.9),
        (Output(accepted=800), {"a": 90, "a phrase": 10}, {"waiting": 780}, None),
        (Output(accepted=800), {}, {"waiting": 400}, 10),
        (Output(accepted=800), {"a phrase": 100}, {"total": 20_000}, 1690),
        (Output(), {"a": 1}, {"total": 400, "waiting": 398}, None),
        (Output(accepted=800), {"a": 100}, {"before": {"a": 200, "a phrase": 300}}, 100),
        (Output(), {"a": 100}, {"total": 800, "before": {"a": 200}, "waiting": 200, "recalled": 200}, 30),
        (Output(), {"a": 60}, {"total": 800, "recalled": 20}, None),
    ],
    ids=[
        "the budget of candidates",
        "the quota that is last",
        "quotas, and some wait",
        "none yet of a template",
        "a filled quota costs no candidates",
        "accepted",
        "all that is wanted waits",
        "nothing is committed yet",
        "nothing is kept yet",
        "the last ones are slow",
        "resumed",
        "resumed with answers",
        "too few yet",
    ],
)
async def test_time_left(
    tmp_path: Path, output: Output, rows: dict[str, int], more: dict[str, Any], left_s: float | None
) -> None:
    found = await left_after_ten_seconds(tmp_path, output, rows, **more)
    assert found == (left_s if left_s is None else pytest.approx(left_s, rel=0.02))


class Stopping(EchoBackend):
    """Has the first prompt's answer last, and ends before."""

    async def completions(self):  # type: ignore[no-untyped-def]
        if self.handed >= 100:
            raise LimitError("the credit is spent")
        found = [one for one in await super().completions() if one.id != self.first]
        self.handed += len(found)
        return found

    async def add(self, prompts):  # type: ignore[no-untyped-def]
        self.first = getattr(self, "first", prompts[0].id)
        await super().add(prompts)

    handed = 0


def test_answers_of_an_earlier_part_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("prompts.count=400", "teacher.echo.refusals=0")
    monkeypatch.setattr(generation, "make_backend", lambda teacher, sampling, watch: Stopping(teacher.echo, sampling))
    with pytest.raises(LimitError):
        generate(config, tmp_path, gate=False)
    monkeypatch.undo()
    told: list[Progress] = []
    monkeypatch.setattr(Progress, "recalled", lambda self, answers: told.append(self))
    generate(config, tmp_path, gate=False)
    assert told
    told.clear()
    generate(config, tmp_path / "new", gate=False)
    assert not told


@pytest.mark.parametrize("seconds", ["-60", "NaN", "1e999", "null"])
async def test_a_line_of_metrics_that_says_no_time_is_left_out(tmp_path: Path, seconds: str) -> None:
    good = '{"seconds": 9.5, "answering_seconds": 8.5, "gpu_seconds": 17.0}'
    (tmp_path / METRICS).write_text(f"{good}\n{good.replace('8.5', seconds)}\n")
    async with Progress(tmp_path, Tally(), total=None, goal=Goal(Output())) as progress:
        assert (progress.answering_s, progress.gpu_s) == (8.5, 17.0)
        assert 9.5 <= progress.seconds < 60


async def test_rates_are_of_what_is_answered_and_kept_ones_of_what_is_committed(tmp_path: Path) -> None:
    tally = Tally()
    count(tally, {"a": 50, "a quota": 10})
    async with Progress(tmp_path, tally, total=None, goal=Goal(Output())) as progress:
        progress.recalled([Completion("", "", "stop", output_tokens=40)] * 1000)
        for committed in (0, 1000, 200):  # those that came back, then what waits behind them
            for _ in range(100):
                progress.answered(Completion("", "", "stop", output_tokens=10, sampled_tokens=40))
            count(tally, {"a": committed, "a quota": committed})
            progress._last -= 10
            await progress.tick(in_flight=5, waiting=1100)
    *found, last = map(orjson.loads, (tmp_path / METRICS).read_bytes().splitlines())
    assert [one["rows_per_s"] for one in found] == pytest.approx([10] * 3, rel=0.02)
    assert [one["output_tokens_per_s"] for one in found] == pytest.approx([400] * 3, rel=0.02)
    assert [one["kept_per_s"] for one in found] == pytest.approx([0, 100, 20], rel=0.02)
    assert (last["rows_per_s"], last["asked"], last["output_tokens"]) == (0, 2460, 1250 * 40)


def test_a_teacher_at_work_has_a_rate_while_its_answers_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("prompts.count=400", "teacher.echo.refusals=0")
    told: list[Progress] = []
    original = Progress.answered

    def answered(self: Progress, completion: Completion) -> None:
        original(self, completion)
        told.append(self)

    monkeypatch.setattr(generation, "make_backend", lambda teacher, sampling, watch: Stopping(teacher.echo, sampling))
    monkeypatch.setattr(Progress, "answered", answered)
    with pytest.raises(LimitError):
        generate(config, tmp_path, gate=False)
    last = orjson.loads((tmp_path / METRICS).read_bytes().splitlines()[-1])
    assert last["asked"] == 0, "the first prompt has no answer yet"
    assert len(told) >= 100
    assert last["rows_per_s"] > 0
    assert last["output_tokens_per_s"] > 0
    before = len(told)
    monkeypatch.undo()
    monkeypatch.setattr(Progress, "answered", answered)
    summary = generate(config, tmp_path, gate=False)
    assert len(told) == summary["asked"] - summary["skipped"], "what came back is not answered again"
    assert told[-1].answers == len(told) - before
