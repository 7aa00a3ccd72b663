"""A replica that dies is started again alone, on the echo backend with real processes: nothing is lost or doubled."""

import asyncio
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from deadly import Deadly
from echo_runs import command, lines
from processes import alive, children, left_after_a_while

from engine import replicas
from engine.backend import answer_all, make_backend
from engine.config import Echo, Sampling, Teacher
from engine.errors import EngineError
from engine.replica import Message, Replica
from engine.replica_worker import Died
from engine.replicas import ReplicaBackend
from engine.rows import Completion, Prompt

BUSY = Teacher(backend="echo", replicas=3, echo=Echo(tokens_per_s=40_000, max_num_seqs=8, overlong=1))
STUCK = Teacher(backend="echo", replicas=3, echo=Echo(tokens_per_s=1, max_num_seqs=4, overlong=1))
"""Answers nothing within a test, so what it was asked stays in flight."""


@pytest.fixture(autouse=True)
def backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "BACKOFF_S", 0.01)


def prompts(count: int, start: int = 0) -> list[Prompt]:
    return [
        Prompt(index=i, id=str(i), template="ab"[i % 2], instruction=f"Say {i}", seed=i)
        for i in range(start, start + count)
    ]


def process(backend: ReplicaBackend, number: int) -> int:
    pid = backend._replicas[number]._process.pid
    assert pid is not None
    return pid


def kill(backend: ReplicaBackend, number: int) -> Replica:
    os.kill(process(backend, number), signal.SIGKILL)
    return backend._replicas[number]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for is another process's doing
            await asyncio.sleep(0.01)


async def take_in_until(backend: ReplicaBackend, condition: Callable[[], bool]) -> list[Completion]:
    """Take in what comes, as a caller does, until something is so."""
    done: list[Completion] = []
    async with asyncio.timeout(30):
        while not condition():
            if backend._inbox.empty():
                await asyncio.sleep(0.01)
            else:
                done += await backend.completions()
    return done


async def ask(backend: ReplicaBackend, asked: list[Prompt], *, after: int, harm: Callable[[], object]) -> Counter[str]:
    """Ask all, do harm after so many answers, and return how often each answer came."""
    await backend.add(asked)
    answers: Counter[str] = Counter()
    harmed = False
    while len(answers) < len(asked):
        answers.update(f"{one.id} {one.text}" for one in await backend.completions())
        if not harmed and answers.total() >= after:
            harm()
            harmed = True
    assert harmed
    return answers


async def test_the_others_go_on_and_it_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    asked = prompts(240)
    async with ReplicaBackend(BUSY, Sampling()) as backend:
        dead = process(backend, 1)
        answers = await ask(backend, asked, after=100, harm=lambda: kill(backend, 1))
        await take_in_until(backend, lambda: backend._replicas[1].up)
        assert not alive(dead)
        assert process(backend, 1) != dead
        more = prompts(12, start=240)
        await backend.add(more)
        assert len(backend._replicas[1].asked) == 4
        await take_in_until(backend, lambda: not any(replica.asked for replica in backend._replicas))
        assert (backend.capacity, backend.describe()["replicas"]) == (24, "3")
    async with make_backend(msgspec.structs.replace(BUSY, replicas=1), Sampling()) as alone:
        assert answers == Counter(f"{one.id} {one.text}" for one in await answer_all(alone, asked))
    said = capsys.readouterr().err
    assert (
        said.count("replica 1 died (its process ended without a word; it may have been killed for memory); it is ") == 1
    )
    assert "started again while the others go on, and " in said


async def test_what_a_worker_says_of_its_end_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orders = tmp_path / "orders"
    async with ReplicaBackend(BUSY, Sampling(), watch=Deadly(orders)) as backend:
        answers = await ask(backend, prompts(100), after=1, harm=lambda: orders.write_text("die"))
    assert set(answers.values()) == {1}
    assert "died (the card is lost); it is started again" in capsys.readouterr().err


async def test_what_was_answered_before_counts(capsys: pytest.CaptureFixture[str]) -> None:
    async with ReplicaBackend(msgspec.structs.replace(BUSY, replicas=2), Sampling()) as backend:
        await backend.add(prompts(8))
        await until(lambda: answered(backend) == 8)
        kill(backend, 0)
        await until(lambda: has_died(backend))
        assert sorted(one.id for one in await backend.completions()) == [str(number) for number in range(8)]
        assert "and 0 prompts are asked again" in capsys.readouterr().err
    async with ReplicaBackend(msgspec.structs.replace(BUSY, replicas=1), Sampling()) as backend:
        await backend.add(prompts(8))
        await until(lambda: answered(backend) == 8)
        kill(backend, 0)
        await until(lambda: has_died(backend))
        assert len(await backend.completions()) == 8
        for _ in range(2):
            with pytest.raises(EngineError, match=r"^replica 0: its process ended without a word"):
                await backend.completions()


def answered(backend: ReplicaBackend) -> int:
    messages = [message for _, message in backend._inbox._queue]  # type: ignore[attr-defined]
    return sum(len(getattr(message, "completions", ())) for message in messages)


def has_died(backend: ReplicaBackend) -> bool:
    return any(isinstance(message, Died) for _, message in backend._inbox._queue)  # type: ignore[attr-defined]


async def test_a_prompt_in_flight_at_two_deaths_may_be_what_kills() -> None:
    async with ReplicaBackend(STUCK, Sampling()) as backend:
        await backend.add(prompts(12))
        lost = set(kill(backend, 0).asked)
        assert len(lost) == 4
        await take_in_until(backend, lambda: bool(backend._lost))
        asked_again = lost & backend._replicas[1].asked.keys()
        assert len(asked_again) == 2, "those that were in flight go before what comes later"
        kill(backend, 1)
        with pytest.raises(EngineError, match=r"^replica 1: its process ended without a word"):
            await take_in_until(backend, lambda: False)


async def test_without_another_it_is_an_error(tmp_path: Path) -> None:
    (orders := tmp_path / "orders").write_text("")
    async with ReplicaBackend(msgspec.structs.replace(STUCK, replicas=2), Sampling(), watch=Deadly(orders)) as backend:
        orders.write_text("wait")
        kill(backend, 0)
        await take_in_until(backend, lambda: bool(backend._restarting))
        assert (backend.capacity, backend.describe()["replicas"]) == (8, "2")
        kill(backend, 1)
        with pytest.raises(EngineError, match=r"^replica 1: its process ended without a word"):
            await take_in_until(backend, lambda: False)


@pytest.mark.parametrize(("order", "why"), [("fail", "ended without a word"), ("wait", "not within 0.3 s")])
async def test_one_that_does_not_start_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str, why: str
) -> None:
    orders = tmp_path / "orders"
    async with ReplicaBackend(BUSY, Sampling(), watch=Deadly(orders)) as backend:
        if order == "wait":
            backend._teacher = msgspec.structs.replace(BUSY, start_timeout_s=0.3)
        orders.write_text(order)
        answers = await ask(backend, prompts(300), after=50, harm=lambda: kill(backend, 1))
        assert set(answers.values()) == {1}
        await take_in_until(backend, lambda: bool(backend._left_out) and not backend._restarting)
        assert (backend.capacity, backend.describe()["replicas"]) == (16, "2")
        said = capsys.readouterr().err
        for number in (1, 2, 3):
            assert f"replica 1 did not start again, try {number} of 3 ({why}" in said.replace("its process ", "")
        assert "replica 1 is left out, since 3 starts brought no answer; 2 of 3 replicas go on" in said
        orders.unlink()
        assert len(await answer_all(backend, prompts(50, start=300))) == 50
        kill(backend, 0)
        await take_in_until(backend, lambda: bool(backend._restarting))
        kill(backend, 2)
        with pytest.raises(EngineError, match=r"^replica 2: "):
            await take_in_until(backend, lambda: False)


async def test_a_start_that_failed_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orders = tmp_path / "orders"
    async with ReplicaBackend(BUSY, Sampling(), watch=Deadly(orders)) as backend:
        orders.write_text("fail")
        kill(backend, 1)
        await take_in_until(backend, lambda: backend._starts[1] == 2)
        orders.unlink()
        await take_in_until(backend, lambda: backend._replicas[1].up)
        assert len(await answer_all(backend, prompts(50))) == 50
        assert not backend._starts, "with an answer it has all its tries again"
    assert "left out" not in capsys.readouterr().err


async def test_one_that_comes_up_and_never_answers_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    async with ReplicaBackend(STUCK, Sampling()) as backend:
        for _ in range(1 + replicas.STARTS):
            await take_in_until(backend, lambda: backend._replicas[1].up)
            kill(backend, 1)
            await take_in_until(backend, lambda: not backend._replicas[1].up)
        await take_in_until(backend, lambda: bool(backend._left_out))
        assert (backend.capacity, backend.describe()["replicas"]) == (8, "2")
    said = capsys.readouterr().err
    assert said.count("it is started again while") == replicas.STARTS
    assert (
        said.count("it is left out while") == said.count("replica 1 is left out, since 3 starts brought no answer") == 1
    )


async def test_one_that_was_given_up_is_not_heard() -> None:
    inbox: asyncio.Queue[tuple[Replica, Message]] = asyncio.Queue()
    replica, other = Replica(0, BUSY, Sampling()), Replica(1, BUSY, Sampling())
    for one in (replica, other):
        one.start()
    replica.listen(inbox).cancel()
    await other.listen(inbox)
    for one in (replica, other):
        await asyncio.to_thread(one.stop)
    await until(lambda: inbox.qsize() == 2)
    assert [inbox.get_nowait()[0].number for _ in range(2)] == [1, 1], "Ready and Died of the other"
    assert not replica.up


async def test_aborting_what_is_asked_again() -> None:
    async with ReplicaBackend(STUCK, Sampling()) as backend:
        await backend.add(prompts(40))
        kill(backend, 0)
        await take_in_until(backend, lambda: bool(backend._lost))
        await backend.abort([str(number) for number in range(40)])
        assert not backend._waiting
        assert not backend._lost
        assert not any(replica.asked for replica in backend._replicas)


async def test_one_that_left_a_process_at_the_pipe_is_missed_all_the_same(tmp_path: Path) -> None:
    """Where vLLM forks its engine, that has the worker's end of the pipe too, and outlives the worker."""
    orders = tmp_path / "orders"
    async with ReplicaBackend(BUSY, Sampling(), watch=Deadly(orders)) as backend:
        orders.write_text("fork")
        await backend.add(prompts(3))
        await take_in_until(backend, lambda: not orders.exists())
        below = {number: children(process(backend, number)) for number in range(3)}
        [number] = [number for number, pids in below.items() if pids]
        dead = kill(backend, number)
        await take_in_until(backend, lambda: backend._replicas[number] is not dead)
        assert not any(map(alive, below[number])), "it is gone before another is started"


@pytest.mark.parametrize("moment", ["stopping", "backoff", "starting"])
async def test_leaving_meanwhile_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    orders, others = tmp_path / "orders", set(children(os.getpid(), "spawn_main"))
    monkeypatch.setattr(replicas, "BACKOFF_S", 600 if moment == "backoff" else 0)
    async with ReplicaBackend(STUCK, Sampling(), watch=Deadly(orders)) as backend:
        orders.write_text("wait")
        await backend.add(prompts(12))
        dead = kill(backend, 1)
        await take_in_until(backend, lambda: bool(backend._restarting))
        if moment == "backoff":
            await until(lambda: dead._stopped)
        if moment == "starting":
            await until(lambda: backend._replicas[1] is not dead and backend._replicas[1]._process.pid is not None)
        workers = set(children(os.getpid(), "spawn_main")) - others
        assert len(workers) >= 2
    assert not any(map(alive, workers))
    assert set(children(os.getpid(), "spawn_main")) <= others
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_run_whose_workers_are_killed_keeps_the_same_rows(whole: Path, tmp_path: Path) -> None:
    folder, rng, kills = tmp_path / "run", random.Random(3), 0
    many = ("teacher.replicas=3", "teacher.echo.tokens_per_s=2000", "teacher.echo.max_num_seqs=16")
    run = subprocess.Popen(command(folder, *many), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and not list(folder.glob("kept-*")):
        time.sleep(0.02)
    while run.poll() is None:
        workers = children(run.pid, "spawn_main")
        if workers and kills < 6:
            os.kill(rng.choice(workers), signal.SIGKILL)
            kills += 1
        time.sleep(0.5 + rng.random())
    _, said = run.communicate()
    assert run.returncode == 0, said
    assert kills >= 3
    assert "it is started again while the others go on" in said
    assert lines(folder) == lines(whole)
    assert left_after_a_while(children(run.pid)) == []
