"""Progress: a live line for people, plain lines for logs, one line a second in metrics.jsonl.

Knows counts and the clock; decides nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import aiofiles
import msgspec

from engine.tally import Tally

METRICS = "metrics.jsonl"
PLAIN_EVERY_S = 10.0
"""Seconds between lines where stderr is not a terminal."""


class Progress:
    """Says once a second how far a run is. Entered with `async with`."""

    def __init__(self, folder: Path, tally: Tally, *, total: int | None, target: int | None) -> None:
        self._path = folder / METRICS
        self._tally = tally
        self._total = total
        self._target = target
        self._before_s = _last_seconds(self._path)
        self._start = self._last = self._last_plain = time.monotonic()
        self._first_asked = tally.asked
        self._answering_since: float | None = None
        self._answering_s = 0.0
        self._last_counts = (tally.asked, tally.output_tokens)
        self._live = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """Seconds of work on this run, earlier parts of it included."""
        return self._before_s + time.monotonic() - self._start

    @property
    def answering_s(self) -> float:
        """Seconds in which a teacher was there to answer: start-up is left out."""
        since = self._answering_since
        return self._answering_s + (time.monotonic() - since if since is not None else 0.0)

    def ready(self, is_ready: bool) -> None:
        """Note that the teacher has started, or has ended."""
        self._answering_s, self._answering_since = self.answering_s, time.monotonic() if is_ready else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            print(file=sys.stderr)
        if kind is None:
            await self._measure(time.monotonic())

    async def tick(self, *, in_flight: int) -> None:
        """Measure and show, if a second has passed."""
        now = time.monotonic()
        if now - self._last >= 1.0:
            await self._measure(now, in_flight)

    async def _measure(self, now: float, in_flight: int = 0) -> None:
        tally = self._tally
        elapsed = max(now - self._last, 1e-9)
        rows = (tally.asked - self._last_counts[0]) / elapsed
        tokens = (tally.output_tokens - self._last_counts[1]) / elapsed
        self._last, self._last_counts = now, (tally.asked, tally.output_tokens)
        line = {
            "seconds": round(self.seconds, 3),
            **tally.summary(),
            "in_flight": in_flight,
            "rows_per_s": round(rows, 2),
            "output_tokens_per_s": round(tokens, 1),
        }
        async with aiofiles.open(self._path, "ab") as file:
            await file.write(msgspec.json.encode(line) + b"\n")
        self._show(now, rows, tokens)

    def _show(self, now: float, rows: float, tokens: float) -> None:
        tally = self._tally
        share = 100 * tally.kept / tally.asked if tally.asked else 0.0
        whole = f" of {self._total:,}" if self._total else ""
        text = f"{tally.asked:,}{whole} prompts, {tally.kept:,} kept ({share:.0f}%)"
        text += f", {rows:,.0f} rows/s, {tokens:,.0f} tok/s"
        left = self._left_s(now)
        if left is not None:
            text += f", {int(left) // 60}:{int(left) % 60:02d} left"
        if self._live:
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        elif now - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = now
            print(text, file=sys.stderr, flush=True)

    def _left_s(self, now: float) -> float | None:
        done = self._tally.asked - self._first_asked
        if not done:
            return None
        per_prompt = (now - self._start) / done
        if self._target is not None and self._tally.kept:
            wanted = (self._target - self._tally.kept) * self._tally.asked / self._tally.kept
            return max(0.0, wanted * per_prompt)
        return (self._total - self._tally.asked) * per_prompt if self._total else None


def note(text: str) -> None:
    """Say one thing to the person who runs this."""
    print(text, file=sys.stderr, flush=True)


def _last_seconds(path: Path) -> float:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0.0
    for line in reversed(lines):
        try:
            return float(msgspec.json.decode(line)["seconds"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            continue
    return 0.0
