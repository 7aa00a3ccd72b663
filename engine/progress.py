"""Progress: live lines for people, plain lines for logs, one line a second in metrics.jsonl.

Knows counts and the clock; decides nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import msgspec

from engine.decode import UNREADABLE
from engine.errors import DiskError
from engine.goal import Goal
from engine.live import is_live, printable, show
from engine.live import note as note
from engine.part import disk
from engine.rows import Completion
from engine.tally import Tally

METRICS = "metrics.jsonl"
PLAIN_EVERY_S = 10.0
"""Seconds between lines where stderr is not a terminal."""
OVERALL = ("rows_per_answering_s", "output_tokens_per_answering_s", "kept_per_answering_s")
"""Keys of the goodput that the last line shows."""
YIELDS_SHOWN = 4
"""Templates whose yield stands in such a line."""


class Progress:
    """Says once a second how far a run is. Entered with `async with`."""

    def __init__(self, folder: Path, tally: Tally, *, total: int | None, goal: Goal) -> None:
        self._path = folder / METRICS
        self._tally = tally
        self._total = total
        self._goal = goal
        before = _last_line(self._path)
        self._before_s = before.seconds
        self._answering_s = before.answering_seconds
        self._gpu_s = before.gpu_seconds
        self._gpus = 0
        self._start = self._last = self._last_plain = time.monotonic()
        self._paced_from: tuple[int, float] | None = (tally.asked, before.answering_seconds)
        """Prompts that had ended, and seconds of answering, where the measuring of the pace began."""
        self._answering_since: float | None = None
        self.answers = self.answered_tokens = 0
        """What the teacher has answered in this part of the run, and its output tokens, committed or not."""
        self._recalled = self._recalled_tokens = 0
        self._answered_before = (tally.asked - tally.skipped, tally.output_tokens)
        self._last_counts = self._plain_counts = self._counts()
        self._saved: dict[str, int] = {}
        self._live = is_live()

    @property
    def seconds(self) -> float:
        """Seconds of work on this run, earlier parts of it included."""
        return self._before_s + time.monotonic() - self._start

    @property
    def answering_s(self) -> float:
        """Seconds in which a teacher was there to answer, in all parts of the run: start-up is left out."""
        return self._answering_s + self._answering_now

    @property
    def gpu_s(self) -> float:
        """The same, once for each GPU that the teacher has; 0 where it has none, or is somewhere else."""
        return self._gpu_s + self._answering_now * self._gpus

    @property
    def _answering_now(self) -> float:
        return time.monotonic() - self._answering_since if self._answering_since is not None else 0.0

    def ready(self, is_ready: bool, *, gpus: int = 0) -> None:
        """Note that the teacher has started, on so many GPUs, or has ended."""
        self._answering_s, self._gpu_s = self.answering_s, self.gpu_s
        self._answering_since, self._gpus = (time.monotonic(), gpus) if is_ready else (None, 0)

    def answered(self, completion: Completion) -> None:
        """Note an answer of the teacher, which may have to wait for an earlier prompt."""
        self.answers += 1
        self.answered_tokens += completion.cost

    def recalled(self, answers: Sequence[Completion]) -> None:
        """Note that answers of an earlier part of the run came back: they took no time, so the pace is told anew."""
        self._paced_from = None
        self._recalled += len(answers)
        self._recalled_tokens += sum(answer.cost for answer in answers)

    def goodput(self) -> dict[str, float | None]:
        """Return what the run made of the time in which its teacher answered."""
        tally, seconds, gpu_s = self._tally, self.answering_s, self.gpu_s
        per_s = 1 / seconds if seconds else 0.0
        return {
            "answering_seconds": round(seconds, 3),
            "gpu_seconds": round(gpu_s, 3),
            "rows_per_answering_s": round(tally.asked * per_s, 2),
            "output_tokens_per_answering_s": round(tally.output_tokens * per_s, 1),
            "kept_per_answering_s": round(tally.kept * per_s, 2),
            "kept_per_gpu_s": round(tally.kept / gpu_s, 3) if gpu_s else None,
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ready(False)
        try:
            await self._measure(time.monotonic(), last=True)
        except DiskError:
            if error is None:  # else what went wrong first is what must be told
                raise

    async def tick(self, *, in_flight: int, waiting: int = 0) -> None:
        """Measure and show, if a second has passed; `waiting`: answered prompts that wait for an earlier one."""
        now = time.monotonic()
        if now - self._last >= 1.0:
            await self._measure(now, in_flight, waiting)

    def _counts(self) -> tuple[int, int, int]:
        """Return what was answered, rows and tokens, whether committed or not, and what is kept.

        By the committed rows where these are more: nobody need tell of answers. Those that came back are no new work.
        """
        tally, (rows, tokens) = self._tally, self._answered_before
        return (
            max(rows + self.answers, tally.asked - tally.skipped - self._recalled),
            max(tokens + self.answered_tokens, tally.output_tokens - self._recalled_tokens),
            tally.kept,
        )

    async def _measure(self, now: float, in_flight: int = 0, waiting: int = 0, *, last: bool = False) -> None:
        if self._paced_from is None:
            self._paced_from = (self._tally.asked + waiting, self.answering_s)
        counts = self._counts()
        rows, tokens, kept = _rates(self._last_counts, counts, now - self._last)
        summary = self._tally.summary()
        self._saved = summary["tokens_saved"]
        self._last, self._last_counts = now, counts
        line = {
            "seconds": round(self.seconds, 3),
            **summary,
            "in_flight": in_flight,
            "waiting": waiting,
            "rows_per_s": round(rows, 2),
            "output_tokens_per_s": round(tokens, 1),
            "kept_per_s": round(kept, 2),
            **self.goodput(),
        }
        import aiofiles

        with disk(self._path):
            async with aiofiles.open(self._path, "ab") as file:
                await file.write(msgspec.json.encode(line) + b"\n")
        if last or self._live or now - self._last_plain >= PLAIN_EVERY_S:
            self._show(now, (rows, tokens, kept), in_flight, waiting, last=last)

    def _show(self, now: float, rates: tuple[float, ...], in_flight: int, waiting: int, *, last: bool) -> None:
        """Say how far the run is, and how fast: in the last second, since the last line of a log, or all along."""
        tally = self._tally
        share = 100 * tally.kept / tally.asked if tally.asked else 0.0
        whole = f" of {self._total:,}" if self._total else ""
        more = f" (+{waiting:,} answered)" if waiting else ""
        text = f"{tally.asked:,}{whole} prompts{more}, {tally.kept:,} kept ({share:.0f}%)"
        if last:
            goodput = self.goodput()
            rates = tuple(goodput[key] or 0.0 for key in OVERALL)
        elif not self._live:
            rates = _rates(self._plain_counts, self._counts(), now - self._last_plain)
        left = self._left_s(in_flight, waiting)
        if left is not None and not last:
            text += f", {clock(left)} left"
        rows, tokens, kept = rates
        text += f", {rows:,.0f} rows/s, {tokens:,.0f} tok/s, {kept:,.0f} kept/s"
        if self._live and last:
            note(f"{text}\n{self._worth()}")
        elif self._live:
            show([text, self._worth()])
        elif not last or now - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain, self._plain_counts = now, self._counts()
            print(f"{text}; {self._worth()}", file=sys.stderr, flush=True)

    def _worth(self) -> str:
        """Return what the run has been worth so far: kept rows a GPU-second, tokens saved, yields of templates."""
        found, goodput = [], self.goodput()
        if goodput["kept_per_gpu_s"] is not None:
            found.append(f"{goodput['kept_per_gpu_s']:,.1f} kept per GPU-second")
        saved = ", ".join(f"{count:,} {kind}" for kind, count in self._saved.items() if count)
        found.append(f"tokens saved: about {saved}" if saved else "no tokens saved")
        return ", ".join([*found, *yields(self._tally)[:YIELDS_SHOWN]])

    def _left_s(self, in_flight: int, waiting: int) -> float | None:
        """Return how long it takes yet, by the prompts that are answered; None until as many are as are in flight.

        Nor is it known where all that is wanted waits for an earlier prompt: that may take its time.
        """
        ended, total = self._tally.asked + waiting, self._prompts_in_all()
        first, since_s = self._paced_from or (ended, 0.0)
        done, seconds = ended - first, self.answering_s - since_s
        if done <= in_flight or not seconds or total is None:
            return None
        left_s = max(0, total - ended) * seconds / done
        return left_s if round(left_s) else None

    def _prompts_in_all(self) -> int | None:
        tally = self._tally
        of_template = {
            name: tally.templates[name].results["kept"] for name in self._goal.quotas if name in tally.templates
        }
        return self._goal.prompts(tally.asked, tally.kept, of_template, candidates=tally.candidates, count=self._total)


def yields(tally: Tally) -> list[str]:
    """Return the yield of each template, with the rule that cost it the most: `json 81% (cap 12%)`."""
    found = []
    for name, one in tally.largest():
        asked = one.results.total()
        lost = [(count, rule) for rule, count in one.results.items() if rule != "kept"]
        most = max(lost, default=(0, ""))
        worst = f" ({most[1]} {most[0] / asked:.0%})" if most[0] else ""
        found.append(f"{printable(name)} {one.results['kept'] / asked:.0%}{worst}")
    return found


def _rates(before: Sequence[int], now: Sequence[int], seconds: float) -> tuple[float, ...]:
    """Return how much was added a second."""
    return tuple((new - old) / max(seconds, 1e-9) for old, new in zip(before, now, strict=True))


Seconds = Annotated[float, msgspec.Meta(ge=0)]


class _Line(msgspec.Struct):
    """What a resumed run needs of the last line of metrics; one that says less than no time is no such line."""

    seconds: Seconds = 0.0
    answering_seconds: Seconds = 0.0
    gpu_seconds: Seconds = 0.0


LAST_BYTES = 1 << 16
"""Enough for the last whole line."""


def _last_line(path: Path) -> _Line:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LAST_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return _Line()
    for line in reversed(lines):
        try:
            return msgspec.json.decode(line, type=_Line)
        except UNREADABLE:
            continue
    return _Line()


def clock(seconds: float) -> str:
    """Return a time span as a clock shows it: 0:19, 7:05, 12:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
