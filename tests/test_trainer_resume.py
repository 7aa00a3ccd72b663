"""Training, stopped and gone on with: checkpoints, patience, a run that is done already."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import losses, make_config, make_rows, write_run

from engine.shards import read_manifest
from trainer.done import read_done
from trainer.journal import read_lines, step_of
from trainer.prepare import prepare
from trainer.train import train

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]


@contextmanager
def interrupted_at(checkpoints: Path, step: int) -> Iterator[None]:
    """Press Ctrl-C as soon as there is a whole checkpoint of this step or a later one."""
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.002):
            if any(step_of(state.parent) >= step for state in checkpoints.glob("checkpoint-*/journal.json")):
                signal.raise_signal(signal.SIGINT)
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        over.set()
        thread.join()


def test_the_same_again_is_nothing_to_do(tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, make_rows(20))
    config = make_config(student, max_steps=2)
    first = train(config, run, run)
    weights = run / "student" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    capsys.readouterr()
    assert train(config, run, run) == first
    assert "trained already" in capsys.readouterr().err
    assert weights.stat().st_mtime_ns == written
    other = train(make_config(student, max_steps=2, learning_rate=1e-4), run, run)
    assert other.fingerprint != first.fingerprint
    assert weights.stat().st_mtime_ns != written
    write_run(tmp_path / "more", make_rows(24))
    more = train(config, tmp_path / "more", run)
    assert more.fingerprint != first.fingerprint
    assert read_done(run) == more


def test_an_interrupted_run_goes_on_to_the_same_curve(
    tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, make_rows(60))
    config = make_config(
        student, epochs=3, batch_size=2, gradient_accumulation=1, checkpoint_steps=50, dropout=0.1, tuning="lora"
    )
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = train(config, run, straight)
    with interrupted_at(broken / "train" / "checkpoints", 50):
        train(config, run, broken)
    assert read_done(broken) is None
    capsys.readouterr()
    resumed = train(config, run, broken)
    assert "from step 50" in capsys.readouterr().err
    assert losses(broken) == losses(straight)
    steps = [line.step for line in read_lines(broken / "train" / "metrics.jsonl")]
    assert steps == [line.step for line in read_lines(straight / "train" / "metrics.jsonl")]
    same = ("steps", "trained_tokens", "padded_tokens", "train_loss", "eval_loss")
    assert [getattr(resumed, key) for key in same] == [getattr(whole, key) for key in same]


def test_on_policy_goes_on_with_the_prompts_and_the_draw_that_it_had(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(12))
    keys: dict[str, Any] = {"batch_size": 2, "gradient_accumulation": 2, "val_fraction": 0, "checkpoint_steps": 4}
    config = make_config(student, teacher=student, method="on_policy", max_steps=1, on_policy={"steps": 12}, **keys)
    config = msgspec.structs.replace(config, sampling=msgspec.structs.replace(config.sampling, max_tokens=4))
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(config, run, straight)
    # In the second epoch, of three steps.
    with interrupted_at(broken / "train" / "checkpoints", 4):
        train(config, run, broken)
    train(config, run, broken)
    assert losses(broken) == losses(straight)


def test_checkpoints_of_other_settings_are_not_gone_on_from(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(30))
    config = make_config(student, epochs=50, checkpoint_steps=1, batch_size=4, gradient_accumulation=1)
    with interrupted_at(run / "train" / "checkpoints", 5):
        train(config, run, run)
    done = train(make_config(student, max_steps=2), run, run)
    assert done.steps == 2
    assert [line.step for line in read_lines(run / "train" / "metrics.jsonl") if line.loss] == [1, 2]


def test_patience_keeps_the_best_student(tmp_path: Path, student: Path) -> None:
    """With far too long a training, the student is the one of the lowest evaluation loss, not the last."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.loop import answer_loss

    run = write_run(tmp_path, [row for row in make_rows(60) if row.template == "json"])
    keys: dict[str, Any] = {"batch_size": 16, "gradient_accumulation": 1, "val_fraction": 0.3, "learning_rate": 1e-1}
    config = make_config(student, epochs=200, checkpoint_steps=4, patience=2, **keys)
    done = train(config, run, run)
    measured = [line.eval_loss for line in read_lines(run / "train/metrics.jsonl") if line.eval_loss is not None]
    assert done.steps < 200
    assert done.eval_loss == min(measured) == measured[-3] < measured[-1]
    held_out = prepare(config, run, read_manifest(run)).validation
    model = AutoModelForCausalLM.from_pretrained(run / "student")
    width = max(row.tokens for row in held_out)
    ids, labels = (torch.full((len(held_out), width), fill) for fill in (0, -100))
    for place, row in enumerate(held_out):
        ids[place, : row.tokens] = torch.tensor(row.input_ids)
        labels[place, row.prompt_tokens : row.tokens] = ids[place, row.prompt_tokens : row.tokens]
    with torch.no_grad():
        loss = answer_loss(model, {"input_ids": ids, "labels": labels}, None).item()
    assert len(held_out) <= 16
    assert loss == pytest.approx(done.eval_loss, rel=1e-4)
