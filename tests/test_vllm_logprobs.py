"""Log-probabilities from a real vLLM on the CPU: the model's own, before temperature, beside the same text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from conftest import SAMPLING
from wordiness import WORDY, stop_wordy

from engine.backend import Backend, answer_all, make_backend
from engine.config import Sampling, Teacher
from engine.rows import Completion, Prompt, row_seed
from engine.vllm_answers import ScoredAnswers, _arrays

WIDTH = 5


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(
            index=i,
            id=f"scored{i}",
            template="t",
            instruction=f"Name the number {i}.",
            max_tokens=10 + 3 * i,
            seed=row_seed(9, str(i)),
        )
        for i in range(count)
    ]


def unpacked(packed: bytes) -> tuple[Any, Any, Any, Any]:
    tokens, width = np.frombuffer(packed, "<u4", 2)
    ids = np.frombuffer(packed, "<i4", tokens * (1 + width), 8)
    values = np.frombuffer(packed, "<f2", tokens * (1 + width), 8 + ids.nbytes)
    cut = tokens * width
    return ids[:tokens], ids[tokens:].reshape(tokens, width), values[:cut].reshape(tokens, width), values[cut:]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scored(tiny_teacher: Teacher) -> AsyncIterator[Backend]:
    sampling = msgspec.structs.replace(SAMPLING, logprobs=WIDTH)
    async with make_backend(tiny_teacher, sampling, watch=stop_wordy) as backend:
        yield backend


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="session")
async def test_they_are_the_models_own_and_the_text_is_as_without(
    scored: Backend, vllm_teacher: Backend, tiny_teacher: Teacher
) -> None:
    asked = prompts(24)
    with_them = await answer_all(scored, asked)
    without = await answer_all(vllm_teacher, asked)
    assert [msgspec.structs.replace(answer, logprobs=b"") for answer in with_them] == without
    ended = [answer for answer in with_them if answer.verdict is not None]
    assert ended, "some were ended early"
    assert {(answer.verdict, answer.logprobs) for answer in ended} == {(WORDY, b"")}
    whole = [(prompt, answer) for prompt, answer in zip(asked, with_them, strict=True) if answer.verdict is None]
    assert len(whole) > 2
    compare(tiny_teacher, whole)


def compare(teacher: Teacher, answers: list[tuple[Prompt, Completion]]) -> None:
    """Score the answers with transformers, and compare."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher.model)
    model = AutoModelForCausalLM.from_pretrained(teacher.model, dtype=torch.float32)
    for prompt, answer in answers:
        ids, topk_ids, topk, sampled = unpacked(answer.logprobs)
        assert topk_ids.shape == (answer.output_tokens, WIDTH)
        text = tokenizer.apply_chat_template(prompt.messages(), tokenize=False, add_generation_prompt=True)
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([before + ids.tolist()])).logits[0, len(before) - 1 : -1]
        expected = torch.log_softmax(logits, dim=-1)
        best = expected.topk(WIDTH)
        assert np.allclose(topk, best.values.numpy(), atol=0.02)
        assert np.mean(topk_ids == best.indices.numpy()) > 0.95, "equal but for ties"
        assert np.allclose(sampled, expected.gather(1, torch.tensor(ids.tolist())[:, None])[:, 0].numpy(), atol=0.02)


class Output:
    """What a step of vLLM returns for a row, as far as it is read."""

    def __init__(self, ids: list[int], *, reason: str | None = None, logprobs: Any = None) -> None:
        self.request_id = "r"
        self.prompt_token_ids = [1, 2]
        self.finished = reason is not None
        self.outputs = [self]
        self.text = ""
        self.token_ids = ids
        self.finish_reason = reason
        self.logprobs = logprobs


class Letters:
    """A tokenizer of letters; 0 ends an answer, 900 and 901 are halves of one character."""

    def decode(self, ids: list[int], **_: Any) -> str:
        text = "".join("" if i == 0 else chr(96 + i) if i < 900 else "<" if i == 900 else ">" for i in ids)
        return text.replace("<>", "é").replace("<", "\ufffd")


class Place:
    def __init__(self, logprob: float, rank: int) -> None:
        self.logprob, self.rank = logprob, rank


def flat(places: list[dict[int, Place]]) -> Any:
    from types import SimpleNamespace

    class Flat(SimpleNamespace):
        def __len__(self) -> int:
            return len(places)

    ids, values = [], []
    for place in places:
        ranked = sorted(place.items(), key=lambda entry: entry[1].rank)[:2]
        for token, entry in (next(iter(place.items())), *ranked):
            ids.append(token)
            values.append(entry.logprob)
    return Flat(token_ids=ids, logprobs=values)


PLACES = [
    {3: Place(-0.5, 1), 4: Place(-1.5, 2)},
    {9: Place(-4.0, 7), 4: Place(-0.25, 1), 5: Place(-2.0, 2)},
]


def test_flat_lists_and_mappings_say_the_same() -> None:
    for one, other in zip(_arrays(PLACES, 2), _arrays(flat(PLACES), 2), strict=True):
        assert one.tolist() == other.tolist()
    ids, values = _arrays(PLACES, 2)
    assert ids.tolist() == [[3, 3, 4], [9, 4, 5]]
    assert values.tolist() == [[-0.5, -0.5, -1.5], [-4.0, -0.25, -2.0]]


def answers(watched: list[str]) -> ScoredAnswers:
    return ScoredAnswers(watched.append, width=2, tokenizer=Letters(), decoded=False)  # type: ignore[arg-type, func-returns-value]


def test_a_character_that_is_half_there_is_not_judged_and_the_end_token_is_no_text() -> None:
    watched: list[str] = []
    rows = answers(watched)
    assert rows.take(Output([3, 900], logprobs=PLACES)) is None
    assert rows.take(Output([901], logprobs=PLACES[:1])) is None
    done = rows.take(Output([0], reason="stop", logprobs=PLACES[:1]))
    assert watched == ["c", "cé"]
    assert done is not None
    assert (done.text, done.output_tokens) == ("cé", 4)
    assert unpacked(done.logprobs)[0].tolist() == [3, 900, 901, 0]
    assert unpacked(done.logprobs)[3].tolist() == [-0.5, -4.0, -0.5, -0.5]


def test_a_token_without_log_probabilities_fails_the_row() -> None:
    done = answers([]).take(Output([3, 4, 5], reason="length", logprobs=PLACES))
    assert done is not None
    assert "no log-probabilities for some tokens" in done.error


@pytest.mark.model
def test_vllm_is_asked_for_numbers_and_no_texts() -> None:
    from engine.vllm_settings import engine_arguments, sampling_params

    prompt = prompts(1)[0]
    params = sampling_params(Sampling(logprobs=4), prompt, watched=True)
    assert (params.logprobs, params.flat_logprobs, params.detokenize) == (4, True, False)
    assert sampling_params(Sampling(logprobs=4, stop=("#",)), prompt, watched=True).detokenize
    assert sampling_params(Sampling(), prompt, watched=True).logprobs is None
    arguments = engine_arguments(Teacher(), "m", watched=True, cpu=True, logprobs=40)
    assert (arguments["max_logprobs"], arguments["logprobs_mode"]) == (40, "raw_logprobs")
    assert "max_logprobs" not in engine_arguments(Teacher(), "m", watched=True, cpu=True)
