"""A teacher of several replicas with random timing, for the tests of the steering, and rules of a user's own."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from engine.filter import Filter
from engine.goal import Goal
from engine.rows import Completion, Prompt
from engine.rules import Draft
from engine.steer import Committed, Steering


class Remembering:
    """Rejects an output that begins like one that it has let pass: it must see every row that the others let pass."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def feed(self, partial: str) -> str | None:
        return None

    def finish(self, draft: Draft) -> str | None:
        start = draft.output.strip()[:9]
        if start in self._seen:
            return "begins like another"
        self._seen.add(start)
        return None


class Shouting:
    """Rejects an output with an exclamation mark, as soon as it is there."""

    remembers = False

    def feed(self, partial: str) -> str | None:
        return "shouts" if "!" in partial else None

    def finish(self, draft: Draft) -> str | None:
        return self.feed(draft.output)


class Replicas:
    """Prompts in flight on several replicas: any may finish next, and all may die."""

    def __init__(self, count: int, answers: Mapping[str, Completion], rules: Filter, rng: random.Random) -> None:
        self._running: list[list[Prompt]] = [[] for _ in range(count)]
        self._capacity = [rng.randint(1, 4) for _ in range(count)]
        self._answers = answers
        self._rules = rules
        self._rng = rng

    @property
    def room(self) -> int:
        return sum(self._capacity) - sum(map(len, self._running))

    def add(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            free = [number for number, running in enumerate(self._running) if len(running) < self._capacity[number]]
            self._running[self._rng.choice(free)].append(prompt)

    def die(self) -> None:
        for running in self._running:
            running.clear()

    def finish(self) -> list[Completion]:
        """Return what one replica has finished."""
        busy = [running for running in self._running if running]
        if not busy:
            return []
        running = self._rng.choice(busy)
        count = self._rng.randint(1, len(running))
        return [self._answer(running.pop(self._rng.randrange(len(running)))) for _ in range(count)]

    def _answer(self, prompt: Prompt) -> Completion:
        """Return the whole answer, or as much of it as there is when the watch knows enough."""
        whole = self._answers[prompt.id]
        if not self._rules.settings.early or whole.error:
            return whole
        step = self._rng.randint(1, 9)
        for cut in range(step, len(whole.text), step):
            verdict = self._rules.content.watch(whole.text[:cut])
            if verdict is not None:
                return Completion(id=whole.id, text=whole.text[:cut], finish_reason="abort", verdict=verdict)
        return whole


def drive(steering: Steering, prompts: Sequence[Prompt], replicas: Replicas, rng: random.Random) -> list[Committed]:
    """Offer, take, finish and commit in random steps until the run is over."""
    committed: list[Committed] = []
    waiting = list(reversed(prompts))
    for _ in range(200 * len(prompts) + 1000):
        if steering.done or not (waiting or steering.uncommitted):
            break
        for _ in range(rng.randint(0, 4)):
            if waiting and steering.open:
                steering.offer(waiting.pop())
        room = replicas.room if steering.wanted is None else min(replicas.room, steering.wanted)
        replicas.add(steering.take(rng.randint(0, room)))
        if rng.random() < 0.05:
            steering.requeue()
            replicas.die()
        if rng.random() < 0.8:
            for completion in replicas.finish():
                steering.finish(completion)
        committed += steering.commit()
    else:
        raise AssertionError("the run does not come to an end")
    steering.drop()
    return committed


def steering_of(rules: Filter, *, greedy: bool, disjoint: bool, plain: bool, goal: Goal) -> Steering:
    return Steering(rules, greedy=greedy, disjoint=disjoint, plain=plain, goal=goal)
