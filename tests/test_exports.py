"""The exporters: every format carries the same rows, every configuration has its consumer's shape."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from bundles import (
    ALL,
    HOSTILE,
    ROWS,
    STUDENT,
    export_run,
    front_matter,
    read_both,
    read_jsonl,
    whole_bundle,
    write_run,
)

import engine.exports
from engine.bundle import Facts, Teacher
from engine.config import Config
from engine.errors import DiskError
from engine.exports import exporters, names
from engine.rows import user_turn
from engine.samples import Samples
from engine.shards import read_manifest
from engine.split import group_of, held_out, normalised

QUESTIONS = {row.id: user_turn(row.instruction, row.input) for row in ROWS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return whole_bundle(tmp_path_factory.mktemp("exports"))


@pytest.fixture
def run(folders: tuple[Path, Path]) -> Path:
    return folders[0]


@pytest.fixture
def bundle(folders: tuple[Path, Path]) -> Path:
    return folders[1]


def test_every_exporter_is_found_and_says_what_it_follows() -> None:
    assert set(ALL) <= set(names())
    for name, exporter in exporters().items():
        doc = sys.modules[f"engine.exports.{name}"].__doc__ or ""
        assert "Format" in doc, name
        assert "Source: http" in doc, name
        assert exporter.consumer, name
        assert exporter.usage, name


def test_an_exporter_is_one_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain.py").write_text(
        "from engine.bundle import Exporter, jsonl\n"
        "EXPORTER = Exporter(consumer='the deaf', usage='read it', open=jsonl(lambda row, facts: {'a': row.output}))\n"
    )
    monkeypatch.setattr(engine.exports, "__path__", [*engine.exports.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "engine.exports.plain", raising=False)
    out, _ = export_run(run, "plain", out=tmp_path / "b")
    assert sum(len(rows) for rows in read_both(out / "formats/plain")) == len(ROWS)
    assert "- **plain** (the deaf): read it" in (out / "README.md").read_text()
    assert "formats/plain/train.jsonl" in (out / "manifest.json").read_text()


def test_canonical_rows_are_the_kept_rows_each_in_one_split(bundle: Path) -> None:
    train, validation = read_both(bundle / "data")
    found = {row["id"]: row for row in train + validation}
    assert len(train) + len(validation) == len(found) == len(ROWS)
    for row in ROWS:
        other = found[row.id]
        assert (other["instruction"], other["input"], other["output"]) == (row.instruction, row.input, row.output)
        assert (other["template"], other["finish_reason"]) == (row.template, "stop")
        assert (other["prompt_tokens"], other["output_tokens"]) == (row.prompt_tokens, row.output_tokens)
        assert other["messages"] == messages(row.instruction, row.input, row.output)
        assert other["teacher"] == {"model": "teacher-4b", "adapter": "", "temperature": 0.7}


def test_the_split_keeps_groups_together_and_is_the_trainer_s(bundle: Path) -> None:
    train, validation = read_both(bundle / "data")
    assert {row["group"] for row in train}.isdisjoint(row["group"] for row in validation)
    assert {normalised(QUESTIONS[row["id"]]) for row in train}.isdisjoint(
        normalised(QUESTIONS[row["id"]]) for row in validation
    )
    wanted = {
        row.id for row in ROWS if held_out(group_of(QUESTIONS[row.id]), val_fraction=0.2, seed=Config().train.seed)
    }
    assert {row["id"] for row in validation} == wanted
    assert 40 < len(validation) < 140


def messages(instruction: str, input_text: str, output: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"{instruction}\n\n{input_text}" if input_text else instruction},
        {"role": "assistant", "content": output},
    ]


def as_messages(name: str, row: dict[str, Any]) -> list[dict[str, str]]:
    """Turn a row of a format back into messages, allowing it no key that the format does not have."""
    if name == "openai":
        assert row.keys() == {"messages"}
        return list(row["messages"])
    if name == "alpaca":
        assert row.keys() == {"instruction", "input", "output"}
        return messages(row["instruction"], row["input"], row["output"])
    if name == "trl":
        assert row.keys() == {"prompt", "completion"}
        return [*row["prompt"], *row["completion"]]
    assert row.keys() == {"conversations"}
    role = {"human": "user", "gpt": "assistant"}
    return [{"role": role[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]


@pytest.mark.parametrize("name", ["openai", "alpaca", "trl", "sharegpt"])
def test_every_format_carries_the_same_rows_in_the_same_order(bundle: Path, name: str) -> None:
    canonical, found = read_both(bundle / "data"), read_both(bundle / "formats" / name)
    for wanted, rows in zip(canonical, found, strict=True):
        assert [as_messages(name, row) for row in rows] == [row["messages"] for row in wanted]
    assert any(HOSTILE[4] in row["messages"][1]["content"] for row in canonical[0])


LLAMAFACTORY = {
    "type": "object",
    "minProperties": 2,
    "additionalProperties": {
        "type": "object",
        "required": ["file_name", "formatting", "columns", "tags"],
        "additionalProperties": False,
        "properties": {
            "file_name": {"type": "string", "pattern": r"\.jsonl$"},
            "formatting": {"enum": ["alpaca", "sharegpt", "openai"]},
            "columns": {"const": {"messages": "messages"}},
            "tags": {
                "type": "object",
                "required": ["role_tag", "content_tag", "user_tag", "assistant_tag"],
                "propertyNames": {"enum": [f"{n}_tag" for n in ("role", "content", "user", "assistant", "system")]},
            },
        },
    },
}


TRAINING = {
    "num_train_epochs": {"type": "number", "exclusiveMinimum": 0},
    "per_device_train_batch_size": {"type": "integer", "minimum": 1},
    "learning_rate": {"type": "number", "exclusiveMinimum": 0},
    "eval_strategy": {"enum": ["no", "epoch", "steps"]},
    "bf16": {"type": "boolean"},
    "fp16": {"type": "boolean"},
}


AXOLOTL_DATASETS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "required": ["path", "ds_type", "type", "roles_to_train"],
        "properties": {
            "ds_type": {"const": "json"},
            "type": {"const": "chat_template"},
            "roles_to_train": {"const": ["assistant"]},
            "train_on_eos": {"enum": ["all", "turn", "last", "none"]},
        },
    },
}


SCHEMAS: dict[str, dict[str, Any]] = {
    "trl/sft.yaml": {
        "required": ["model_name_or_path", "dataset_name", "completion_only_loss", "output_dir"],
        "properties": {**TRAINING, "use_peft": {"const": True}, "lora_target_modules": {"type": "array"}},
    },
    "llamafactory/train.yaml": {
        "required": ["model_name_or_path", "dataset", "dataset_dir", "cutoff_len", "output_dir"],
        "properties": {
            **TRAINING,
            "stage": {"const": "sft"},
            "finetuning_type": {"enum": ["lora", "full", "freeze"]},
            "lora_target": {"type": "string"},
            "quantization_bit": {"const": 4},
        },
    },
    "axolotl/config.yaml": {
        "required": ["base_model", "datasets", "test_datasets", "sequence_len", "output_dir"],
        "properties": {
            "datasets": AXOLOTL_DATASETS,
            "test_datasets": AXOLOTL_DATASETS,
            "val_set_size": {"const": 0.0},
            "adapter": {"enum": ["lora", "qlora"]},
            "chat_template": {"const": "tokenizer_default"},
            "learning_rate": {"type": "number"},
        },
    },
    "torchtune/sft.yaml": {
        "required": ["model", "tokenizer", "checkpointer", "dataset", "dataset_val", "optimizer", "loss", "epochs"],
        "properties": {
            **{
                key: {"required": ["_component_"]}
                for key in ("model", "tokenizer", "checkpointer", "dataset", "dataset_val", "optimizer", "loss")
            },
            "epochs": {"type": "integer", "minimum": 1},
        },
    },
}


@pytest.mark.parametrize("path", SCHEMAS)
def test_a_configuration_is_yaml_of_the_consumer_s_shape_and_names_files_that_are_there(
    bundle: Path, path: str
) -> None:
    settings = yaml.safe_load((bundle / path).read_text())
    jsonschema.validate(settings, {"type": "object", **SCHEMAS[path]})
    assert "Qwen/Qwen2.5-0.5B-Instruct" in (bundle / path).read_text()
    files = [value for value in texts(settings) if value.startswith("formats/")]
    assert all((bundle / file).exists() for file in files)
    assert files or settings["dataset_dir"] == "llamafactory"


def texts(value: Any) -> list[str]:
    """Return every text in a nested value."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in texts(item)]
    return [value] if isinstance(value, str) else []


def test_llama_factory_s_description_names_both_splits_and_finds_them(bundle: Path) -> None:
    described = json.loads((bundle / "llamafactory/dataset_info.json").read_text())
    jsonschema.validate(described, LLAMAFACTORY)
    settings = yaml.safe_load((bundle / "llamafactory/train.yaml").read_text())
    assert [settings["dataset"], settings["eval_dataset"]] == list(described) == ["demo", "demo_validation"]
    for entry in described.values():
        assert (bundle / settings["dataset_dir"] / entry["file_name"]).resolve().is_file()


def test_configurations_say_how_the_run_trains(run: Path, tmp_path: Path) -> None:
    overrides = [
        STUDENT,
        "train.tuning=full",
        "train.learning_rate=1e-5",
        "train.epochs=3",
        "train.max_length=512",
        "train.packing=true",
        "train.dtype=float32",
        "teacher.chat_template_kwargs={enable_thinking = false}",
    ]
    out, _ = export_run(run, "trl", "llamafactory", "axolotl", "torchtune", out=tmp_path / "b", overrides=overrides)
    read = {path.parent.name: yaml.safe_load(path.read_text()) for path in out.glob("*/*.yaml")}
    rates = [read["trl"]["learning_rate"], read["llamafactory"]["learning_rate"], read["axolotl"]["learning_rate"]]
    assert [*rates, read["torchtune"]["optimizer"]["lr"]] == [1e-5] * 4
    assert [read["trl"]["max_length"], read["llamafactory"]["cutoff_len"], read["axolotl"]["sequence_len"]] == [512] * 3
    packed = [read["trl"]["packing"], read["llamafactory"]["neat_packing"], read["axolotl"]["sample_packing"]]
    assert [*packed, read["torchtune"]["dataset"]["packed"]] == [True] * 4
    assert [read["axolotl"]["num_epochs"], read["torchtune"]["epochs"]] == [3, 3]
    assert "use_peft" not in read["trl"]
    assert "adapter" not in read["axolotl"]
    assert read["llamafactory"]["finetuning_type"] == "full"
    assert read["torchtune"]["model"] == {"_component_": "torchtune.models.qwen2_5.qwen2_5_0_5b"}
    assert not any((read["trl"]["bf16"], read["llamafactory"]["bf16"], read["axolotl"]["bf16"]))
    assert read["llamafactory"]["enable_thinking"] is False
    assert read["axolotl"]["chat_template_kwargs"] == {"enable_thinking": False}
    row = read_jsonl([out / "formats/trl/train.jsonl"])[0]
    assert row["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_student_that_torchtune_does_not_know_gets_the_parts_that_do_not_depend_on_it(
    run: Path, tmp_path: Path
) -> None:
    out, _ = export_run(run, "torchtune", out=tmp_path / "b", overrides=["student.model=some/model"])
    text = (out / "torchtune/sft.yaml").read_text()
    assert text.startswith("# torchtune has no builder for some/model")
    assert "model" not in yaml.safe_load(text)
    assert yaml.safe_load(text)["dataset"]["conversation_style"] == "openai"


def test_without_validation_rows_there_is_no_file_for_them_and_no_setting(run: Path, tmp_path: Path) -> None:
    out, _ = export_run(run, "trl", "axolotl", "llamafactory", "torchtune", out=tmp_path / "b", val_fraction=0.0)
    assert not list(out.rglob("validation*"))
    assert yaml.safe_load((out / "trl/sft.yaml").read_text())["eval_strategy"] == "no"
    assert "test_datasets" not in yaml.safe_load((out / "axolotl/config.yaml").read_text())
    assert "eval_dataset" not in yaml.safe_load((out / "llamafactory/train.yaml").read_text())
    assert "dataset_val" not in yaml.safe_load((out / "torchtune/sft.yaml").read_text())
    head, _ = front_matter(out)
    assert [entry["split"] for entry in head["configs"][0]["data_files"]] == ["train"]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS[:4])
    (tmp_path / "train.jsonl").symlink_to("/dev/full")
    opened = exporters()["openai"].open
    assert opened is not None
    sink = opened(tmp_path, "train", Facts("n", tmp_path, Teacher(), Config().train, {}))
    for sample in Samples(run, read_manifest(run), include_truncated=False):
        sink.write(sample)
    with pytest.raises(DiskError, match=r"train\.jsonl: the disk is full"):
        sink.close()
