"""What cannot be trained is refused with a sentence, by `--check` and by training alike."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from students import make_config, make_rows, write_run

from engine.errors import ConfigError, DiskError, MissingError, TrainError
from trainer.done import read_done
from trainer.train import check, train

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]


def test_check_says_what_will_be_trained_and_writes_nothing(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(40))
    before = sorted(path.name for path in run.iterdir())
    seen = check(make_config(student, epochs=1, batch_size=4, gradient_accumulation=2), run)
    assert sorted(path.name for path in run.iterdir()) == before
    assert seen["rows"] + seen["validation_rows"] == 40
    assert seen["first"]["trained"].endswith("<|im_end|>")
    assert seen["first"]["prompt"].endswith("<|im_start|>assistant\n")
    assert seen["steps"] == -(-seen["rows"] // 8)


def test_check_says_what_does_not_end_it(tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    teacher = shutil.copytree(student, tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["<another>"])
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(teacher)
    run = write_run(tmp_path / "run", make_rows(8))
    assert check(make_config(student, teacher=teacher), run)["like_teacher"] == {"vocabulary": False, "template": False}
    said = capsys.readouterr().err
    assert "the student's vocabulary is not the teacher's" in said
    assert "the student's chat template is not the teacher's" in said
    assert re.search(r"it takes about \d+\.\d\d GiB, \d+\.\d\d at the least; the(re is no)? card", said)
    check(make_config(student, teacher=student), run)
    assert "the teacher's" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"method": "topk_kd", "packing": True}, "topk_kd keeps rows apart"),
        ({"patience": 2, "checkpoint_steps": 0}, "set train.checkpoint_steps above 0"),
        ({"processes": 3}, "8 rows a step, over all processes: they cannot be shared by 3"),
    ],
)
def test_check_refuses_what_training_would_refuse(
    tmp_path: Path, student: Path, keys: dict[str, Any], says: str
) -> None:
    run = write_run(tmp_path, make_rows(4))
    with pytest.raises(ConfigError, match=says):
        check(make_config(student, **keys), run)


@pytest.mark.parametrize(
    ("keys", "train_keys", "rows", "error", "says"),
    [
        ({"layers": 1}, {}, 4, ConfigError, "set student.init = prune"),
        ({"init": "prune", "layers": 3}, {}, 4, ConfigError, "the model has 2"),
        ({}, {"tuning": "lora", "target_modules": ["attention"]}, 4, ConfigError, "train.target_modules does not fit"),
        ({}, {"max_length": 5}, 4, TrainError, "no row to train on .4 kept, 0 unfinished, 4 over_length."),
        ({}, {}, 0, TrainError, "no row to train on .0 kept, 0 unfinished, 0 over_length."),
        ({}, {"val_fraction": 1.0}, 4, TrainError, "all 4 rows are held out"),
        ({"model": "./nowhere"}, {}, 4, MissingError, "student.model: .*nowhere is not a folder"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(
    tmp_path: Path,
    student: Path,
    keys: dict[str, Any],
    train_keys: dict[str, Any],
    rows: int,
    error: type[Exception],
    says: str,
) -> None:
    run = write_run(tmp_path, make_rows(rows))
    with pytest.raises(error, match=says):
        train(make_config(student, student_keys=keys, **train_keys), run, run)
    assert not (run / "student").exists()
    assert read_done(run) is None


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path / "run", make_rows(4))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="file/train: cannot be written"):
        train(make_config(student), run, tmp_path / "file")


def test_a_loss_that_explodes_ends_the_run(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(30))
    with pytest.raises(TrainError, match=r"the loss is (nan|inf) at step \d+; lower train\.learning_rate"):
        train(make_config(student, learning_rate=1e12, max_steps=20), run, run)
    assert not (run / "student").exists()
