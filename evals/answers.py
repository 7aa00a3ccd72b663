"""Asking a model every held-out item, and keeping its answers on disk.

Promises that an answer is asked for once: each line carries a key made of model, decoding and conversation, and what
has that key already is not asked again, so an evaluation that was killed goes on. Answers that failed are. Scores are
computed anew from the text each time, so another metric needs no model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.backend import answer_all, make_backend
from engine.config import Sampling
from engine.decode import UNREADABLE
from engine.errors import DataError
from engine.progress import note
from engine.rows import Completion, Message, Prompt, hash_id
from engine.shards import disk, replace_file
from engine.vllm_settings import eager
from evals.contestants import Contestant
from evals.items import Item
from evals.metrics import scores

Prefixes = Mapping[str, tuple[Message, ...]]
"""Template id -> the turns that the teacher sees before the question."""


FEW = 2000
"""Items up to which a GPU's engine starts without compilation: that takes as long as some thousand answers."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of `eval/answers-*.jsonl`."""

    id: str
    template: str = ""
    metric: str
    instruction: str
    input: str = ""
    reference: str
    output: str
    scores: dict[str, float]
    finish_reason: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    """Why there is no output; it scores as wrong and is asked again next time."""
    key: str = ""

    @property
    def score(self) -> float:
        """The headline score."""
        return self.scores[self.metric]


class Answers(msgspec.Struct, frozen=True):
    """One model's answers, in the order of the items."""

    answers: list[Answer]
    model: dict[str, Any]
    """What answered and how fast, from the last time that it was asked."""


def collect(
    contestant: Contestant, items: Sequence[Item], prefixes: Prefixes, sampling: Sampling, folder: Path
) -> Answers:
    """Return a contestant's answers to all items, asking for those that `folder` does not hold yet."""
    prompts = [_prompt(item, number, prefixes) for number, item in enumerate(items)]
    wanted = [_key(contestant, prompt, sampling) for prompt in prompts]
    path = folder / f"answers-{contestant.name}.jsonl"
    known = _read(path)
    missing = [(prompt, key) for prompt, key in zip(prompts, wanted, strict=True) if key not in known]
    model = _known_model(folder, contestant)
    if missing:
        note(f"eval: asking the {contestant.name} {len(missing)} of {len(items)} items")
        fresh, asked = asyncio.run(_ask(contestant, sampling, [prompt for prompt, _ in missing]))
        known |= {key: fresh[prompt.id] for prompt, key in missing}
        model |= asked
        note(f"eval: the {contestant.name} answered in {model['seconds']:.1f} s")
    answers = [_answer(item, key, known[key]) for item, key in zip(items, wanted, strict=True)]
    _write(path, answers)
    replace_file(folder / f"model-{contestant.name}.json", msgspec.json.encode(model) + b"\n")
    return Answers(answers, model)


def keys(contestant: Contestant, items: Sequence[Item], prefixes: Prefixes, sampling: Sampling) -> list[str]:
    """Return the key of every answer that `collect` would return."""
    return [_key(contestant, _prompt(item, number, prefixes), sampling) for number, item in enumerate(items)]


def _prompt(item: Item, number: int, prefixes: Prefixes) -> Prompt:
    return Prompt(
        index=number,
        id=item.id,
        template=item.template,
        instruction=item.instruction,
        input=item.input,
        prefix=prefixes.get(item.template, ()),
    )


def _key(contestant: Contestant, prompt: Prompt, sampling: Sampling) -> str:
    return hash_id(contestant.identity, *(msgspec.json.encode(part).decode() for part in (sampling, prompt.messages())))


async def _ask(
    contestant: Contestant, sampling: Sampling, prompts: Sequence[Prompt]
) -> tuple[dict[str, Completion], dict[str, Any]]:
    teacher = eager(contestant.teacher) if len(prompts) <= FEW else contestant.teacher
    async with make_backend(teacher, sampling) as backend:
        start = time.monotonic()
        completions = await answer_all(backend, prompts)
        seconds = time.monotonic() - start
        described: dict[str, Any] = {**backend.describe()}
    tokens = sum(completion.output_tokens for completion in completions)
    described |= {"asked": len(prompts), "seconds": round(seconds, 3), "output_tokens": tokens}
    return {completion.id: completion for completion in completions}, described


def _answer(item: Item, key: str, completion: Completion) -> Answer:
    # A lone surrogate, which no UTF-8 file can hold, becomes a question mark.
    output = completion.text.encode("utf-8", "replace").decode()
    return Answer(
        id=item.id,
        template=item.template,
        metric=item.metric,
        instruction=item.instruction,
        input=item.input,
        reference=item.reference,
        output=output,
        scores=scores(item.metric, item.reference, output),
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        output_tokens=completion.output_tokens,
        error=completion.error,
        key=key,
    )


def _read(path: Path) -> dict[str, Completion]:
    """Return the answers of an earlier evaluation by key, without those that failed."""
    found = {}
    for answer in read_answers(path):
        if not answer.error:
            found[answer.key] = Completion(
                id=answer.id,
                text=answer.output,
                finish_reason=answer.finish_reason,
                prompt_tokens=answer.prompt_tokens,
                output_tokens=answer.output_tokens,
            )
    return found


def read_answers(path: Path) -> list[Answer]:
    """Read one model's answers; none where the file is not there.

    Raises: DataError with `path:line`.
    """
    if not path.is_file():
        return []
    answers = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            answers.append(msgspec.json.decode(line, type=Answer))
        except UNREADABLE as error:
            raise DataError(f"{path}:{number}: not an answer ({error}); remove the file to ask again") from None
    return answers


def _write(path: Path, answers: Sequence[Answer]) -> None:
    with disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers))


def _known_model(folder: Path, contestant: Contestant) -> dict[str, Any]:
    path = folder / f"model-{contestant.name}.json"
    try:
        known: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.is_file() else {}
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}); remove the file to ask again") from None
    if known.get("identity") == contestant.identity:
        return known
    return {"identity": contestant.identity, "parameters": contestant.parameters}
