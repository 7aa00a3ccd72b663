"""On-policy distillation, with a tiny student and a tiny teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import make_config, make_rows, tiny_student, write_run

from engine.config import Config
from engine.errors import ConfigError
from trainer.done import read_done
from trainer.journal import read_lines
from trainer.student import read_student
from trainer.train import check, train

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a student and a teacher: the same model after it has learnt some rows."""
    folder = tmp_path_factory.mktemp("models")
    student = tiny_student(folder / "student")
    run = write_run(folder / "run", make_rows(40))
    train(make_config(student, max_steps=60, learning_rate=1e-2, batch_size=8, gradient_accumulation=1), run, run)
    return student, run / "student"


def on_policy(models: tuple[Path, Path], *, steps: int = 12, **train: Any) -> Config:
    student, teacher = models
    own = {"steps": steps, "learning_rate": 1e-2, "beta": 0.0}
    keys = {"max_steps": 10, "learning_rate": 1e-2, "batch_size": 4, "gradient_accumulation": 2, **train}
    config = make_config(student, teacher=teacher, method="on_policy", on_policy=own, **keys)
    return msgspec.structs.replace(config, sampling=msgspec.structs.replace(config.sampling, max_tokens=6))


def test_it_goes_on_after_sft_and_comes_closer_to_the_teacher(tmp_path: Path, models: tuple[Path, Path]) -> None:
    run = write_run(tmp_path, make_rows(24))
    config = on_policy(models)
    done = train(config, run, run)
    assert (done.method, done.steps, done.student, done.adapter) == ("on_policy", 12, "student", "")
    first = read_done(run / "sft")
    assert first is not None
    assert (first.method, first.steps) == ("sft", 10)
    losses = [line.loss for line in read_lines(run / "train" / "metrics.jsonl") if line.loss is not None]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert 0 < done.trained_tokens <= 12 * 8 * 6
    weights = run / "sft" / "student" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert train(config, run, run) == done
    # The steps after it may change; what came before them stays.
    train(on_policy(models, steps=1), run, run)
    assert weights.stat().st_mtime_ns == written


def test_an_adapter_goes_on_as_the_same_adapter(tmp_path: Path, models: tuple[Path, Path]) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    run = write_run(tmp_path, make_rows(12))
    config = on_policy(models, tuning="lora", steps=2)
    pruned = msgspec.structs.replace(config.student, init="prune", layers=1)
    done = train(msgspec.structs.replace(config, student=pruned), run, run)
    assert (done.untrained, done.student, done.adapter) == ("sft/untrained", "sft/untrained", "student")
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (run / "sft/student", run / "student")
    )
    assert before.keys() == after.keys()
    assert any(not before[key].equal(after[key]) for key in before)
    # The later commands find it where it is.
    assert read_student(run).model == str((run / "sft" / "untrained").resolve())
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run / done.student), run / done.adapter)


def test_models_of_other_sizes_of_vocabulary_are_refused(tmp_path: Path, models: tuple[Path, Path]) -> None:
    wide = tiny_student(tmp_path / "wide", vocab_size=49_280)
    run = write_run(tmp_path / "run", make_rows(12))
    for command in (lambda config: check(config, run), lambda config: train(config, run, run)):
        with pytest.raises(ConfigError, match="compares whole vocabularies, and the teacher's has 49,280 places"):
            command(on_policy((models[0], wide)))
    assert not (run / "student").exists()
    assert not (run / "sft").exists(), "it was trained for nothing"


def test_check_counts_the_teacher_s_memory(tmp_path: Path, models: tuple[Path, Path]) -> None:
    run = write_run(tmp_path / "run", make_rows(12))
    config = on_policy(models)
    sft = msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, method="sft"))
    both, alone = (check(settings, run)["memory"] for settings in (config, sft))
    assert both["weights_bytes"] == alone["weights_bytes"] + 4 * both["parameters"]


def test_fewer_questions_than_a_step_asks_are_refused(tmp_path: Path, models: tuple[Path, Path]) -> None:
    run = write_run(tmp_path / "run", make_rows(6))
    for command in (lambda config: check(config, run), lambda config: train(config, run, run)):
        with pytest.raises(ConfigError, match=r"= 8 questions a step, and there are [56]; lower one of them"):
            command(on_policy(models))
    assert not (run / "sft").exists(), "it was trained for nothing"
