"""The forms that a student leaves in, written from a really trained tiny student and asked on transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import make_config, make_rows, tiny_student, write_run

from engine.errors import ExportError, MissingError, UsageError
from trainer.export_model import Request, export_model
from trainer.forms import FORMS
from trainer.model_card import model_card
from trainer.quantise import _training_rows
from trainer.questions import held_out_prompts
from trainer.student import Student, read_student
from trainer.train import train

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LEARNS: dict[str, Any] = {
    "batch_size": 8,
    "gradient_accumulation": 1,
    "epochs": 150,
    "learning_rate": 1e-2,
    "val_fraction": 0,
}


FAILED = r"merged, 0 of 8 .* \(0.0%; it gives 8 different ones\), below 98%; it is in .*NAME.failed"


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student all of whose weights were trained; it has its rows by heart."""
    folder = tmp_path_factory.mktemp("full")
    student = tiny_student(folder / "base", **SHAPE)
    run = write_run(folder / "run", make_rows(8))
    train(make_config(student, **LEARNS), run, run)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, full_run: Path) -> Path:
    """A student with an adapter, which answers otherwise than the model it is on."""
    learnt = make_rows(8)
    rows = [msgspec.structs.replace(row, output=other.output) for row, other in zip(learnt, learnt[::-1], strict=True)]
    run = write_run(tmp_path_factory.mktemp("adapter") / "run", rows)
    train(make_config(full_run / "student", **{**LEARNS, "tuning": "lora", "r": 12, "alpha": 48}), run, run)
    return run


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions that the tiny students are sure about: those that they learnt from."""
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in make_rows(8)))
    return path


def asked(*to: str, items: Path, **changes: Any) -> Request:
    overrides = ["eval.max_tokens=16", f"eval.items={items}"]
    return Request(to=to, **{"engine": "transformers", "items": 100, "overrides": overrides, **changes})


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "export.json").read_bytes())
    return found


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_form_answers_as_the_student_does(
    run: Path, items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ("adapter", "merged", "fp8", "w4a16", "gguf")
    told = export_model(run, asked(*to, items=items, out=tmp_path))["forms"]
    said = capsys.readouterr().err
    assert "8 questions are held out, not 100, and fewer show less" in said
    assert said.count("8 of 8 held-out answers are the student's own (100.0%; it gives 8 different ones)") == len(to)
    assert names_in(tmp_path) == set(to) == set(told)
    for form in to:
        assert told[form]["verified"]
        assert told[form]["items"] == 8
        report = report_of(tmp_path / form)
        assert report["student_engine"] == "transformers"
        assert report["agreement"]["distinct"] == 8
        assert report["agreement"]["share"] >= report["agreement"]["least"] == 0.98
        assert report["bytes"] == sum(file["bytes"] for file in report["files"]) > 100_000
        assert {"tokenizer.json", "chat_template.jinja", "README.md"} <= names_in(tmp_path / form)
        card = (tmp_path / form / "README.md").read_text()
        assert f"tags:\n  - distillation\n  - potstill\n  - {form}\n" in card
        assert "8 held-out questions" in card
        assert str(tmp_path) not in card


def test_weights_are_stored_as_the_form_says(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    export_model(run, Request(to=["merged", "fp8", "w4a16"], out=tmp_path, verify=False))
    weights = {form: load_file(tmp_path / form / "model.safetensors") for form in ("merged", "fp8", "w4a16")}
    name = "model.layers.1.mlp.down_proj.weight"
    assert str(weights["merged"][name].dtype) == "torch.bfloat16"
    assert str(weights["fp8"][name].dtype) == "torch.float8_e4m3fn"
    assert weights["fp8"][f"{name}_scale"].shape == (64, 1)
    assert weights["w4a16"][f"{name}_packed"].shape == (64, 128 // 8)
    assert weights["w4a16"][f"{name}_scale"].shape == (64, 128 // 64)
    for form in weights:
        assert str(weights[form]["model.embed_tokens.weight"].dtype) == "torch.bfloat16"
        assert not any("lora" in key for key in weights[form])
        assert (tmp_path / form / "generation_config.json").is_file()
        report = report_of(tmp_path / form)
        assert (report["verified"], report["why"]) == (False, "not asked to (--no-verify)")
        assert "It was not checked." in (tmp_path / form / "README.md").read_text()


def test_a_form_that_answers_otherwise_fails_and_says_so(
    run: Path, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import forms, merge

    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "earlier").touch()

    def without_adapter(student: Student, folder: Path) -> dict[str, Any]:
        merge.save_model(merge.load_merged(msgspec.structs.replace(student, adapter=None)), student, folder)
        return {}

    broken = msgspec.structs.replace(forms.FORMS["merged"], write=without_adapter)
    monkeypatch.setitem(forms.FORMS, "merged", broken)
    with pytest.raises(ExportError, match=FAILED) as caught:
        export_model(run, asked("merged", items=items, out=tmp_path))
    assert caught.value.exit_code == 1
    assert names_in(tmp_path) == {"merged.failed"}
    report = report_of(tmp_path / "merged.failed")
    assert not report["verified"]
    first = report["agreement"]["different"][0]
    assert first["student"] != first["copy"]


def test_a_fully_trained_student_leaves_whole(full_run: Path, items: Path, tmp_path: Path) -> None:
    told = export_model(full_run, asked("merged", "gguf", items=items, out=tmp_path))["forms"]
    assert told["merged"]["verified"]
    assert told["gguf"]["verified"]
    with pytest.raises(UsageError, match="fully fine-tuned, so there is no adapter; use --to merged"):
        export_model(full_run, asked("adapter", items=items, out=tmp_path))


@pytest.mark.parametrize("kind", ["run", "file"])
def test_rows_are_found_where_training_found_them(full_run: Path, tmp_path: Path, kind: str) -> None:
    """Results need not be in the run; held-out questions and the rows to round on still are."""
    rows = make_rows(20)
    data = tmp_path / "gold.jsonl"
    data.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    if kind == "run":
        data = write_run(tmp_path / "run", rows)
    train(make_config(full_run / "student", max_steps=1, val_fraction=0.3), data, tmp_path / "out")
    student = read_student(tmp_path / "out")
    questions = {prompt.question for prompt in held_out_prompts(student, 100)}
    assert len(questions) == student.done.validation_rows > 0
    assert len(_training_rows(student)) == student.done.rows == 20 - len(questions)


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("adapter", "--lora-modules distilled=FOLDER --max-lora-rank 64 --default-chat-template-kwargs '{\"a\": 1}'"),
        ("fp8", "vllm serve FOLDER --served-model-name distilled --default-chat-template-kwargs '{\"a\": 1}'"),
        ("gguf", "llama-server -m student.gguf --jinja --chat-template-kwargs '{\"a\": 1}'"),
    ],
)
def test_a_card_says_how_to_serve_what_was_trained(full_run: Path, form: str, line: str) -> None:
    student = read_student(full_run, ["teacher.chat_template_kwargs.a=1"])
    assert line in model_card(student, FORMS[form], {"max_lora_rank": 64})


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"to": ["onnx"]}, UsageError, "--to onnx: no such form; there are adapter, merged, fp8, w4a16, gguf"),
        ({"to": []}, UsageError, "--to names no form"),
        ({"overrides": ["eval.items=none.jsonl"]}, MissingError, "none.jsonl is not there"),
        ({}, MissingError, "no row that was kept back .* or add --no-verify"),
    ],
)
def test_what_cannot_be_done_says_why(run: Path, changes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        export_model(run, Request(**{"to": ["merged"], **changes}))


def test_an_adapter_that_vllm_refuses_is_refused_here(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "student" / "adapter_config.json"
    settings = json.loads(path.read_bytes())
    for key, value in (("modules_to_save", ["lm_head"]), ("use_dora", True), ("bias", "all"), ("r", 600)):
        path.write_text(json.dumps(settings | {key: value}))
        with pytest.raises(UsageError, match="export it as merged"):
            export_model(copy, Request(to=["adapter"], verify=False))
