"""Fold: one batch instead of several that gradient accumulation would add up, where a batch is small.

A batch of a few hundred tokens costs a GPU the launching of its kernels and little else, so four of them take four
times as long as the same rows at once. Promises that a step holds the same rows either way, so the student is the same
but for rounding; and that a fold never takes the memory that would have to be won back by computing twice.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.config import Train
from trainer.arguments import Load, plan_steps
from trainer.memory import ROOMY, estimate
from trainer.plan import Plan

FOLD_TOKENS = 4096
"""Most tokens of a folded batch, padding included; beyond, a GPU is busy with arithmetic and padding costs time."""


def fold(train: Train, plan: Plan, load: Load, start: Any) -> Train:
    """Return the settings with as little gradient accumulation as batch and card allow; `start` is the model's config.

    A CPU has no launches to save, and a folded batch without packing has more padding: there it stays as it is.
    """
    if plan.device == "cpu" and not train.packing:
        return train
    whole = train.batch_size * train.gradient_accumulation
    for parts in range(1, train.gradient_accumulation):
        if train.gradient_accumulation % parts == 0:
            folded = msgspec.structs.replace(train, batch_size=whole // parts, gradient_accumulation=parts)
            if _fits(folded, plan, load, start):
                return folded
    return train


def _fits(train: Train, plan: Plan, load: Load, start: Any) -> bool:
    steps = plan_steps(train, load)
    tokens = steps.batch_size * (steps.max_length if train.packing else load.longest)
    need = estimate(start, train, tuning=plan.tuning, dtype=plan.dtype, tokens=tokens)
    return tokens <= FOLD_TOKENS and (not plan.memory_bytes or need.total_bytes <= ROOMY * plan.memory_bytes)
