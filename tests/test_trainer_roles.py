from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import make_config, make_rows, tiny_student, write_run

import potstill
from engine.config import Config, from_mapping
from engine.errors import ConfigError, DataError, MissingError, TrainError
from trainer.done import read_done
from trainer.examples import read_examples
from trainer.roles import STUDENT, TEACHER, in_role, open_rows, speaking_of
from trainer.train import check, train


def gold(folder: Path, count: int = 24) -> Path:
    """Write question and answer alone, as a person would."""
    rows = [{"instruction": row.instruction, "input": row.input, "output": row.output} for row in make_rows(count)]
    path = folder / "gold.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def teacher_config(model: Path, **train: Any) -> Config:
    config = make_config("./nowhere", **train)
    teacher = msgspec.structs.replace(config.teacher, model=str(model))
    return msgspec.structs.replace(config, teacher=teacher)


def test_a_file_of_questions_and_answers_is_rows(tmp_path: Path) -> None:
    examples, dropped = read_examples(*open_rows(gold(tmp_path)))
    assert [example.answer for example in examples] == [row.output for row in make_rows(24)]
    assert examples[3].id == "gold.jsonl:4"
    assert dropped == {"unfinished": 0}
    with (tmp_path / "gold.jsonl").open("a") as file:
        file.write('{"instruction": "no answer"}\n')
    with pytest.raises(DataError, match=r"gold\.jsonl:25: not a row .*; it needs instruction and output"):
        read_examples(*open_rows(tmp_path / "gold.jsonl"))
    with pytest.raises(MissingError, match="neither a run nor a plain JSONL file"):
        open_rows(tmp_path / "gold.jsonl.zst")


def test_a_teacher_s_sentences_speak_of_the_teacher() -> None:
    with pytest.raises(TrainError, match=r"^teacher\.model: the teacher has no chat template$"), speaking_of(TEACHER):
        raise TrainError("student.model: the student has no chat template")
    with pytest.raises(TrainError, match=r"^student\.model: the student"), speaking_of(STUDENT):
        raise TrainError("student.model: the student has no chat template")


def test_a_teacher_without_weights_is_a_sentence() -> None:
    echo = from_mapping({"teacher": {"backend": "echo"}}, where="test")
    with pytest.raises(ConfigError, match=r"teacher\.backend = echo: there are no weights to train"):
        in_role(echo, TEACHER)
    with pytest.raises(MissingError, match=r"teacher\.model is empty"):
        in_role(Config(), TEACHER)


@pytest.mark.model
def test_gold_rows_make_an_adapter_of_the_teacher(tmp_path: Path) -> None:
    """Into folders of its own, beside those of a student, and what is written is what `teacher.adapter` takes."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = tiny_student(tmp_path / "tiny")
    config = teacher_config(model, tuning="lora", max_steps=2, method="topk_kd")
    seen = check(config, gold(tmp_path), TEACHER)
    done = train(config, gold(tmp_path), tmp_path / "out", TEACHER)
    assert (seen["rows"], seen["validation_rows"]) == (done.rows, done.validation_rows)
    assert (done.student, done.adapter, done.untrained) == (str(model), "teacher", str(model))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["teacher", "train-teacher"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "out" / "teacher")
    assert read_done(tmp_path / "out", TEACHER) == done == train(config, gold(tmp_path), tmp_path / "out", TEACHER)
    assert read_done(tmp_path / "out") is None


@pytest.mark.model
def test_the_command_trains_a_whole_teacher_on_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, model = write_run(tmp_path / "run", make_rows(20)), tiny_student(tmp_path / "tiny")
    config = tmp_path / "config.toml"
    config.write_text(f'[teacher]\nmodel = "{model}"\n[train]\ntuning = "full"\nmax_steps = 1\n')
    assert potstill.main(["train", str(config), "--data", str(run), "--role", "teacher"]) == 0
    assert json.loads(capsys.readouterr().out)["student"] == "teacher"
    assert (run / "teacher" / "model.safetensors").is_file()
    assert potstill.main(["train", str(config), "--data", str(gold(tmp_path)), "--role", "teacher"]) == 2
    assert "say with --out which folder" in capsys.readouterr().err
    assert (
        potstill.main(["train", str(config), "--data", str(run), "--role", "teacher", "--set", "teacher.model=./x"])
        == 2
    )
    assert "train: teacher.model: " in capsys.readouterr().err
