"""Journal: how training goes, for people (stderr), for the report (metrics.jsonl) and for a resumed run.

Counts real, trained and padded tokens apart, since a speed that counts padding flatters. Promises that a line is on
disk when its step is over, and that a loss which is not a number ends the run with a sentence. Knows no library.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import TrainError
from engine.progress import clock
from engine.shards import disk, replace_file

STATE = "journal.json"
"""The journal's own part of a checkpoint; written last, so a checkpoint that has it is whole."""
PLAIN_S = 10.0
"""Seconds between two progress lines where stderr is not a terminal."""


class Counts(msgspec.Struct):
    """Tokens so far, and seconds of training, earlier sessions included."""

    trained_tokens: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    """Of all batches, padding included."""
    seconds: float = 0.0


class Line(msgspec.Struct, omit_defaults=True):
    """One line of metrics.jsonl: a point of the training loss, or of the evaluation loss."""

    step: int
    epoch: float
    loss: float | None = None
    eval_loss: float | None = None
    """Mean over the validation rows."""
    eval_loss_by_template: dict[str, float] = {}
    learning_rate: float | None = None
    trained_tokens: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    tokens_per_s: float | None = None
    """Trained tokens a second since the line before."""
    seconds: float = 0.0


class Journal:
    """Keeps `path`. `parts` names the validation parts that are measured each time, and their rows.

    Of several processes that train together each has one, and only one writes and shows it.
    """

    def __init__(self, path: Path, *, parts: dict[str, int], writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        self.counts = Counts()
        self.loss: float | None = None
        self.eval_loss: float | None = None
        self.best_loss = math.inf
        self.stale = 0
        """Evaluations since the best one."""
        self._parts = parts
        self._measured: dict[str, float] = {}
        self._before = Counts()
        self._printed_s = -math.inf
        self._started_s = time.monotonic()

    def begin(self, checkpoint: Path | None) -> None:
        """Start the clock; with a checkpoint, go on from what it says, and forget the lines after it."""
        lines = []
        if checkpoint is not None:
            self.counts = msgspec.json.decode((checkpoint / STATE).read_bytes(), type=Counts)
            lines = [line for line in read_lines(self.path) if line.step <= step_of(checkpoint)]
            self._recall(lines)
        if self._writes:
            replace_file(self.path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        self._before = msgspec.structs.replace(self.counts)
        self._started_s = time.monotonic() - self.counts.seconds

    def count(self, *, trained: int, real: int, padded: int) -> None:
        """Add the tokens of one optimizer step."""
        self.counts.trained_tokens += trained
        self.counts.real_tokens += real
        self.counts.padded_tokens += padded

    def log(self, step: int, steps: int, epoch: float, values: dict[str, Any]) -> None:
        """Take what the trainer logs, write a line for a loss, and show how far it is.

        Raises: TrainError where a loss is not a number.
        """
        self.counts.seconds = time.monotonic() - self._started_s
        for part in self._parts:
            if (value := values.get(f"eval_{part}_loss")) is not None:
                self._measured[part] = self._number(float(value), step)
        if "loss" in values:
            self._log_loss(step, epoch, values)
            self._show(step, steps)
        elif self._measured and len(self._measured) == len(self._parts):
            self._log_eval(step, epoch)

    def keep(self, checkpoint: Path) -> None:
        """Add the journal's part to a checkpoint that has just been written."""
        self.counts.seconds = time.monotonic() - self._started_s
        if self._writes:
            replace_file(checkpoint / STATE, msgspec.json.encode(self.counts))

    def close(self) -> None:
        """End the progress line."""
        self.counts.seconds = time.monotonic() - self._started_s
        if self._writes and sys.stderr.isatty():
            print(file=sys.stderr)

    def _log_loss(self, step: int, epoch: float, values: dict[str, Any]) -> None:
        self.loss = self._number(float(values["loss"]), step)
        window_s = self.counts.seconds - self._before.seconds
        rate = (self.counts.trained_tokens - self._before.trained_tokens) / window_s if window_s > 0 else 0.0
        self._before = msgspec.structs.replace(self.counts)
        self._write(
            Line(step, epoch, loss=self.loss, learning_rate=values.get("learning_rate"), tokens_per_s=round(rate, 1))
        )

    def _log_eval(self, step: int, epoch: float) -> None:
        rows = sum(self._parts.values())
        self._take_eval(sum(self._measured[part] * count for part, count in self._parts.items()) / rows)
        self._write(Line(step, epoch, eval_loss=self.eval_loss, eval_loss_by_template=self._measured))
        self._measured = {}
        # Evaluation takes time of its own, which is not the training steps'.
        self._before = msgspec.structs.replace(self.counts)

    def _take_eval(self, loss: float) -> None:
        self.eval_loss = loss
        self.stale = 0 if loss < self.best_loss else self.stale + 1
        self.best_loss = min(loss, self.best_loss)

    def _number(self, loss: float, step: int) -> float:
        if not math.isfinite(loss):
            raise TrainError(
                f"the loss is {loss} at step {step}; lower train.learning_rate, raise train.warmup_steps, "
                "or set train.dtype = float32, and train again"
            )
        return loss

    def _write(self, line: Line) -> None:
        if not self._writes:
            return
        counts = self.counts
        line.epoch = round(line.epoch, 4)
        line.trained_tokens, line.real_tokens = counts.trained_tokens, counts.real_tokens
        line.padded_tokens, line.seconds = counts.padded_tokens, round(counts.seconds, 3)
        with disk(self.path), self.path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    def _recall(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self.loss = line.loss if line.loss is not None else self.loss
            if line.eval_loss is not None:
                self._take_eval(line.eval_loss)

    def _show(self, step: int, steps: int) -> None:
        live = sys.stderr.isatty()
        if not self._writes:
            return
        if not live and step < steps and self.counts.seconds - self._printed_s < PLAIN_S:
            return
        self._printed_s = self.counts.seconds
        session_s = max(1e-9, time.monotonic() - self._started_s)
        rate = self.counts.trained_tokens / session_s
        left_s = session_s / max(1, step) * (steps - step)
        text = f"train  step {step}/{steps}  loss {self.loss:.4f}  {rate:,.0f} tokens/s  {clock(left_s)} left"
        print(f"\r{text}\033[K" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)


def read_lines(path: Path) -> list[Line]:
    """Return the whole lines of a metrics file; a torn last line is left out, and no file is no lines."""
    if not path.exists():
        return []
    data = path.read_bytes()
    return [msgspec.json.decode(line, type=Line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def step_of(checkpoint: Path) -> int:
    """Return the step at which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])
