"""Trackers: what TensorBoard, W&B and Trackio are told of a training, beside what metrics.jsonl holds anyway.

Promises that each training writes to its own place, also where a process trains more than once, and that nothing of
them comes out after the result. What the user set in the environment wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = "potstill"
"""What W&B and Trackio file a run under, unless WANDB_PROJECT says otherwise."""


def names(out: Path) -> dict[str, Any]:
    """Return the arguments that name a training for W&B and Trackio: as its folder."""
    return {"run_name": out.resolve().name, "project": PROJECT}


@contextmanager
def reporting(chosen: Sequence[str], *, logs: Path) -> Iterator[None]:
    """While it lasts, TensorBoard writes to `logs`; left alone, it would write among checkpoints that are deleted."""
    wanted = {"TENSORBOARD_LOGGING_DIR": str(logs), "WANDB_PROJECT": PROJECT}
    unset = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in unset})
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)
    if "wandb" in chosen:
        import wandb

        wandb.finish()  # left to the end of the process, its farewell would go to stdout, below the result
