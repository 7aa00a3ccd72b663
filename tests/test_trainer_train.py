"""Training: what a student learns, which rows and tokens it learns from, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import losses, make_config, make_rows, write_run

import potstill
from trainer.journal import Line, read_lines
from trainer.train import check, train

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]


BY_TWO: dict[str, Any] = {"batch_size": 2, "gradient_accumulation": 1}


def answers(folder: Path, adapter: Path | None, prompt: str) -> str:
    """Return what a trained student greedily says."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapter or folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**ids, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def test_a_pruned_student_learns_by_heart(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(4))
    keys = {"init": "prune", "layers": 1}
    config = make_config(
        student,
        student_keys=keys,
        epochs=50,
        scheduler="constant_with_warmup",
        learning_rate=1e-2,
        val_fraction=0,
        **BY_TWO,
    )
    done = train(config, run, run)
    first, last = losses(run)[0], losses(run)[-1]
    assert last < 0.1 < 5 < first
    assert done.train_loss == last
    assert (done.untrained, done.student, done.adapter) == ("untrained", "student", "")
    assert done.trained_parameters == done.parameters
    assert (done.rows, done.validation_rows, done.steps, done.eval_loss) == (4, 0, 100, None)
    assert answers(run / "student", None, "Double it.\n\n2") == "4"
    assert answers(run / "untrained", None, "Double it.\n\n2") != "4"
    assert not (run / "train" / "checkpoints").exists()


def test_pruning_by_importance_looks_at_the_run_s_rows(
    tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, make_rows(20))
    keys = {"init": "prune", "layers": 1, "layers_by": "importance"}
    done = train(make_config(student, student_keys=keys, max_steps=1), run, run)
    assert len(done.layers) == 1
    said = capsys.readouterr().err
    influence = [float(word) for word in said.partition("influence by layer: ")[2].split("\n")[0].split()]
    assert done.layers == (influence.index(max(influence)),)
    assert f"prune  1 of 2 layers ({done.layers[0]})" in said


def test_an_adapter_leaves_the_model_alone(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(60))
    config = make_config(student, tuning="lora", epochs=2, r=4, val_fraction=0.2)
    done = train(config, run, tmp_path / "out")
    assert (done.untrained, done.student, done.adapter) == (str(student), str(student), "student")
    assert 0 < done.trained_parameters < done.parameters / 10
    assert done.rows + done.validation_rows == 60
    names = {path.name for path in (tmp_path / "out" / "student").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    settings = json.loads((tmp_path / "out" / "student" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] is None
    assert not settings["use_dora"]
    lines = read_lines(tmp_path / "out" / "train" / "metrics.jsonl")
    measured = [line for line in lines if line.eval_loss is not None]
    assert len(measured) == 2
    assert set(measured[-1].eval_loss_by_template) == {"json", "double"}
    assert done.eval_loss == measured[-1].eval_loss
    assert isinstance(answers(student, tmp_path / "out" / "student", "Double it.\n\n2"), str)


def test_dropped_rows_are_counted_and_no_token_is_lost(
    tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(30) + make_rows(2, finish_reason="length")
    run = write_run(tmp_path, [*rows, *make_rows(3, output="word " * 200)])
    done = train(make_config(student, max_length=128, max_steps=4, val_fraction=0), run, run)
    assert done.dropped == {"unfinished": 2, "over_length": 3}
    assert done.rows == 30
    said = "5 of 35 rows are left out (14%): 2 cut off by the token limit, 3 longer than train.max_length = 128\n"
    assert said in capsys.readouterr().err
    seen = check(make_config(student, max_length=128, val_fraction=0), run)
    assert seen["over_length_share"] == pytest.approx(3 / 33, abs=1e-4)
    # Four steps of eight rows are all 30 rows and two more.
    assert done.trained_tokens >= seen["tokens"]["trained"]
    assert done.trained_tokens < done.real_tokens <= done.padded_tokens


def test_training_is_repeatable(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(40))
    config = make_config(student, epochs=1, batch_size=4, gradient_accumulation=2)
    for name in ("one", "two"):
        train(config, run, tmp_path / name)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert (tmp_path / "one/student/model.safetensors").read_bytes() == (
        tmp_path / "two/student/model.safetensors"
    ).read_bytes()


def test_packing_trains_the_same_tokens(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(48))
    keys: dict[str, Any] = {"epochs": 1, "batch_size": 4, "gradient_accumulation": 1, "val_fraction": 0}
    plain = train(make_config(student, **keys), run, tmp_path / "plain")
    packed = train(make_config(student, packing=True, **keys), run, tmp_path / "packed")
    assert packed.trained_tokens == plain.trained_tokens
    assert packed.padded_tokens == packed.real_tokens == plain.real_tokens < plain.padded_tokens
    assert abs(packed.steps - plain.steps) <= 2


def test_our_loss_on_a_cpu_is_trl_s(student: Path) -> None:
    """The same value and the same gradients, for rows of different lengths in one batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.loop import answer_loss

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 40_000, (3, 24), generator=draw)
    mask = (torch.arange(24) < torch.tensor([[24], [20], [9]])).long()
    labels = torch.where((mask == 1) & (torch.arange(24) >= torch.tensor([[15], [18], [4]])), ids, -100)
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    results = []
    for ours in (True, False):
        model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
        loss = answer_loss(model, dict(inputs), None) if ours else model(**inputs).loss
        loss.backward()
        results.append((loss.detach(), [weight.grad for weight in model.parameters()]))
    (value, grads), (expected, expected_grads) = results
    torch.testing.assert_close(value, expected)
    for grad, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-7)
    assert answer_loss(model, dict(inputs), 7).item() == pytest.approx(value.item() * (labels != -100).sum().item() / 7)


def test_the_command_prints_one_line(tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", make_rows(20))
    config = tmp_path / "config.toml"
    config.write_text(f'[student]\nmodel = "{student}"\n[train]\ntuning = "full"\nmax_steps = 1\n')
    assert potstill.main(["train", str(config), "--data", str(run), "--check"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["rows"] + seen["validation_rows"] == 20
    assert potstill.main(["train", str(config), "--data", str(run), "--set", "train.dtype=float32"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["student"] == "student"
    assert out.count("\n") == 1
    assert "Traceback" not in err
    assert "arning" not in err
    assert potstill.main(["train", str(config), "--data", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_lines_have_the_names_that_the_report_reads() -> None:
    fields = {field.name for field in msgspec.structs.fields(Line)}
    assert {
        "step",
        "epoch",
        "loss",
        "eval_loss",
        "learning_rate",
        "trained_tokens",
        "tokens_per_s",
        "seconds",
    } <= fields


def test_the_last_step_is_a_point_of_the_curve(tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.arguments.LOG_POINTS", 2)
    run = write_run(tmp_path, make_rows(4))
    train(make_config(student, max_steps=5, val_fraction=0, **BY_TWO), run, run)
    assert [line.step for line in read_lines(run / "train" / "metrics.jsonl")] == [2, 4, 5]
