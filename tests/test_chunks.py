"""What waits for a replica is handed out in chunks of one template, and the first in order before all others."""

from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.backend import answer_all, make_backend
from engine.chunks import Waiting
from engine.config import Echo, Sampling, Teacher
from engine.replica import Replica
from engine.replica_worker import Add
from engine.replicas import ReplicaBackend
from engine.rows import Prompt


def prompt(index: int, template: str) -> Prompt:
    return Prompt(index=index, id=str(index), template=template, instruction=f"Say {index}")


@given(
    names=st.lists(st.sampled_from("abc"), max_size=40),
    limits=st.lists(st.integers(1, 9), min_size=40, max_size=40),
    unwanted=st.sets(st.integers(0, 39).map(str)),
)
def test_each_is_handed_out_once_and_the_first_never_waits_for_another_template(
    names: list[str], limits: list[int], unwanted: set[str]
) -> None:
    waiting = Waiting()
    asked = [prompt(index, name) for index, name in enumerate(names)]
    for one in asked:
        waiting.add(one)
    waiting.discard(unwanted)
    left = [one for one in asked if one.id not in unwanted]
    assert len(waiting) == len(left)
    for limit in limits:
        chunk = waiting.take(limit)
        same = [one for one in left if one.template == left[0].template] if left else []
        assert chunk == same[:limit]
        left = [one for one in left if one not in chunk]
        assert len(waiting) == len(left)
    assert not left


@given(
    names=st.lists(st.sampled_from("abc"), max_size=30),
    first=st.lists(st.integers(1, 9), max_size=6),
    lost=st.sets(st.integers(0, 5)),
)
def test_what_is_put_back_goes_before_what_comes_later(names: list[str], first: list[int], lost: set[int]) -> None:
    waiting = Waiting()
    asked = [prompt(index, name) for index, name in enumerate(names)]
    for one in asked:
        waiting.add(one)
    taken = [waiting.take(limit) for limit in first]
    for number, chunk in enumerate(taken):
        if number in lost:
            waiting.put_back(chunk)
    answered = [one for number, chunk in enumerate(taken) if number not in lost for one in chunk]
    left = [one for one in asked if one not in answered]
    assert len(waiting) == len(left)
    assert [waiting.take(1) for _ in left] == [[one] for one in left]


async def test_a_busy_replica_is_sent_chunks_of_one_template() -> None:
    teacher = Teacher(backend="echo", replicas=2, echo=Echo(tokens_per_s=1e9, max_num_seqs=64))
    sent: list[tuple[int, list[Prompt]]] = []
    async with make_backend(teacher, Sampling()) as backend:
        assert isinstance(backend, ReplicaBackend)
        for replica in backend._replicas:
            spy(replica, sent)
        answers = await answer_all(backend, [prompt(i, "ab"[i % 2]) for i in range(2000)])
    assert len(answers) == 2000
    assert sorted(one.index for _, prompts in sent for one in prompts) == list(range(2000))
    changes = sum(a.template != b.template for _, prompts in sent for a, b in pairwise(prompts))
    assert changes < 2000 / 4, "in order, every prompt would be of another template than the one before it"
    counts = [sum(len(prompts) for number, prompts in sent if number == replica) for replica in (0, 1)]
    assert min(counts) > 600


def spy(replica: Replica, sent: list[tuple[int, list[Prompt]]]) -> None:
    send = replica.send

    def noted(message: Add) -> None:
        sent.append((replica.number, message.prompts))
        send(message)

    replica.send = noted  # type: ignore[assignment,method-assign]


async def test_few_prompts_are_shared_out_evenly() -> None:
    teacher = Teacher(backend="echo", replicas=4, echo=Echo(tokens_per_s=10, max_num_seqs=256))
    async with make_backend(teacher, Sampling()) as backend:
        assert isinstance(backend, ReplicaBackend)
        await backend.add([prompt(i, "a") for i in range(16)])
        assert [len(replica.asked) for replica in backend._replicas] == [4, 4, 4, 4]


async def test_a_smaller_replica_gets_its_share() -> None:
    teacher = Teacher(backend="echo", replicas=2, echo=Echo(tokens_per_s=1, max_num_seqs=100))
    async with make_backend(teacher, Sampling()) as backend:
        assert isinstance(backend, ReplicaBackend)
        backend._replicas[1].capacity = 10
        await backend.add([prompt(i, "a") for i in range(88)])
        assert [len(replica.asked) for replica in backend._replicas] == [80, 8]


def test_ten_thousand_templates_take_no_longer_than_one() -> None:
    waiting = Waiting()
    for index in range(20_000):
        waiting.add(prompt(index, str(index % 10_000)))
    start = time.monotonic()
    assert sum(len(waiting.take(1)) for _ in range(20_000)) == 20_000
    assert time.monotonic() - start < 2, "0.03 s on one core; looking at every template each time took 10"
