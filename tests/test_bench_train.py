"""The bench of the trainer: a tiny model, but every process that a real one starts."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from students import make_rows, smollm2, tiny_student, write_run

from bench.flops import flops_per_token, peak_tflops
from bench.train_rows import ANSWERS, load_rows, read_run
from engine.errors import DataError, PotstillError
from potstill import main
from trainer.render import Chat, load_chat

THINKING = """{%- for turn in messages %}<|im_start|>{{ turn.role + '\n' }}
{%- if turn.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}
{{- turn.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>{{ 'assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""
"""As Qwen3's: an answer has an empty thought before it, and so has a prompt of `enable_thinking = false`."""


@pytest.fixture(scope="module")
def chat() -> Chat:
    return load_chat(smollm2(), {})


def test_cards_are_known_by_their_driver_s_names() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989.4
    assert peak_tflops("NVIDIA H100 PCIe") == 756.0
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312.0
    assert peak_tflops("NVIDIA A10") == 125.0
    assert peak_tflops("NVIDIA L40S") == 362.05
    assert peak_tflops("NVIDIA GeForce RTX 4090") == 165.2
    assert peak_tflops("Some other card") is None


def test_reference_answers() -> None:
    assert ANSWERS["temperature"]("Convert temperature.\n\n-40.0 F") == "-40.0 C"
    assert ANSWERS["temperature"]("Convert temperature.\n\n100.1 F") == "37.8 C"
    assert ANSWERS["json"]("Format as JSON.\n\nname=Zo\u00eb age=7") == '{"name": "Zo\u00eb", "age": 7}'
    assert ANSWERS["summary"]("Summarise in one sentence.\n\nIt rained. Nobody minded.") == "It rained."


@pytest.mark.model
def test_flops_are_six_a_weight_and_attention() -> None:
    from transformers import LlamaConfig

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16, "vocab_size": 100}
    tied = LlamaConfig(**shape, tie_word_embeddings=True)
    assert flops_per_token(tied, 10_000, 50) == 6 * 10_000 + 12 * 2 * 32 * 50
    untied = LlamaConfig(**shape, tie_word_embeddings=False)
    assert flops_per_token(untied, 10_000, 50) == 6 * (10_000 - 3200) + 12 * 2 * 32 * 50


@pytest.mark.model
def test_made_rows_are_the_same_every_time_and_none_is_on_both_sides(chat: Chat) -> None:
    rows = load_rows(None, 300, 60, chat, seed=1)
    assert rows == load_rows(None, 300, 60, chat, seed=1)
    assert rows.train != load_rows(None, 300, 60, chat, seed=2).train
    assert len(rows.train) + len(rows.held_out) == 360
    assert 30 < len(rows.held_out) < 90
    assert {row.template for row in rows.train} == set(ANSWERS)
    assert not {row.instruction for row in rows.train} & {row.instruction for row in rows.held_out}
    assert 0 < rows.trained_tokens < rows.tokens < len(rows.train) * rows.longest


@pytest.mark.model
def test_rows_of_a_run_and_of_a_file(tmp_path: Path, chat: Chat) -> None:
    whole = make_rows(40)
    cut = make_rows(1, finish_reason="length", input="cut off")
    write_run(tmp_path / "run", [*cut, *whole])
    assert list(read_run(tmp_path / "run")) == whole
    assert len(load_rows(tmp_path / "run", 15, 5, chat, seed=1).train) < 20
    lines = [{"instruction": f"Say {number}", "output": str(number)} for number in range(40)]
    lines.append({"instruction": "Too long", "output": "word " * 3000})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = load_rows(tmp_path / "rows.jsonl", 1000, 200, chat, seed=1)
    assert (len(rows.train) + len(rows.held_out), rows.over_length) == (40, 1)
    (tmp_path / "bad.jsonl").write_text('{"instruction": "Say 1"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1: needs a text under instruction and output"):
        load_rows(tmp_path / "bad.jsonl", 10, 1, chat, seed=1)
    with pytest.raises(PotstillError, match="none is left to train on or to hold out"):
        load_rows(None, 5, 0, chat, seed=1)


@pytest.mark.model
def test_random_shapes_have_the_size_they_say(tmp_path: Path, chat: Chat) -> None:
    from transformers import AutoModelForCausalLM

    from bench.shapes import SHAPES, shape_config, write_form, write_random
    from engine.config import Train
    from trainer.memory import estimate

    for shape, low, high in (("0.5b", 0.39e9, 0.41e9), ("1.7b", 1.70e9, 1.72e9), ("4b", 3.7e9, 3.8e9)):
        config = shape_config(SHAPES[shape] or {}, chat.tokenizer)
        assert low < estimate(config, Train(), tuning="lora", dtype="bfloat16", tokens=1).parameters < high
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    write_random(tmp_path / "model", smollm2(), {**(SHAPES["0.5b"] or {}), **small})
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.model_type == "qwen2"
    assert load_chat(str(tmp_path / "model"), {}).stop_ids == chat.stop_ids
    write_form(tmp_path / "form", "4b")
    form = json.loads((tmp_path / "form" / "config.json").read_text())
    assert (form["architectures"], form["num_hidden_layers"], form["dtype"]) == (["Qwen3ForCausalLM"], 36, "bfloat16")
    assert load_chat(str(tmp_path / "form"), {}).stop_ids == chat.stop_ids
    assert not list((tmp_path / "form").glob("*.safetensors"))


@pytest.mark.model
def test_a_random_shape_stops_where_its_tokenizers_model_does(tmp_path: Path, chat: Chat) -> None:
    from bench.shapes import write_random

    source = tmp_path / "source"
    chat.tokenizer.save_pretrained(source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|endoftext|>"}))
    (source / "generation_config.json").write_text('{"eos_token_id": 2}')
    shape = {"kind": "Llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    write_random(tmp_path / "model", str(source), {**shape, "num_attention_heads": 2})
    assert load_chat(str(tmp_path / "model"), {}).stop_ids == {0, 2}


@pytest.mark.model
@pytest.mark.usefixtures("one_thread")
def test_the_bench_measures_every_contender_and_writes_its_page(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = tiny_student(tmp_path / "tiny")
    command = f"bench train --shape {student} --rows 40 --held-out 20 --steps 5 --warm-up 2 --together"
    contenders = "recipe,potstill-trl:learning_rate=0.01+warmup_steps=0"
    assert main([*command.split(), "--contenders", contenders, "--write", str(tmp_path / "page")]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out.splitlines()[-1])
    recipe, packed = found["results"].values()
    assert list(found["results"]) == contenders.split(",")
    assert recipe["x_recipe"] == 1.0
    assert packed["x_recipe"] == pytest.approx(packed["trained_per_s"] / recipe["trained_per_s"], abs=0.01)
    assert recipe["padding_efficiency"] < packed["padding_efficiency"] == 1.0
    for figures in (recipe, packed):
        assert (figures["steps"], figures["timed_steps"], figures["backend"]) == (5, 3, "trl")
        assert figures["padded_per_s"] >= figures["real_per_s"] > figures["trained_per_s"] > 0
        assert figures["trained_per_s"] == pytest.approx(figures["real_per_s"] * found["trained_share"], rel=0.01)
        assert figures["eval_loss"] < figures["untrained_loss"]
    # Its own settings are the only ones that learn something in five steps.
    assert packed["untrained_loss"] - packed["eval_loss"] > 10 * (recipe["untrained_loss"] - recipe["eval_loss"])
    assert packed["settings"][-2:] == ["train.learning_rate=0.01", "train.warmup_steps=0"]
    assert json.loads((tmp_path / "page" / "train-tiny.json").read_text()) == found
    assert f"| {contenders.split(',')[1]} |" in err
    assert err.strip().splitlines()[-1] in (tmp_path / "page" / "train-tiny.md").read_text()


@pytest.mark.model
@pytest.mark.usefixtures("one_thread")
def test_a_contender_that_fails_does_not_take_the_others_with_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = tiny_student(tmp_path / "tiny")
    (student / "chat_template.jinja").write_text(THINKING)
    command = f"bench train --shape {student} --rows 40 --held-out 20 --steps 3 --warm-up 0 --together"
    contenders = "potstill-unsloth,recipe,potstill-trl"
    assert main([*command.split(), "--contenders", contenders, "--write", str(tmp_path)]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "potstill-unsloth: train.backend = unsloth: there is no GPU" in err
    assert "bench train: potstill-unsloth failed" in err
    found = json.loads((tmp_path / "train-tiny.json").read_text())
    assert found["failed"] == ["potstill-unsloth"]
    steps = {name: (figures["steps"], figures["timed_steps"]) for name, figures in found["results"].items()}
    # Potstill's clock starts at the first point of its loss curve.
    assert steps == {"recipe": (3, 3), "potstill-trl": (3, 2)}
    assert main(["bench", "train", "--contenders", "axolotl"]) != 0


def test_a_job_survives_its_way_to_another_process() -> None:
    from bench.train_contender import Job

    job = Job("recipe", "config.toml", "run", "out", ["train.packing=true"], 3, {"a": "b"}, "held-out")
    assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job
