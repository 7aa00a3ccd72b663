"""Answers of a student or of a copy of it, greedily, from the engine that will serve it where this machine has it.

vLLM through a Backend, else transformers; a GGUF file through llama.cpp, else transformers. Promises that a prompt is
rendered with the student's own template and settings by every engine, and one Completion for each prompt. An engine
that does not start is an EngineError, never an answer.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.backend import answer_all, make_backend
from engine.config import Sampling, Teacher
from engine.errors import EngineError
from engine.render import Rendered, Renderer, chat_template
from engine.rows import Completion, Prompt
from trainer.libraries import first_line
from trainer.student import Student

BATCH = 8
"""Prompts that transformers answers at once."""
SLACK_TOKENS = 64
"""Room in llama.cpp's context beyond the longest prompt and answer."""


def has_vllm() -> bool:
    """Say whether vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


def has_llama_cpp() -> bool:
    """Say whether llama.cpp is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def sampling_of(student: Student) -> Sampling:
    """Return greedy sampling, as long as the evaluation's answers."""
    settings = student.config
    return Sampling(temperature=0, top_p=1.0, max_tokens=settings.eval.max_tokens, stop=settings.sampling.stop)


def from_vllm(teacher: Teacher, sampling: Sampling, prompts: Sequence[Prompt]) -> list[Completion]:
    """Ask a model on vLLM.

    Raises: EngineError where vLLM does not start with it.
    """

    async def ask() -> list[Completion]:
        async with make_backend(teacher, sampling) as backend:
            return await answer_all(backend, prompts)

    return asyncio.run(ask())


def from_transformers(
    student: Student, model: Path | str, adapter: Path | None, prompts: Sequence[Prompt]
) -> list[Completion]:
    """Ask a model folder, or a GGUF file, on transformers.

    Raises: EngineError where it does not load.
    """
    import torch

    # On a CPU everything is computed in float32, as vLLM is set up to do there.
    on_gpu = torch.cuda.is_available()
    loaded, tokenizer = _load(model, adapter, student.tokenizer, on_gpu=on_gpu)
    loaded = loaded.eval().to("cuda" if on_gpu else "cpu")
    rendered = _render(student, tokenizer, prompts)
    answers = [_refused(one) for one in rendered if one.error]
    good = [one for one in rendered if not one.error]
    for start in range(0, len(good), BATCH):
        answers += _generate(loaded, tokenizer, good[start : start + BATCH], sampling_of(student))
    del loaded
    torch.cuda.empty_cache()
    return _in_order(answers, prompts)


def from_llama_cpp(student: Student, file: Path, prompts: Sequence[Prompt]) -> tuple[list[Completion], int]:
    """Ask a GGUF file on llama.cpp; also return how many prompts its own tokenizer cuts as the student's does.

    Raises: EngineError where it does not load.
    """
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student.tokenizer)
    rendered, sampling = _render(student, tokenizer, prompts), sampling_of(student)
    context = max(len(one.ids) for one in rendered) + sampling.max_tokens + SLACK_TOKENS
    try:
        llama = Llama(str(file), n_ctx=context, n_gpu_layers=-1, verbose=False)
    except (ValueError, RuntimeError) as error:
        raise EngineError(f"llama.cpp does not load {file} ({first_line(error)})") from error
    answers, alike = [], 0
    for one in rendered:
        if one.error:
            answers.append(_refused(one))
            continue
        text = tokenizer.decode(one.ids, skip_special_tokens=False)
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        alike += ids == list(one.ids)
        made = llama.create_completion(
            ids, max_tokens=sampling.max_tokens, temperature=0, repeat_penalty=1.0, stop=list(sampling.stop)
        )
        choice = made["choices"][0]
        answers.append(Completion(id=one.prompt.id, text=choice["text"], finish_reason=choice["finish_reason"]))
    llama.close()
    return _in_order(answers, prompts), alike


def _load(model: Path | str, adapter: Path | None, tokenizer: Path, *, on_gpu: bool) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(model)
    try:
        if path.suffix == ".gguf":
            loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32")
            return loaded, AutoTokenizer.from_pretrained(tokenizer)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto" if on_gpu else "float32")
        if adapter is not None:
            loaded = PeftModel.from_pretrained(loaded, adapter)
        return loaded, AutoTokenizer.from_pretrained(tokenizer if adapter else model)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EngineError(f"transformers does not load {model} ({first_line(error)})") from error


def _render(student: Student, tokenizer: Any, prompts: Sequence[Prompt]) -> list[Rendered]:
    template = chat_template(tokenizer, str(student.tokenizer), "")
    return Renderer(tokenizer, template, student.template_kwargs).render(prompts)


def _refused(one: Rendered) -> Completion:
    return Completion(id=one.prompt.id, text="", finish_reason="error", error=one.error)


def _generate(model: Any, tokenizer: Any, batch: Sequence[Rendered], sampling: Sampling) -> list[Completion]:
    """Answer a batch, padded on the left."""
    import torch

    longest = max(len(one.ids) for one in batch)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[fill] * (longest - len(one.ids)) + list(one.ids) for one in batch])
    mask = torch.tensor([[0] * (longest - len(one.ids)) + [1] * len(one.ids) for one in batch])
    stop_ids = _stop_ids(model, tokenizer)
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=stop_ids,
            pad_token_id=fill,
        )
    answers = []
    for one, row in zip(batch, made[:, longest:].tolist(), strict=True):
        end = next((place for place, token in enumerate(row) if token in stop_ids), None)
        text = tokenizer.decode(row[:end], skip_special_tokens=True)
        for stop in sampling.stop:
            text = text.partition(stop)[0]
        answers.append(Completion(id=one.prompt.id, text=text, finish_reason="length" if end is None else "stop"))
    return answers


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return where vLLM stops too: the tokenizer's end token and those of the generation settings."""
    named = model.generation_config.eos_token_id
    ids = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return sorted({token for token in ids if token is not None})


def _in_order(answers: Sequence[Completion], prompts: Sequence[Prompt]) -> list[Completion]:
    by_id = {answer.id: answer for answer in answers}
    return [by_id[prompt.id] for prompt in prompts]
