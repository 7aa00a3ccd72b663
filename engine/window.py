"""The window: how many prompts are with the teacher at once, and how many may wait for an earlier one.

Promises bounded memory however long the answer at the head of the order takes, and that a prompt which kills the
teacher is found. Knows counts and ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from engine.steer import Steering

AHEAD = 8
"""Windows of prompts that may wait for an earlier one to be committed."""
AHEAD_BYTES = 512 * 2**20
"""Bytes of answers that may wait so; what is in flight by then comes on top, a window at most. Of 1,024 at once, with
1,000 tokens and 20 log-probabilities each (130 kB), 8 windows would be 1.6 GB."""
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

    def is_open(self, capacity: int, steering: Steering) -> bool:
        """Say whether another prompt may be offered: by the budget, and by what waits for an earlier one."""
        few = steering.uncommitted < AHEAD * _size(capacity) and steering.waiting_bytes < AHEAD_BYTES
        return few and steering.open

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
