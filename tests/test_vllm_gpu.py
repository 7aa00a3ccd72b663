"""What only a card can show of vLLM: batch invariance, log-probabilities in bfloat16, forms, and the card's memory."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from engine import mps
from engine.backend import answer_all, make_backend
from engine.config import Sampling, Teacher
from engine.errors import EngineError
from engine.replica_count import resolve, this_machine
from engine.replicas import ReplicaBackend
from engine.rows import Constraint, Prompt, row_seed
from engine.vllm_settings import eager

pytestmark = [pytest.mark.gpu, pytest.mark.model]

SAMPLING = Sampling(temperature=0.8, max_tokens=48)


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    # With a cache of a given size vLLM measures nothing, so other work on the card does not matter.
    cache = {"kv_cache_memory_bytes": 4 * 2**30}
    return Teacher(model=str(teacher_folder), max_model_len=1024, gpu_memory_utilization=0.4, engine_args=cache)


@pytest.fixture(scope="module")
def quick(teacher: Teacher) -> Teacher:
    """Without compilation and CUDA graphs, which take a minute or more of a start."""
    return eager(teacher)


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(
            index=i, id=f"g{i}", template="t", instruction=f"Name {i} things." + " Yes." * i, seed=row_seed(2, str(i))
        )
        for i in range(count)
    ]


async def test_batch_invariant_answers_do_not_depend_on_company(teacher: Teacher) -> None:
    asked = prompts(200)
    # Below 8 rows a step vLLM 0.26 takes another way to `top_p`.
    sampling = msgspec.structs.replace(SAMPLING, top_p=1.0)
    async with make_backend(msgspec.structs.replace(teacher, batch_invariant=True), sampling) as backend:
        assert backend.describe()["batch_invariant"] == "true"
        together = await answer_all(backend, asked)
        for number in (0, 99, 199):
            assert await answer_all(backend, [asked[number]]) == [together[number]]


async def test_log_probabilities_and_forms(quick: Teacher) -> None:
    asked = [msgspec.structs.replace(prompts(1)[0], id="held", constraint=Constraint(choice=("left", "right")))]
    async with make_backend(quick, msgspec.structs.replace(SAMPLING, logprobs=5)) as backend:
        held, *answers = await answer_all(backend, asked + prompts(50))
    assert (held.error, held.text in ("left", "right")) == ("", True)
    for answer in answers:
        tokens, width = np.frombuffer(answer.logprobs, "<u4", 2)
        assert (tokens, width) == (answer.output_tokens, 5)
        values = np.frombuffer(answer.logprobs, "<f2", tokens * 6, 8 + tokens * 24).astype(np.float32)
        top = values[: tokens * 5].reshape(tokens, 5)
        assert (np.diff(top, axis=1) <= 0).all(), "likeliest first"
        assert (np.exp(top).sum(axis=1) < 1.01).all()
        assert (values[tokens * 5 :] <= top[:, 0] + 1e-3).all()


async def test_a_killed_replica_is_started_again_beside_the_other(quick: Teacher) -> None:
    """What it held of the card is free by then, with the engine process below it."""
    backend = make_backend(msgspec.structs.replace(quick, replicas=2), SAMPLING)
    assert isinstance(backend, ReplicaBackend)
    async with backend:
        pid = backend._replicas[1]._process.pid
        assert pid is not None
        await backend.add(prompts(200))
        os.kill(pid, signal.SIGKILL)
        answered: list[str] = []
        while len(answered) < 200 or not backend._replicas[1].up:
            answered += [answer.id for answer in await backend.completions()]
        assert len(set(answered)) == 200
        assert backend._replicas[1]._process.pid != pid
        assert [answer.error for answer in await answer_all(backend, prompts(200))] == [""] * 200


async def test_replicas_under_a_service_of_their_own_and_again_after_one_was_killed(quick: Teacher) -> None:
    if shutil.which(mps.CONTROL) is None:
        pytest.skip(f"needs {mps.CONTROL}")
    shared = msgspec.structs.replace(quick, replicas=2, mps=True)
    for kill in (True, False):
        backend = make_backend(shared, SAMPLING)
        assert isinstance(backend, ReplicaBackend)
        async with backend:
            assert backend.describe()["mps"] == "on"
            answers = await answer_all(backend, prompts(200))
            assert [answer.error for answer in answers] == [""] * 200
            if kill:
                pid = backend._replicas[1]._process.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(EngineError, match="replica 1"):
                    await answer_all(backend, prompts(200))
        left = [process.name() for process in psutil.process_iter() if process.name().startswith(mps.CONTROL[:15])]
        assert left == []


def test_the_cards_memory_is_known(teacher: Teacher) -> None:
    machine = this_machine()
    assert machine.cards >= 1
    assert machine.card_bytes is not None
    assert machine.card_bytes > 4 * 2**30
    chosen, why = resolve(msgspec.structs.replace(teacher, replicas="auto", gpu_memory_utilization=0.9))
    assert chosen.replica_count >= 1
    assert "GiB a card" in why
