"""Folding: fewer launches, the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import make_config, make_rows, write_run

from engine.config import Train
from trainer import train as train_module
from trainer.arguments import Load, plan_steps
from trainer.fold import FOLD_TOKENS, fold
from trainer.journal import read_lines
from trainer.memory import read_config
from trainer.plan import Plan
from trainer.train import train

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]

CPU = Plan("cpu", "trl", "lora", "float32")
H100 = Plan("cuda", "unsloth", "lora", "bfloat16", 80 * 2**30)
SHORT = Load(rows=1000, longest=120, tokens=50_000, validation_rows=0)


def batches(train: Train) -> tuple[int, int]:
    return train.batch_size, train.gradient_accumulation


def test_short_rows_share_a_batch_on_a_gpu(student: Path) -> None:
    start, recipe = read_config(str(student)), Train()
    assert batches(fold(recipe, H100, SHORT, start)) == (8, 1)
    assert batches(fold(recipe, CPU, SHORT, start)) == (2, 4)
    assert plan_steps(fold(recipe, H100, SHORT, start), SHORT).total == plan_steps(recipe, SHORT).total


def test_packed_rows_share_a_batch_anywhere(student: Path) -> None:
    start, packed = read_config(str(student)), Train(packing=True)
    for plan in (CPU, H100):
        folded = fold(packed, plan, SHORT, start)
        steps = plan_steps(folded, SHORT)
        assert batches(folded) == (8, 1)
        assert steps.batch_size * steps.max_length == pytest.approx(8 * SHORT.mean, rel=0.05)


def test_long_rows_stay_apart(student: Path) -> None:
    start = read_config(str(student))
    long = Load(rows=100, longest=FOLD_TOKENS // 4, tokens=100 * FOLD_TOKENS // 8, validation_rows=0)
    assert batches(fold(Train(), H100, long, start)) == (4, 2)
    longest = msgspec.structs.replace(long, longest=FOLD_TOKENS)
    assert batches(fold(Train(), H100, longest, start)) == (2, 4)


def test_a_fold_never_costs_the_memory_of_a_second_forward_pass(student: Path) -> None:
    small = msgspec.structs.replace(H100, memory_bytes=2**20)
    assert batches(fold(Train(), small, SHORT, read_config(str(student)))) == (2, 4)


def test_a_folded_step_holds_the_same_rows(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss curves of both ways are one curve, also where the last step of an epoch is short."""
    run = write_run(tmp_path, make_rows(45))
    keys: dict[str, Any] = {"epochs": 2, "batch_size": 2, "gradient_accumulation": 4, "val_fraction": 0}
    config = make_config(student, **keys)
    apart = train(config, run, tmp_path / "apart")
    assert "rows at once" not in capsys.readouterr().err
    monkeypatch.setattr(train_module, "fold", lambda train, plan, load, start: fold(train, H100, load, start))
    folded = train(config, run, tmp_path / "folded")
    assert "8 rows at once instead of 2" in capsys.readouterr().err
    assert (folded.steps, folded.trained_tokens, folded.fingerprint) == (
        apart.steps,
        apart.trained_tokens,
        apart.fingerprint,
    )
    curves = [
        [line.loss for line in read_lines(tmp_path / name / "train" / "metrics.jsonl")] for name in ("apart", "folded")
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
