"""How the tests ask a test endpoint: through OpenAIBackend, plain and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from endpoint import Endpoint

from engine.backend import Watch, answer_all
from engine.config import Sampling, Teacher
from engine.openai_backend import OpenAIBackend
from engine.rows import Completion, Prompt, Verdict

SAMPLING = Sampling(max_tokens=64)


def never(text: str) -> Verdict | None:
    """Watch without ever being certain: the answers come as streams."""
    return None


MODES = pytest.mark.parametrize("watch", [None, never], ids=["plain", "streamed"])


def prompts(count: int, text: str = "Say something about") -> list[Prompt]:
    return [Prompt(index=i, id=f"p{i}", template="t", instruction=f"{text} {i}.", seed=i + 7) for i in range(count)]


def backend(endpoint: Endpoint, *, watch: Watch | None = None, **settings: Any) -> OpenAIBackend:
    """Return a backend for the endpoint, with retries that do not wait long."""
    teacher = Teacher(backend="openai", base_url=endpoint.url, **{"model": "teacher", "max_in_flight": 4, **settings})
    return OpenAIBackend(teacher, SAMPLING, watch=watch, first_backoff_s=0.01)


async def ask(endpoint: Endpoint, asked: list[Prompt], **settings: Any) -> list[Completion]:
    async with backend(endpoint, **settings) as teacher:
        return await answer_all(teacher, asked)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is the server's, which has no event for it
            await asyncio.sleep(0.01)
