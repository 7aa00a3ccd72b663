from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import make_config, make_rows, write_run

import potstill
from engine.errors import ConfigError, DiskError, MissingError, TrainError
from engine.shards import read_manifest
from trainer.done import read_done
from trainer.journal import Line, read_lines, step_of
from trainer.prepare import prepare
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


def losses(out: Path) -> list[float]:
    return [line.loss for line in read_lines(out / "train" / "metrics.jsonl") if line.loss is not None]


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


def test_dropped_rows_are_counted_and_no_token_is_lost(tmp_path: Path, student: Path) -> None:
    rows = make_rows(30) + make_rows(2, finish_reason="length")
    run = write_run(tmp_path, [*rows, *make_rows(3, output="word " * 200)])
    done = train(make_config(student, max_length=128, max_steps=4, val_fraction=0), run, run)
    assert done.dropped == {"unfinished": 2, "over_length": 3}
    assert done.rows == 30
    seen = check(make_config(student, max_length=128, val_fraction=0), run)
    assert seen["over_length_share"] == pytest.approx(3 / 33, abs=1e-4)
    # Four steps of eight rows are all 30 rows and two more.
    assert done.trained_tokens >= seen["tokens"]["trained"]
    assert done.trained_tokens < done.real_tokens <= done.padded_tokens


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


def test_training_is_repeatable(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(40))
    config = make_config(student, epochs=1, batch_size=4, gradient_accumulation=2)
    for name in ("one", "two"):
        train(config, run, tmp_path / name)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert (tmp_path / "one/student/model.safetensors").read_bytes() == (
        tmp_path / "two/student/model.safetensors"
    ).read_bytes()


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


def test_check_says_what_will_be_trained_and_writes_nothing(tmp_path: Path, student: Path) -> None:
    run = write_run(tmp_path, make_rows(40))
    before = sorted(path.name for path in run.iterdir())
    seen = check(make_config(student, epochs=1, batch_size=4, gradient_accumulation=2), run)
    assert sorted(path.name for path in run.iterdir()) == before
    assert seen["rows"] + seen["validation_rows"] == 40
    assert seen["first"]["trained"].endswith("<|im_end|>")
    assert seen["first"]["prompt"].endswith("<|im_start|>assistant\n")
    assert seen["steps"] == -(-seen["rows"] // 8)


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
