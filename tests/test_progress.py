"""What progress tells of a run: how long it takes yet, and how long it took before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from echo_runs import settings

from engine import generate as generation
from engine.backend import EchoBackend
from engine.config import Output
from engine.errors import LimitError
from engine.generate import generate
from engine.goal import Goal
from engine.progress import METRICS, Progress
from engine.rows import Row
from engine.tally import Tally

QUOTAS = {"a": 300, "b": 100}


def count(tally: Tally, rows: Mapping[str, int]) -> None:
    """Count so many rows of each template and rule: `a` is kept, `a phrase` is rejected."""
    for what, number in rows.items():
        template, _, rule = what.partition(" ")
        row = Row("i", "", "o", template, "id", 0, "stop", output_tokens=40, rule=rule)
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
            progress.recalled()
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
    monkeypatch.setattr(Progress, "recalled", lambda self: told.append(self))
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
