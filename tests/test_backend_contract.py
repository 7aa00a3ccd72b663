"""What every Backend promises, on every Backend.

A new backend joins by a fixture in conftest.py that yields it entered, with SAMPLING and `watch=stop_wordy`, and its
name in BACKENDS.
"""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from wordiness import MOST_CHARS, WORDY

from engine.backend import Backend, answer_all
from engine.rows import Completion, Prompt, row_seed

pytestmark = pytest.mark.asyncio(loop_scope="session")

BACKENDS = ["echo_teacher", "replicas_teacher", "openai_teacher", pytest.param("vllm_teacher", marks=pytest.mark.model)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    entered: Backend = request.getfixturevalue(request.param)
    return entered


def prompts(count: int, *, start: str = "p", max_tokens: int = 8) -> list[Prompt]:
    """Return prompts that no other test has asked, so that a stray answer cannot pass for another."""
    return [
        Prompt(
            index=i,
            id=f"{start}{i}",
            template="t",
            instruction=f"Say something about the number {i}. " + "Use many words. " * 20,
            max_tokens=max_tokens,
            seed=row_seed(1, str(i)),
        )
        for i in range(count)
    ]


def renamed(asked: list[Prompt], start: str) -> list[Prompt]:
    return [msgspec.structs.replace(prompt, id=f"{start}{prompt.index}") for prompt in asked]


def texts(answers: list[Completion]) -> list[str]:
    return [answer.text for answer in answers]


async def collect(backend: Backend, wanted: set[str]) -> list[Completion]:
    """Return what comes back until every wanted prompt has."""
    answers: list[Completion] = []
    while not wanted <= {answer.id for answer in answers}:
        answers += await backend.completions()
    return answers


async def test_every_prompt_is_answered_once(backend: Backend) -> None:
    asked = prompts(90, start="once")
    await backend.add(asked[:40])
    await backend.add(asked[40:])
    answers = await collect(backend, {prompt.id for prompt in asked})
    assert Counter(answer.id for answer in answers) == Counter(prompt.id for prompt in asked)
    assert {(answer.finish_reason, answer.error, answer.verdict) for answer in answers} == {("length", "", None)}
    assert {answer.output_tokens for answer in answers} == {8}
    assert all(answer.prompt_tokens > 0 and answer.text for answer in answers)


async def test_an_aborted_prompt_makes_room_and_the_rest_is_answered(backend: Backend) -> None:
    asked = prompts(60, start="half")
    unwanted = [prompt.id for prompt in asked[::2]]
    await backend.add(asked)
    await backend.abort(unwanted)
    wanted = {prompt.id for prompt in asked[1::2]}
    answers = await collect(backend, wanted)
    after = prompts(3, start="after")
    await backend.add(after)
    answers += await collect(backend, {prompt.id for prompt in after})
    times = Counter(answer.id for answer in answers)
    assert set(times.values()) == {1}
    assert wanted | {prompt.id for prompt in after} <= set(times)
    assert set(times) <= wanted | {prompt.id for prompt in after} | set(unwanted)


async def test_aborting_what_is_unknown_or_done_is_nothing(backend: Backend) -> None:
    asked = prompts(1, start="known")
    await backend.abort(["nobody"])
    await backend.add(asked)
    await collect(backend, {"known0"})
    await backend.abort(["known0"])
    assert len(await answer_all(backend, renamed(asked, "again"))) == 1


async def test_a_verdict_ends_a_row_early(backend: Backend) -> None:
    short, wordy = prompts(12, start="short"), prompts(12, start="wordy", max_tokens=96)
    answers = await answer_all(backend, short + wordy)
    assert {(answer.finish_reason, answer.verdict) for answer in answers[:12]} == {("length", None)}
    assert {(answer.finish_reason, answer.verdict, answer.error) for answer in answers[12:]} == {("abort", WORDY, "")}
    for early, whole in zip(answers[12:], answers[:12], strict=True):
        assert len(early.text) > MOST_CHARS
        assert early.text.startswith(whole.text)
        assert 8 < early.output_tokens < 96


async def test_the_same_prompts_get_the_same_answers(backend: Backend) -> None:
    asked = prompts(24)
    first = await answer_all(backend, asked)
    second = await answer_all(backend, asked)
    assert first == second


async def test_an_answer_does_not_depend_on_order_or_company(backend: Backend) -> None:
    asked = prompts(24)
    together = {answer.id: answer for answer in await answer_all(backend, asked)}
    shuffled = random.Random(3).sample(asked, len(asked))
    assert {answer.id: answer for answer in await answer_all(backend, shuffled)} == together
    for prompt in asked[:3]:
        assert await answer_all(backend, [prompt]) == [together[prompt.id]]


async def test_it_says_what_it_is(backend: Backend) -> None:
    facts = backend.describe()
    assert facts["backend"] in {"echo", "openai", "vllm"}
    assert facts["model"]
    assert all(isinstance(value, str) for value in facts.values())
