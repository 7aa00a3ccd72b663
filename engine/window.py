"""The window: how many prompts are with the teacher at once, and how many may wait for an earlier one.

Promises bounded memory however long the answer at the head of the order takes, and that a prompt which kills the
teacher is found. Knows counts and ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from engine.steer import Steering

AHEAD_BYTES = 512 * 2**20
"""Memory of prompts and answers that may wait for an earlier prompt to be committed; what is in flight by then comes on
top, a window at most. At 1 kB a row half a million may wait: with 1,024 at once, behind an answer 500 times as long as
the others. A bound of 8 windows left an engine at 60% where one answer in a hundred was 28 times as long."""
LOOK = 8
"""Windows of prompts that are looked through at once for those that may be asked: a quarter of a second."""
DEATHS = 2
"""A prompt that was in flight at so many deaths of the teacher is a suspect; one that kills it alone has failed."""
FEWER = 32
"""Suspects are asked so many times fewer at once, and fewer again at each death: 6,000 in flight take three steps."""


class Window:
    """What a generation may ask of a teacher of some capacity."""

    def __init__(self) -> None:
        self._deaths: Counter[str] = Counter()

    def at_once(self, capacity: int) -> int:
        """Return how many prompts may be in flight: more than run at once, so that the teacher never waits."""
        worst = max(self._deaths.values(), default=0)
        size = _size(capacity)
        return size if worst < DEATHS else max(1, size // FEWER ** (worst - DEATHS + 1))

    def is_open(self, steering: Steering) -> bool:
        """Say whether another prompt may be offered: by the budget, and by what waits for an earlier one."""
        return steering.uncommitted_bytes < AHEAD_BYTES and steering.open

    def looked_through(self, capacity: int) -> int:
        """Return how many prompts may be offered at once."""
        return LOOK * _size(capacity)

    def committed(self, prompt_id: str) -> None:
        """Note that a prompt is no suspect."""
        self._deaths.pop(prompt_id, None)

    def died(self, lost: Sequence[str], *, by_prompt: bool) -> str | None:
        """Note what was in flight when the teacher died; return the prompt that killed it, where that is known.

        `by_prompt`: the teacher dies so of a prompt.
        """
        self._deaths.update(lost)
        if not by_prompt or len(lost) != 1 or self._deaths[lost[0]] <= DEATHS:
            return None
        self._deaths.clear()
        return lost[0]


def _size(capacity: int) -> int:
    return capacity + max(8, capacity // 2)
