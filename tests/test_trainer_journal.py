from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import TrainError
from trainer.journal import Journal, read_lines


def trained(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.count(trained=10, real=30, padded=32)
        journal.log(step, 10, step / 5, {"loss": 1.0 / step, "learning_rate": 1e-4})


def test_a_line_a_point_with_all_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", parts={})
    journal.begin(None)
    trained(journal, range(1, 4))
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line.step, line.loss, line.learning_rate) for line in lines] == [
        (1, 1.0, 1e-4),
        (2, 0.5, 1e-4),
        (3, 1 / 3, 1e-4),
    ]
    assert [(line.trained_tokens, line.real_tokens, line.padded_tokens) for line in lines][-1] == (30, 90, 96)
    assert all(line.tokens_per_s and line.tokens_per_s > 0 for line in lines)
    assert journal.loss == 1 / 3


def test_the_evaluation_loss_weighs_parts_by_rows(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", parts={"a": 3, "b": 1})
    journal.begin(None)
    journal.log(5, 10, 1.0, {"eval_a_loss": 1.0, "eval_a_runtime": 0.1})
    assert read_lines(tmp_path / "metrics.jsonl") == []
    journal.log(5, 10, 1.0, {"eval_b_loss": 3.0})
    line = read_lines(tmp_path / "metrics.jsonl")[0]
    assert (line.eval_loss, line.eval_loss_by_template, line.loss) == (1.5, {"a": 1.0, "b": 3.0}, None)
    journal.log(10, 10, 2.0, {"eval_a_loss": 1.0})
    assert journal.eval_loss == 1.5


def test_evaluations_without_a_better_loss_are_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", parts={"a": 1})
    journal.begin(None)
    stale = []
    for loss in (3.0, 2.0, 2.5, 2.0, 1.0):
        journal.log(1, 10, 0.1, {"eval_a_loss": loss})
        stale.append(journal.stale)
    assert stale == [0, 0, 1, 2, 0]
    assert journal.best_loss == 1.0


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, loss: float) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", parts={})
    journal.begin(None)
    with pytest.raises(TrainError, match=r"the loss is (nan|inf) at step 7; lower train\.learning_rate"):
        journal.log(7, 10, 1.0, {"loss": loss})


def test_a_resumed_journal_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "metrics.jsonl", tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    journal = Journal(path, parts={"a": 1})
    journal.begin(None)
    trained(journal, range(1, 5))
    journal.log(4, 10, 0.8, {"eval_a_loss": 2.5})
    journal.keep(checkpoint)
    trained(journal, range(5, 8))
    with path.open("ab") as file:
        file.write(b'{"step": 8, "epo')
    again = Journal(path, parts={"a": 1})
    again.begin(checkpoint)
    assert [line.step for line in read_lines(path)] == [1, 2, 3, 4, 4]
    assert again.counts.trained_tokens == 40
    assert again.counts.seconds == journal.counts.seconds or again.counts.seconds > 0
    assert (again.loss, again.eval_loss) == (0.25, 2.5)
    trained(again, range(5, 6))
    assert read_lines(path)[-1].trained_tokens == 50


def test_a_new_run_forgets_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "epoch": 0.5}\n')
    Journal(path, parts={}).begin(None)
    assert path.read_bytes() == b""


def test_progress_is_plain_lines_where_nobody_watches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", parts={})
    journal.begin(None)
    trained(journal, range(1, 11))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 2
    assert "step 10/10  loss 0.1000" in err
    assert "\r" not in err
